"""What a language model does with a text: who serves its letters, what surprises it, and where it looks."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels.text import TITLE, text_panel
from moe_lessons.plots.still import FONT, visible
from moe_lessons.plots.theme import axes_for, styled
from moe_lessons.support.errors import check_choice


def colored_trace(trace: pd.DataFrame, layer: int, title: str = "") -> Panel:
    """A panel with a text in which each letter has the colour and the number of the expert that served it first; a tip
    has all experts of a byte and their weights. `widgets.Picture` shows it.

    trace: of one text, such as `analysis.trace_text` makes.
    """
    trace, experts, weights = _one_text(trace)
    check_choice("layer", layer, trace["layer"].unique().tolist())
    chosen = (trace["layer"] == layer).to_numpy()
    data, rows = bytes(trace["byte"][chosen].tolist()), zip(experts[chosen], weights[chosen])
    says = [", ".join(f"E{e} {w:.2f}" for e, w in zip(*row) if e >= 0) or "no expert" for row in rows]
    made = text_panel([(data, experts[chosen, 0])], (), title or f"{TITLE} in layer {layer}", says)
    return replace(made, width=12, height=30 + 36 * (1 + len(data) // 88 + data.count(b"\n")))


def _one_text(trace: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """A trace of one text by layer and position, with its experts and weights (rows, K); ValueError if it is none."""
    needed = {"position", "byte", "layer", "expert0", "weight0"}
    if not isinstance(trace, pd.DataFrame) or not needed <= set(trace) or trace.empty:
        got = f"{len(trace)} rows with {list(trace)}" if isinstance(trace, pd.DataFrame) else type(trace).__name__
        raise ValueError(f"trace must be a table as trace_text makes it, with at least one row, got {got}")
    if trace.duplicated(["layer", "position"]).any():
        raise ValueError("trace must be of one text, got several")
    trace = trace.sort_values(["layer", "position"])
    return trace, *(trace.filter(regex=rf"^{kind}\d+$").to_numpy() for kind in ("expert", "weight"))


def byte_losses(text: str, losses: Sequence[float], ax: Axes | None = None, theme: str = "light") -> Axes:
    """The loss of each character of `text`, in nats: a bar over the character. Both have the same length."""
    if len(text) != len(losses):
        raise ValueError(f"losses must have one number for each of the {len(text)} characters, got {len(losses)}")
    ax, ink = axes_for(ax, theme, 9.5, 2.2, "How much each byte surprised the model", ylabel="loss (nats)")
    ax.bar(range(len(text)), losses, 0.85, color=ink.lines[5])
    ax.set_xticks(range(len(text)), _signs(text), family=FONT, color=ink.foreground)
    ax.set_xlim(-0.7, len(text) - 0.3)
    return ax


def attention_heatmap(weights, text: str, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Who looks at whom: `weights` (T, T), a row for each token of `text`, a column for each that it may look at."""
    weights = np.asarray(weights)
    if weights.shape != (len(text), len(text)):
        raise ValueError(f"weights must have the shape {(len(text), len(text))} of the text, got {weights.shape}")
    ax, ink = axes_for(ax, theme, 4.8, 4.2, "Attention weights of one head", "looks at", "token")
    image = ax.imshow(weights, vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(range(len(text)), _signs(text), family=FONT, color=ink.foreground)
    styled(ax.figure.colorbar, ink, image, ax=ax, label="share of the attention")
    return ax


def _signs(text: str) -> list[str]:
    return ["␣" if char == " " else visible(char) for char in text]
