"""What a language model does with a text: who serves its letters, what surprises it, and where it looks."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels.text import TITLE, text_panel
from moe_lessons.plots.still import FONT, visible
from moe_lessons.plots.theme import LIGHT, axes_for, styled
from moe_lessons.support.errors import check_choice


def colored_trace(trace: pd.DataFrame, layer: int, title: str = "") -> Panel:
    """Show a text in which each letter has the colour and the number of the expert that served it first; a tip has all
    experts of a byte and their weights. `widgets.Picture` shows it. trace: of one text, as `analysis.trace_text` makes
    it."""
    check_choice("layer", layer, trace["layer"].unique().tolist())
    rows = trace[trace["layer"] == layer].sort_values("position")
    if rows["position"].duplicated().any():
        raise ValueError("trace must be of one text, got several")
    experts, weights = (rows.filter(regex=rf"^{kind}\d+$").to_numpy() for kind in ("expert", "weight"))  # (rows, K)
    served = [[f"E{e} {w:.2f}" for e, w in zip(*row) if e >= 0] for row in zip(experts, weights)]
    data, says = bytes(rows["byte"].tolist()), [", ".join(own) or "no expert" for own in served]
    made = text_panel([(data, experts[:, 0])], (), title or f"{TITLE} in layer {layer}", says)
    return replace(made, width=12, height=30 + 36 * (1 + len(data) // 88 + data.count(b"\n")))


def byte_losses(text: str, losses: Sequence[float]) -> Axes:
    """Draw the loss of each character of `text`, in nats: a bar over the character. Both have the same length."""
    if len(text) != len(losses):
        raise ValueError(f"losses must have one number for each of the {len(text)} characters, got {len(losses)}")
    ax = axes_for(9.5, 2.2, "How much each byte surprised the model", ylabel="loss (nats)")
    ax.bar(range(len(text)), losses, 0.85, color=LIGHT.lines[5])
    ax.set_xticks(range(len(text)), _signs(text), family=FONT, color=LIGHT.foreground)
    ax.set_xlim(-0.7, len(text) - 0.3)
    return ax


def attention_heatmap(weights, text: str) -> Axes:
    """Draw who looks at whom: weights (T, T), a row for each token of `text`, a column for each that it may look at."""
    weights = np.asarray(weights)
    if weights.shape != (len(text), len(text)):
        raise ValueError(f"weights must have the shape {(len(text), len(text))} of the text, got {weights.shape}")
    ax = axes_for(4.8, 4.2, "Attention weights of one head", "looks at", "token")
    image = ax.imshow(weights, vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(range(len(text)), _signs(text), family=FONT, color=LIGHT.foreground)
    styled(ax.figure.colorbar, LIGHT, image, ax=ax, label="share of the attention")
    return ax


def _signs(text: str) -> list[str]:
    return ["␣" if char == " " else visible(char) for char in text]
