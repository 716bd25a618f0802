"""What a language model does with a text: who serves its letters, what surprises it, and where it looks."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_lessons.errors import check_choice
from moe_lessons.plots.marks import Panel, experts_axis
from moe_lessons.plots.panels.text import TITLE, characters, text_panel
from moe_lessons.plots.still import FONT, visible
from moe_lessons.plots.theme import annotate, axes_for, expert_color, expert_hatch, styled

CONTEXT, NEIGHBOURS = 24, 3  # characters of the text around a token; neighbours whose way is shown, on each side


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


def token_path(trace: pd.DataFrame, position: int, ax: Axes | None = None, theme="light") -> Axes:
    """The way of one token through the layers: the experts of each, dots and lines as large as the weight.

    trace: of one text, such as `analysis.trace_text` makes. position: of the token's byte. Pale lines are the first
    choices of the neighbours. Above: where in the text it stands, between « and ».
    """
    trace, experts, weights = _one_text(trace)
    layers, places = (trace[name].unique().tolist() for name in ("layer", "position"))
    at = places.index(check_choice("position", position, places))
    if len(trace) != len(layers) * len(places):
        raise ValueError("trace must have the same positions in each layer, got fewer in some")
    experts, weights = (x.reshape(len(layers), len(places), -1) for x in (experts, weights))  # (layers, T, K)
    num_experts = trace.attrs.get("num_experts", int(experts.max()) + 1)
    text = _context(bytes(trace["byte"][trace["layer"] == layers[0]].tolist()), at)
    title = f"The way of position {position} through the layers:\n{text}"
    ax, ink = axes_for(ax, theme, 2.4 + 1.5 * len(layers), 1.5 + 0.27 * num_experts, title)
    for i in range(max(at - NEIGHBOURS, 0), min(at + NEIGHBOURS + 1, len(places))):
        first = np.where(experts[:, i, 0] < 0, np.nan, experts[:, i, 0] + 0.03 * (i - at))
        ax.plot(first, color=ink.muted, alpha=0.35, lw=1, zorder=1.6)
    chosen = [[(e, w) for e, w in zip(*pair) if e >= 0] for pair in zip(experts[:, at].tolist(), weights[:, at])]
    for x, (here, after) in enumerate(zip(chosen, [*chosen[1:], []])):
        for expert, weight in here:
            for other, its_weight in after:
                width = 8 * weight * its_weight
                ax.plot([x, x + 1], [expert, other], color=ink.foreground, lw=width, alpha=0.8, zorder=2)
            look = {"color": expert_color(expert), "ec": ink.foreground, "lw": 1, "hatch": expert_hatch(expert)}
            ax.scatter([x], [expert], s=40 + 260 * weight, zorder=3, **look)
            annotate(ax, f"{weight:.2f}", (x, expert), ink, (13, 0), halo=True, zorder=4)
    ax.set(xlim=(-0.4, len(layers) - 0.4), ylim=(num_experts - 0.4, -0.6))
    ax.set_xticks(range(len(layers)), [f"layer {layer}" for layer in layers])
    ax.set_yticks(*zip(*experts_axis(num_experts).ticks))
    ax.grid(axis="y")
    return ax


def _context(data: bytes, at: int) -> str:
    """The text around byte `at`, its character between « and »; '(2 of 3)' where it is one byte of several."""
    signs = list(characters(data))
    i = next(i for i, (_, start, size) in enumerate(signs) if start <= at < start + size)
    char, start, size = signs[i]
    part = f" ({at - start + 1} of {size})" if size > 1 else ""
    before, after = ("".join(visible(c) for c, _, _ in s) for s in (signs[max(0, i - CONTEXT) : i], signs[i + 1 :]))
    return f"{before}«{visible(char)}{part}»{after[:CONTEXT]}"


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
