"""What a language model does with a text: who serves its letters, what surprises it, and where it looks."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from moe_lessons.errors import check_choice, check_count, check_positive_int
from moe_lessons.plots.marks import Panel, experts_axis
from moe_lessons.plots.panels._history import as_array
from moe_lessons.plots.panels.text import TITLE, characters, text_panel
from moe_lessons.plots.still import FONT, visible
from moe_lessons.plots.theme import RED, TEXT_SIZE, Theme, axes_for, expert_color, expert_hatch, write

CONTEXT = 24  # characters of the text that are shown on each side of a token


def colored_text(text, experts, weights=None, num_experts: int | None = None, title: str = "") -> Panel:
    """A panel with a text in which each letter has the colour and the number of the expert that served it first.

    text: str, or bytes where a character may be cut in two. experts (N,) or (N, K): the experts of each byte, the
    first choice first, -1 where there is none. weights: theirs, in the same shape. num_experts: E, if it is known.
    `widgets.Picture` shows it; a tip has the experts of a byte and their weights.
    """
    most = np.inf if num_experts is None else check_positive_int("num_experts", num_experts) - 1
    if not isinstance(text, str | bytes) or not text:
        raise ValueError(f"text must be a str or bytes with at least one character, got {text!r}")
    data, experts = text.encode() if isinstance(text, str) else text, as_array(experts)
    if experts.ndim not in (1, 2) or len(experts) != len(data) or experts.size == 0:
        raise ValueError(f"experts must have one row for each of the {len(data)} bytes, got shape {experts.shape}")
    if not np.issubdtype(experts.dtype, np.integer) or experts.min() < -1 or experts.max() > most:
        allowed = "whole numbers from -1" + (f" to {most}" if num_experts else "")
        raise ValueError(f"experts must be {allowed}, got {np.unique(experts).tolist()}")
    if weights is not None and np.shape(weights) != experts.shape:
        raise ValueError(f"weights must have the shape {experts.shape} of the experts, got {np.shape(weights)}")
    experts = experts.reshape(len(data), -1)
    weights = [None] * len(data) if weights is None else as_array(weights).reshape(experts.shape).tolist()
    says = [_say(chosen, own) for chosen, own in zip(experts.tolist(), weights)]
    lines = 1 + len(data) // 88 + data.count(b"\n")
    return replace(text_panel([(data, experts[:, 0])], (), title or TITLE, says), width=12, height=30 + 36 * lines)


def _say(experts: list[int], weights: list[float] | None) -> str:
    """The experts of a byte and their weights."""
    served = [(e, "" if weights is None else f" {weights[k]:.2f}") for k, e in enumerate(experts) if e >= 0]
    return ", ".join(f"E{expert}{weight}" for expert, weight in served) or "no expert"


def colored_trace(trace: pd.DataFrame, layer: int | None = None, title: str = "") -> Panel:
    """The same from a trace of one text, such as `analysis.trace_text` makes: who served it in a layer.

    layer: may be left out where the trace has only one.
    """
    trace, experts, weights = _one_text(trace)
    layers = trace["layer"].unique().tolist()
    if layer is None and len(layers) > 1:
        raise ValueError(f"layer must be one of {layers}, got None")
    layer = layers[0] if layer is None else check_choice("layer", layer, layers)
    chosen = (trace["layer"] == layer).to_numpy()
    data, num_experts = bytes(trace["byte"][chosen].tolist()), trace.attrs.get("num_experts")
    return colored_text(data, experts[chosen], weights[chosen], num_experts, title or f"{TITLE} in layer {layer}")


def _one_text(trace: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """A trace of one text by layer and position, with its experts and weights (rows, K); ValueError if it is none."""
    needed = {"position", "byte", "layer", "expert0", "weight0"}
    if not isinstance(trace, pd.DataFrame) or not needed <= set(trace):
        missing = sorted(needed - set(trace)) if isinstance(trace, pd.DataFrame) else type(trace).__name__
        raise ValueError(f"trace must be a DataFrame with the columns {sorted(needed)}, got {missing} missing")
    if trace.empty or trace.duplicated(["layer", "position"]).any():
        raise ValueError("trace must be of one text, got " + ("no token" if trace.empty else "several"))
    trace = trace.sort_values(["layer", "position"])
    ranks = range(sum(name.startswith("expert") for name in trace))
    return trace, *(trace[[f"{kind}{rank}" for rank in ranks]].to_numpy() for kind in ("expert", "weight"))


def token_path(trace: pd.DataFrame, position: int, neighbours: int = 3, ax: Axes | None = None, theme="light") -> Axes:
    """The way of one token through the layers: the experts of each, dots and lines as large as the weight.

    trace: of one text, such as `analysis.trace_text` makes. position: of the token's byte. Pale lines are the first
    choices of so many neighbours on each side. Above: where in the text it stands.
    """
    trace, experts, weights = _one_text(trace)
    neighbours = check_count("neighbours", neighbours)
    layers, places = (trace[name].unique().tolist() for name in ("layer", "position"))
    if position not in places:
        raise ValueError(f"position must be from {min(places)} to {max(places)}, got {position!r}")
    if len(trace) != len(layers) * len(places):
        raise ValueError("trace must have the same positions in each layer, got fewer in some")
    experts, weights = (x.reshape(len(layers), len(places), -1) for x in (experts, weights))  # (layers, T, K)
    num_experts = trace.attrs.get("num_experts", int(experts.max()) + 1)
    ax, ink = axes_for(ax, theme, 2.4 + 1.5 * len(layers), 1.5 + 0.27 * num_experts)
    at = places.index(position)
    _write_context(ax, ink, bytes(trace["byte"][trace["layer"] == layers[0]].tolist()), at, position)
    near = [i for i in range(at - neighbours, at + neighbours + 1) if 0 <= i < len(places) and i != at]
    pale = [[(x, e + 0.03 * (i - at)) for x, e in enumerate(experts[:, i, 0]) if e >= 0] for i in near]
    ax.add_collection(LineCollection(pale, colors=ink.muted, alpha=0.35, lw=1, zorder=1.6))
    chosen = [[(e, w) for e, w in zip(*pair) if e >= 0] for pair in zip(experts[:, at].tolist(), weights[:, at])]
    steps = [(x, a, b) for x, pair in enumerate(zip(chosen, chosen[1:])) for a in pair[0] for b in pair[1]]
    lines, widths = [[(x, a), (x + 1, b)] for x, (a, _), (b, _) in steps], [8 * v * w for _, (_, v), (_, w) in steps]
    ax.add_collection(LineCollection(lines, colors=ink.foreground, lw=widths, alpha=0.8, zorder=2))
    for x, (expert, weight) in ((x, pair) for x, pairs in enumerate(chosen) for pair in pairs):
        look = {"color": expert_color(expert), "ec": ink.foreground, "lw": 1, "hatch": expert_hatch(expert)}
        ax.scatter([x], [expert], s=40 + 260 * weight, zorder=3, **look)
        write(ax, f"{weight:.2f}", (x, expert), ink, (13, 0), halo=True, zorder=4)
    ax.set(xlim=(-0.4, len(layers) - 0.4), ylim=(num_experts - 0.4, -0.6))
    ax.set_xticks(range(len(layers)), [f"layer {layer}" for layer in layers])
    ax.set_yticks(*zip(*experts_axis(num_experts).ticks))
    ax.grid(axis="y", color=ink.grid, lw=0.5)
    return ax


def _write_context(ax: Axes, ink: Theme, data: bytes, at: int, position: int) -> None:
    """Over the axes a title and the text around byte `at`, its character marked."""
    signs = list(characters(data))
    mark = next(i for i, (_, start, size) in enumerate(signs) if start <= at < start + size)
    char, start, size = signs[mark]
    which = f"byte {at - start + 1} of " if size > 1 else ""
    title = f"Position {position}, {which}'{visible(char)}', on its way through the layers"
    ax.set_title(title, loc="left", fontsize=10, pad=28)
    first = max(0, mark - CONTEXT)
    around = [visible(char) for char, _, _ in signs[first : mark + CONTEXT + 1]]
    here = " " * (mark - first) + around[mark - first]
    around[mark - first] = " "
    for text, up, color in (("".join(around), 9, ink.muted), (here, 9, RED), (here[:-1] + "▔", -2.5, RED)):
        look = {"xycoords": "axes fraction", "va": "baseline", "family": FONT, "fontsize": 10}
        write(ax, text, (0, 1), ink, (0, up), color=color, **look)


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
    ax.set_xticks(range(len(text)), _signs(text), family=FONT, color=ink.foreground)
    ax.set_yticks(range(len(text)), _signs(text), family=FONT, color=ink.foreground)
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label("share of the attention", color=ink.foreground, fontsize=TEXT_SIZE)
    bar.ax.tick_params(labelsize=TEXT_SIZE, colors=ink.muted)
    return ax


def _signs(text: str) -> list[str]:
    return ["␣" if char == " " else visible(char) for char in text]
