"""Text in the colours of the experts that served it."""

import functools
import html
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from torch import Tensor

from moe_lessons.errors import check_choice, check_positive_int
from moe_lessons.plots.samples import FONT, visible
from moe_lessons.plots.theme import HATCHES, LIGHT, PALETTE, Panel, Theme, axes_for, expert_color, ink_on, static_mode

BOX, LINE = 2.65, 3.0  # heights of a box and of a line of text, in widths of a character
REST = 0.5  # the width of each further byte of a character
CHIP, LEGEND_ROW = 4, 1.9  # the width of an entry of the legend, with the gap after it, and the height of a row
EM = 1.6  # the size of the font, in widths of a character
SIGN, NUMBER = 1.38, 2.47  # where letters and the numbers under them stand, from the top of a line

EMPTY = Path(np.zeros((0, 2)))

# the hatching of experts 8 to 15, 16 to 23 and 24 to 31 as lines in a box of 1 × 1; a dot is a short line
RISING = (((0, 0.45), (0.45, 0)), ((0, 0.95), (0.95, 0)), ((0.5, 1), (1, 0.5)))
DOTS = tuple(((x - 0.06, y), (x + 0.06, y)) for x in (0.25, 0.75) for y in (0.12, 0.37, 0.62, 0.87))
FALLING = tuple(((1 - x0, y0), (1 - x1, y1)) for (x0, y0), (x1, y1) in RISING)
STRIPES = ((), RISING, DOTS, RISING + FALLING)


def characters(data: bytes) -> Iterator[tuple[str, int, int]]:
    """Each character of UTF-8 with the place of its first byte and how many it has. What is none, such as half a
    Greek letter, comes byte by byte as '�'.

    >>> list(characters("aα".encode() + b"\\xce"))
    [('a', 0, 1), ('α', 1, 2), ('�', 3, 1)]
    """
    start = 0
    while start < len(data):
        char, size = "�", 1
        for length in (1, 2, 3, 4):
            try:
                char, size = data[start : start + length].decode(), length
                break
            except UnicodeDecodeError:
                pass
        yield char, start, size
        start += size


def stripe_on(color: str) -> str:
    """The colour of stripes on `color`: further from the ink of text on it, so that text stays as readable."""
    away = 1.0 if ink_on(color) == "#000000" else 0.0
    return to_hex([0.65 * part + 0.35 * away for part in to_rgb(color)])


