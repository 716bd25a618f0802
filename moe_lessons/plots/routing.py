"""Which tokens the experts serve: by domain or class of byte, and one token on its way through the layers."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from moe_lessons.errors import check_count
from moe_lessons.plots.colored_text import characters, one_text
from moe_lessons.plots.samples import FONT, visible
from moe_lessons.plots.theme import LIGHT, Panel, Theme, axes_for, expert_color, expert_hatch, ink_on, shortened

LONGEST_NAME = 22  # characters that a row has room for
CONTEXT = 24  # characters of the text that are shown on each side of a token


class SharesMap(Panel):
    """A row for each group of tokens, a column for each expert: the share of the group's assignments that it gets.

    The numbers are percent. The line on the colour bar marks 1/E, where all experts serve the group alike. The row of
    squares below has the experts' colours.
    """

    title = "Who serves what, % of each row"

    def __init__(
        self, ax: Axes, theme: Theme = LIGHT, row_names: Sequence[str] = (), num_experts: int = 8, title: str = ""
    ):
        self.title = title or self.title
        super().__init__(ax, theme)
        row_names = [shortened(name, LONGEST_NAME) for name in row_names]
        if ax.figure.get_layout_engine() is None:
            _make_room(ax, 5.2 * max(map(len, row_names), default=0) - 30, 70)
        rows = len(row_names)
        look = {"vmin": 0, "vmax": min(1, 4 / num_experts), "aspect": "auto", "interpolation": "nearest"}
        shades = colormaps["cividis"].with_extremes(bad=theme.background)
        self.image = ax.imshow(np.zeros((rows, num_experts)), cmap=shades, **look)
        write = {"ha": "center", "va": "center", "fontsize": 7.5, "zorder": 3}
        has_room = ax.bbox.width / num_experts > 15 and ax.bbox.height / (rows + 0.4) > 10
        self.numbers = [[ax.text(e, r, "", **write) for e in range(num_experts * has_room)] for r in range(rows)]
        for expert in range(num_experts):  # their colours, in a thin row of their own
            look = {"fc": expert_color(expert), "hatch": expert_hatch(expert), "ec": theme.background, "lw": 1}
            ax.add_patch(Rectangle((expert - 0.5, rows - 0.42), 1, 0.34, **look))
        self.slow = [self.image, *(text for row in self.numbers for text in row), *ax.spines.values()]
        self.name_experts(ax.xaxis, num_experts)
        ax.set_yticks(range(rows), row_names, parse_math=False)
        ax.set_ylim(rows - 0.05, -0.5)
        self._draw_bar(num_experts)

    def _draw_bar(self, num_experts: int) -> None:
        top, even = self.image.norm.vmax, 1 / num_experts
        place = self.ax.inset_axes((1.02, 0, 0.025, 1))
        bar = self.ax.figure.colorbar(self.image, cax=place, extend="neither" if top == 1 else "max")
        bar.set_ticks([0, even, top], labels=["0 %", f"{100 * even:.3g} % even", f"{100 * top:.3g} %"])
        place.axhline(even, lw=1.6, color="white")
        place.axhline(even, lw=1.6, color="black", ls=(0, (2, 2)))
        place.tick_params(labelsize=7.5, colors=self.theme.muted, length=3)

    def update(self, values) -> None:
        """values (rows, E): shares, each row summing to 1; NaN where a group had no token."""
        values = np.asarray(values, dtype=float)
        if values.shape != self.image.get_array().shape:
            raise ValueError(f"values must have the shape {self.image.get_array().shape}, got {values.shape}")
        self.image.set_data(np.ma.masked_invalid(values))
        colors = self.image.cmap(self.image.norm(values))
        for row, texts in enumerate(self.numbers):
            for expert, text in enumerate(texts):
                share = values[row, expert]
                text.set_text("" if np.isnan(share) else f"{100 * share:.0f}")
                text.set_color(ink_on(to_hex(colors[row, expert])))


def _make_room(ax: Axes, left: float, right: float) -> None:
    """Make axes of a fixed place narrower, by so many pixels on each side."""
    box, pixels = ax.get_position(), ax.figure.bbox.width
    left, right = max(left, 0) / pixels, right / pixels
    width = box.width - left - right
    ax.set_position((box.x0 + left, box.y0, width, box.height))
    ax.set_title(
        ax.get_title(loc="left"), loc="left", fontsize=10, pad=5, x=-left / width
    )  # the title stays where it was


def expert_shares_heatmap(shares: pd.DataFrame, title: str = "", ax: Axes | None = None, theme: str = "light") -> Axes:
    """Draw the shares of `analysis.expert_shares`: a row for each group, a column for each expert. See `SharesMap`."""
    if not isinstance(shares, pd.DataFrame) or shares.empty:
        got = f"shape {shares.shape}" if isinstance(shares, pd.DataFrame) else type(shares).__name__
        raise ValueError(f"shares must be a DataFrame with a row for each group of tokens, got {got}")
    values = shares.to_numpy(dtype=float)
    sums = values.sum(axis=1)
    if (values < 0).any() or not np.allclose(sums[~np.isnan(sums)], 1, atol=1e-4):
        raise ValueError(f"shares must be at least 0 and sum to 1 in each row, got the sums {sums.round(3).tolist()}")
    rows, num_experts = values.shape
    names = [f"layer {name}" if shares.index.name == "layer" else str(name) for name in shares.index]
    ax, colors = axes_for(ax, theme, min(max(3.6, 2.2 + 0.5 * num_experts), 10), 0.9 + 0.26 * rows)
    SharesMap(ax, colors, names, num_experts, title).update(values)
    return ax


def token_path(
    trace: pd.DataFrame, position: int, neighbours: int = 3, ax: Axes | None = None, theme: str = "light"
) -> Axes:
    """The way of one token through the layers: the experts of each, dots and lines as large as the weight.

    trace: of one text, such as `analysis.trace_text` makes. position: of the token's byte. Pale lines are the first
    choices of so many neighbours on each side. Above: where in the text it stands.
    """
    trace, experts, weights = one_text(trace)
    neighbours = check_count("neighbours", neighbours)
    layers, places = (trace[name].unique().tolist() for name in ("layer", "position"))
    if position not in places:
        raise ValueError(f"position must be from {min(places)} to {max(places)}, got {position!r}")
    if len(trace) != len(layers) * len(places):
        raise ValueError("trace must have the same positions in each layer, got fewer in some")
    experts, weights = (x.reshape(len(layers), len(places), -1) for x in (experts, weights))  # (layers, T, K)
    num_experts = trace.attrs.get("num_experts", int(experts.max()) + 1)
    ax, colors = axes_for(ax, theme, 2.4 + 1.5 * len(layers), 1.5 + 0.27 * num_experts)
    Panel(ax, colors)
    at = places.index(position)
    _write_context(ax, colors, bytes(trace["byte"][trace["layer"] == layers[0]].tolist()), at, position)
    near = [i for i in range(at - neighbours, at + neighbours + 1) if 0 <= i < len(places) and i != at]
    pale = [[(x, e + 0.03 * (i - at)) for x, e in enumerate(experts[:, i, 0]) if e >= 0] for i in near]
    ax.add_collection(LineCollection(pale, colors=colors.muted, alpha=0.35, lw=1, zorder=1.6, label="neighbours"))
    segments, widths = [], []
    for x in range(len(layers) - 1):
        for a, weight in zip(experts[x, at], weights[x, at]):
            for b, next_weight in zip(experts[x + 1, at], weights[x + 1, at]):
                if a >= 0 and b >= 0:
                    segments.append([(x, a), (x + 1, b)])
                    widths.append(8 * weight * next_weight)
    ax.add_collection(LineCollection(segments, colors=colors.foreground, lw=widths, alpha=0.8, zorder=2))
    for x in range(len(layers)):
        for expert, weight in zip(experts[x, at], weights[x, at]):
            if expert >= 0:
                look = {"color": expert_color(expert), "ec": colors.foreground, "lw": 1, "hatch": expert_hatch(expert)}
                ax.scatter([x], [expert], s=40 + 260 * weight, zorder=3, **look)
                name = ax.annotate(f"{weight:.2f}", (x, expert), (13, 0), textcoords="offset points", va="center")
                name.set(color=colors.foreground, fontsize=8.5, zorder=4)
                name.set_path_effects([withStroke(linewidth=3, foreground=colors.background)])
    ax.set(xlim=(-0.4, len(layers) - 0.4), ylim=(num_experts - 0.4, -0.6))
    ax.set_xticks(range(len(layers)), [f"layer {layer}" for layer in layers])
    Panel.name_experts(None, ax.yaxis, num_experts)
    ax.grid(axis="y", color=colors.grid, lw=0.5)
    return ax


def _write_context(ax: Axes, colors: Theme, data: bytes, at: int, position: int) -> None:
    """Over the axes a title and the text around byte `at`, its character marked."""
    signs = list(characters(data))
    mark = next(i for i, (_, start, size) in enumerate(signs) if start <= at < start + size)
    char, start, size = signs[mark]
    byte = f"byte {at - start + 1} of " if size > 1 else ""
    title = f"Position {position}, {byte}'{visible(char)}', on its way through the layers"
    ax.set_title(title, loc="left", fontsize=10, color=colors.foreground, pad=28)
    first = max(0, mark - CONTEXT)
    around = [visible(char) for char, _, _ in signs[first : mark + CONTEXT + 1]]
    look = {"xycoords": "axes fraction", "textcoords": "offset points", "family": FONT, "fontsize": 10}
    rest, here = (
        "".join(sign if (i == mark - first) is marked else " " for i, sign in enumerate(around))
        for marked in (False, True)
    )
    ax.annotate(rest, (0, 1), (0, 9), color=colors.muted, parse_math=False, **look)
    ax.annotate(here, (0, 1), (0, 9), color=colors.lines[1], parse_math=False, weight="bold", **look)
    ax.annotate(" " * (mark - first) + "▔", (0, 1), (0, -2.5), color=colors.lines[1], weight="bold", **look)