class ColoredTextPanel(Panel):
    """Each character in a box of the colour of the expert that served it first, with the expert's number under it.

    A character of several bytes, such as a Greek letter, is a box for its first byte and a narrow one for each other.
    What no expert served has no box. At most `lines` lines of `width` characters are shown, and a legend.
    """

    title = "Text, coloured by the first choice"

    def __init__(
        self,
        ax: Axes,
        theme: Theme = LIGHT,
        num_experts: int = 8,
        width: int = 48,
        lines: int = 5,
        title: str = "",
    ):
        self.title = title or self.title
        super().__init__(ax, theme)
        self.num_experts, self.width, self.lines = num_experts, width, lines
        chips = []
        for expert in range(num_experts):
            row, place = divmod(expert, max(width // CHIP, 1))
            left, top = CHIP * place, lines * LINE + 0.5 + LEGEND_ROW * row
            chips.append((left, top, CHIP - 0.4, LEGEND_ROW - 0.25, expert))
            look = {"ha": "center", "va": "center", "fontsize": 7.5, "color": ink_on(expert_color(expert))}
            ax.text(left + CHIP / 2 - 0.2, top + LEGEND_ROW / 2 - 0.1, f"E{expert}", **look)
        self._draw_boxes(*self._make_boxes(), chips)
        ax.set(xlim=(0, width), ylim=(self.height(num_experts, width, lines), 0))
        ax.set_aspect("equal", anchor="NW")
        ax.set_axis_off()
        self.boxes, self.stripes = self._make_boxes()
        colors = {"#000000": "#000000", "#ffffff": "#ffffff", "": theme.foreground}
        self.inks = {ink: PathPatch(EMPTY, lw=0, fc=color, zorder=3) for ink, color in colors.items()}
        for patch in self.inks.values():
            ax.add_artist(patch)
        self.slow = [self.boxes, self.stripes, *self.inks.values()]

    @staticmethod
    def height(num_experts: int, width: int, lines: int) -> float:
        """The height of the whole picture, in widths of a character."""
        return lines * LINE + 0.5 + LEGEND_ROW * -(-num_experts // max(width // CHIP, 1))

    def _make_boxes(self) -> tuple[PolyCollection, LineCollection]:
        boxes = PolyCollection([], lw=0, zorder=2)
        stripes = LineCollection([], lw=0.6, capstyle="round", zorder=2.1)
        for artist in (boxes, stripes):
            self.ax.add_collection(artist, autolim=False)
        return boxes, stripes

    def _draw_boxes(self, boxes: PolyCollection, stripes: LineCollection, placed: Sequence[tuple]) -> None:
        """Draw boxes, each given by its left, top, width, height and expert."""
        corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h, _ in placed]
        boxes.set(verts=corners, facecolors=[expert_color(expert) for *_, expert in placed])
        segments, colors = [], []
        for x, y, w, h, expert in placed:
            lines = STRIPES[expert // len(PALETTE) % len(HATCHES)]
            segments += [[(x + w * u, y + h * v) for u, v in line] for line in lines]
            colors += [stripe_on(expert_color(expert))] * len(lines)
        stripes.set(segments=segments, colors=colors)

    def update(self, text: str | bytes, experts) -> None:
        """experts (N,) or (N, K): the expert of each byte of the text, the first choice first; -1 where there is
        none."""
        data, experts, _ = check_text(text, experts, None, self.num_experts)
        boxes, glyphs = [], {ink: [] for ink in self.inks}
        for char, start, size, x, line in wrap(data, self.width):
            if line >= self.lines:
                break
            for i in range(size):
                expert, top = experts[start + i, 0], line * LINE
                left, wide = (x, 1) if i == 0 else (x + 1 + (i - 1) * REST, REST)
                ink = ink_on(expert_color(expert)) if expert >= 0 else ""
                if expert >= 0:
                    boxes.append((left, top, wide - 0.06, BOX, expert))
                    scale = min(0.95, 1.5 * wide / len(str(expert)))
                    glyphs[ink].append(glyph(str(expert), scale, left + wide / 2, top + NUMBER))
                if i == 0 and char != " ":
                    glyphs[ink].append(glyph(visible(char), EM, left + 0.5, top + SIGN))
        self._draw_boxes(self.boxes, self.stripes, boxes)
        for ink, patch in self.inks.items():
            patch.set_path(Path.make_compound_path(*glyphs[ink]) if glyphs[ink] else EMPTY)


def wrap(data: bytes, width: int) -> Iterator[tuple[str, int, int, float, int]]:
    """Each of the `characters` with the place where it stands: x and the number of its line. A line break is drawn
    too, and ends its line."""
    x, line = 0.0, 0
    for char, start, size in characters(data):
        wide = 1 + (size - 1) * REST
        if x + wide > width:
            x, line = 0.0, line + 1
        yield char, start, size, x, line
        x, line = (0.0, line + 1) if char == "\n" else (x + wide, line)


@functools.cache
def _outline(text: str) -> Path:
    """The outline of a word in the font of a typewriter, in units of its size."""
    return TextPath((0, 0), text, size=1, prop=FontProperties(family=FONT))


def glyph(text: str, size: float, x: float, baseline: float) -> Path:
    """Letters centred at x over a baseline, in axes whose y points down."""
    path = _outline(text)
    half = 0.301 * len(text) * size  # a letter of this font is 0.602 of its size wide
    return Path(path.vertices * (size, -size) + (x - half, baseline), path.codes)


def check_text(text, experts, weights, num_experts: int | None) -> tuple[bytes, np.ndarray, np.ndarray | None]:
    """The bytes (N,), the experts (N, K) and the weights (N, K) or None; ValueError where they do not fit."""
    if not isinstance(text, str | bytes) or not text:
        raise ValueError(f"text must be a str or bytes with at least one character, got {text!r}")
    data, experts = text.encode() if isinstance(text, str) else text, as_array(experts)
    if experts.ndim not in (1, 2) or len(experts) != len(data) or experts.size == 0:
        raise ValueError(f"experts must have one row for each of the {len(data)} bytes, got shape {experts.shape}")
    if not np.issubdtype(experts.dtype, np.integer) or experts.min() < -1 or experts.max() >= (num_experts or np.inf):
        allowed = f"whole numbers from -1 to {num_experts - 1}" if num_experts else "whole numbers from -1"
        raise ValueError(f"experts must be {allowed}, got {np.unique(experts).tolist()}")
    if weights is not None:
        weights = as_array(weights).astype(float)
        if weights.shape != experts.shape:
            raise ValueError(f"weights must have the shape {experts.shape} of the experts, got {weights.shape}")
        weights = weights.reshape(len(data), -1)
    return data, experts.reshape(len(data), -1), weights


def as_array(values) -> np.ndarray:
    """The numbers as an array of numpy, also those of a tensor with a gradient or on a GPU."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


class ColoredText:
    """Text in the colours of the experts that served it: HTML in JupyterLab, a picture on a static page.

    See `colored_text`.
    """

    def __init__(self, text, experts, weights=None, num_experts: int | None = None, title: str = ""):
        if num_experts is not None:
            check_positive_int("num_experts", num_experts)
        self.data, self.experts, self.weights = check_text(text, experts, weights, num_experts)
        self.num_experts = num_experts or max(int(self.experts.max()) + 1, 1)
        self.title = title or ColoredTextPanel.title

    def draw(self, width: int = 88, ax: Axes | None = None, theme: str = "light") -> Axes:
        """As a picture, `width` characters wide. See `ColoredTextPanel`."""
        lines = 1 + max(line for *_, line in wrap(self.data, check_positive_int("width", width)))
        high = ColoredTextPanel.height(self.num_experts, width, lines)
        ax, colors = axes_for(ax, theme, 0.09 * width + 0.1, 0.09 * high + 0.35)
        ColoredTextPanel(ax, colors, self.num_experts, width, lines, self.title).update(self.data, self.experts)
        return ax

    def to_html(self) -> str:
        """As HTML: a span for each byte, with the experts and their weights as its tooltip."""
        spans = []
        for char, start, size in characters(self.data):
            rest = [f"byte {i + 1}: {self._say(start + i)}" for i in range(1, size)]
            sign = {"\n": "↵"}.get(char, char if char.isprintable() else "·")
            spans.append(self._span(sign, start, "; ".join([self._say(start), *rest])))
            spans += [self._span("", start + i, tip) for i, tip in enumerate(rest, 1)]
            spans += ["\n"] * (char == "\n")
        chips = (f'<span class="e{e}">E{e}</span>' for e in range(self.num_experts))
        return (
            f'{_style(self.num_experts)}<div class="moe-text"><div class="moe-name">{html.escape(self.title)}</div>'
            f'<div class="moe-bytes">{"".join(spans)}</div><div class="moe-legend">{" ".join(chips)}</div></div>'
        )

    def _say(self, i: int) -> str:
        """The experts of byte i and their weights."""
        served = [(e, k) for k, e in enumerate(self.experts[i].tolist()) if e >= 0]
        weight = ["" if self.weights is None else f" {self.weights[i, k]:.2f}" for _, k in served]
        return ", ".join(f"E{e}{w}" for (e, _), w in zip(served, weight)) or "no expert"

    def _span(self, sign: str, i: int, tip: str) -> str:
        expert = int(self.experts[i, 0])
        look = f' class="e{expert}{"" if sign else " rest"}" data-e="{expert}"' if expert >= 0 else ""
        return f'<span{look} title="{tip}">{html.escape(sign)}</span>'

    def __repr__(self) -> str:
        return f"Figure: {self.title}"

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict[str, Any], dict[str, Any]]:
        if not static_mode():
            return {"text/html": self.to_html(), "text/plain": repr(self)}, {}
        return self.draw().figure._repr_mimebundle_()


def _style(num_experts: int) -> str:
    """The style sheet of text in the colours of E experts. Every letter has its own background, so that it reads the
    same on a light and on a dark page."""
    rules = []
    for expert in range(num_experts):
        color = expert_color(expert)
        stripe, level = stripe_on(color), expert // len(PALETTE) % len(HATCHES)
        lines = f"repeating-linear-gradient({{}}deg, {stripe} 0 1px, transparent 1px 5px)"
        dots = f"radial-gradient({stripe} 1px, transparent 1.2px) 0 0/5px 5px"
        images = ((), (lines.format(-45),), (dots,), (lines.format(-45), lines.format(45)))[level]
        rules.append(f".moe-text .e{expert} {{ background: {', '.join([*images, color])}; color: {ink_on(color)}; }}")
    return f"""<style>
.moe-text {{ font-family: var(--jp-code-font-family, monospace); font-size: 14px; }}
.moe-text .moe-name {{ font-family: var(--jp-ui-font-family, sans-serif); font-size: 13px; margin-bottom: 4px; }}
.moe-text .moe-bytes {{ white-space: pre-wrap; overflow-wrap: anywhere; line-height: 31px; max-width: 88ch; }}
.moe-text .moe-bytes span {{ position: relative; padding: 2px 0 9px; border-right: 1px solid transparent;
  background-clip: padding-box; }}
.moe-text .moe-bytes span.rest {{ padding-left: 0.55ch; }}
.moe-text .moe-bytes span[data-e]::after {{ content: attr(data-e); position: absolute; left: 0; right: 0; bottom: 1px;
  text-align: center; font-size: 7px; line-height: 8px; }}
.moe-text .moe-legend {{ margin-top: 5px; font-size: 12px; line-height: 24px; }}
.moe-text .moe-legend span {{ padding: 2px 6px; border-radius: 3px; }}
{chr(10).join(rules)}
</style>"""


def colored_text(text, experts, weights=None, num_experts: int | None = None, title: str = "") -> ColoredText:
    """Text in the colours of the experts, to look at in a notebook; point at a character to read its experts.

    text: str, or bytes where a character may be cut in two. experts (N,) or (N, K): the experts of each byte, the
    first choice first, -1 where there is none. weights: theirs, in the same shape. num_experts: E; without it, as
    many as occur.

    >>> colored_text("αβ", [0, 2, 1, 2], title="Two letters of two bytes")
    Figure: Two letters of two bytes
    """
    return ColoredText(text, experts, weights, num_experts, title)


def colored_trace(trace: pd.DataFrame, layer: int | None = None, title: str = "") -> ColoredText:
    """The same from a trace of one text, such as `analysis.trace_text` makes: who served it in a layer.

    layer: may be left out where the trace has only one.
    """
    trace, experts, weights = one_text(trace)
    layers = trace["layer"].unique().tolist()
    if layer is None and len(layers) > 1:
        raise ValueError(f"layer must be one of {layers}, got None")
    layer = layers[0] if layer is None else check_choice("layer", layer, layers)
    chosen = (trace["layer"] == layer).to_numpy()
    data, num_experts = bytes(trace["byte"][chosen].tolist()), trace.attrs.get("num_experts")
    title = title or f"{ColoredTextPanel.title} in layer {layer}"
    return ColoredText(data, experts[chosen], weights[chosen], num_experts, title)


def one_text(trace: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
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
