"""Panels as a matplotlib figure: for code hosts, exported pages and print, where nothing runs."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, singledispatch
from itertools import repeat

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from moe_lessons.errors import check_choice
from moe_lessons.plots import marks
from moe_lessons.plots import theme as style
from moe_lessons.plots.marks import Axis, Cells, Field, Line, Panel, Parts, Table, Text
from moe_lessons.plots.theme import LIGHT, TEXT_SIZE, LessonFigure, Theme, expert_color, expert_hatch, ink_on, write

FONT = "monospace"
# as in the page, by ink; in widths of the line
DASHES = ("-", (0, (4, 2.4)), (0, (1, 2)), (0, (5.3, 1.8, 1.2, 1.8)), (0, (2.4, 1.2)), (0, (8, 2.4)))
RULES = {"dash": ("--", 1.2, 1), "even": ((0, (2, 3)), 0.8, 0.75), "limit": ("-", 1.6, 1), "mark": ("-", 0.9, 0.6)}
DIRECTIONS = {"light": ("#5e3c99", "#b35806"), "dark": ("#b2abd2", "#fdb863")}  # below and above an even share
FINE = 384  # pixels of a Field, in each direction
TITLE, BOX, NAME, GAP = 24, 27, 19, 7  # pixels: heights of titles, letters' boxes and names; free after a passage


def plot(panel: Panel, ax: Axes | None, theme: str, width: float = 6.4, height: float = 2.8) -> Axes:
    """One panel in given axes, or in those of a new figure of this size in inches, which is as high as a text needs.
    theme: 'light' or 'dark'."""
    if ax is None and isinstance(panel.marks[0], Text):
        colors = style.THEMES[check_choice("theme", theme, style.THEMES)]
        return figure([replace(panel, width=12)], colors, round(100 * width)).axes[0]
    ax, colors = style.axes_for(ax, theme, width, height)
    return draw(panel, ax, colors)


def figure(panels: Sequence[Panel], theme: Theme = LIGHT, width: int = 980, caption: str = "") -> LessonFigure:
    """All panels, in rows of 12 columns, and lines of text under them. width: in pixels."""
    made, places, column, top, lowest = LessonFigure(width / 100, 10, theme), [], 0, 4.0, 4.0  # pixels from above
    made.set_layout_engine("none")
    for panel in panels:
        if column + panel.width > 12:
            column, top = 0, lowest
        left, wide, high = 10 + column * width / 12, panel.width * width / 12 - 20, panel.height
        if isinstance(panel.marks[0], Text):
            high = _lay_out(panel.marks[0], wide)[2]
        ax = made.add_axes((0, 0, wide / width, high / 1000))
        for _ in range(1 if _is_words(panel) else 2):  # once to see what ticks, title and legend take
            ax.clear()
            inner, outer = draw(panel, ax, theme).bbox, ax.get_tightbbox(for_layout_only=True)
            before, after, over = inner.x0 - outer.x0, outer.x1 - inner.x1, outer.y1 - inner.y1
            tall = high if _is_words(panel) else high + TITLE - over - _foot(panel)
            ax.set_position((0, 0, (wide - before - after) / width, tall / 1000))
        ax._left_title.set_x(-before / ax.bbox.width)
        places.append((ax, left + before, top + over, ax.bbox.width, tall))
        lowest = max(lowest, top + over + tall + inner.y0 - outer.y0 + 14)
        column += panel.width
    lines = textwrap.wrap(caption, int(width / 7.2))
    high = lowest + 17 * len(lines)
    made.set_size_inches(width / 100, high / 100)
    for ax, left, top, wide, tall in places:
        ax.set_position((left / width, 1 - (top + tall) / high, wide / width, tall / high))
    made.text(10 / width, 6 / high, "\n".join(lines), fontsize=TEXT_SIZE, color=theme.foreground, linespacing=1.3)
    return made


def _is_words(panel: Panel) -> bool:
    return isinstance(panel.marks[0], Text | Table)


def _foot(panel: Panel) -> int:
    """Pixels under the axes of a panel: its ticks and its label."""
    return 6 + 16 * (panel.x.ticks != ()) + 17 * bool(panel.x.label)


def draw(panel: Panel, ax: Axes, theme: Theme = LIGHT) -> Axes:
    """One panel in an axes."""
    x, y = panel.x, panel.y
    style.dress(ax, theme, panel.title, x.label, y.label)
    if _is_words(panel):
        ax.set_axis_off()
        if ax.figure.get_layout_engine():
            ax.figure.draw_without_rendering()  # settles how much room there is
        width, height = (size * 100 / ax.figure.dpi for size in (ax.bbox.width, ax.bbox.height))
        x, y = Axis(0, width, ticks=()), Axis(height, 0, ticks=())  # pixels
    elif isinstance(panel.marks[0], Parts):
        rows = panel.marks[0].rows
        y = Axis(len(rows) - 0.5, -0.5, ticks=list(enumerate(rows)))
    is_filled = any(isinstance(mark, Field | Cells | marks.Stack) for mark in panel.marks)
    ax.set(xlim=(x.low, x.high), ylim=(y.low, y.high), autoscale_on=False, axisbelow=True)
    for mark in panel.marks:
        _draw(mark, ax, theme, panel)
    for axis, said in ((ax.xaxis, x), (ax.yaxis, y)):
        if said.ticks is not None:
            axis.set_ticks([value for value, _ in said.ticks], [text for _, text in said.ticks], parse_math=False)
        else:
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if v < 1e5 else style.short_number(v)))
            axis.grid(color=theme.grid, lw=0 if is_filled else 0.5)
    for ink, text in panel.legend:
        ax.plot([], [], label=text, **_line_look(ink, True, theme))
    style.name_over(ax, theme)
    if panel.caption:
        place = {"xycoords": "axes fraction", "by": (0, -0.72 * _foot(panel)), "va": "top"}
        write(ax, panel.caption, (0, 0), theme, **place, linespacing=1.3)
    if panel.selected:
        ax.spines[:].set(visible=True, color=style.RED, linewidth=2, zorder=4)
    elif is_filled:
        ax.spines[:].set_visible(False)
    return ax


def _line_look(ink: int, strong: bool, theme: Theme) -> dict:
    if ink < 0:
        return {"color": theme.muted, "alpha": 0.45, "lw": 3.5}
    return {"color": theme.lines[ink % 6], "ls": DASHES[ink % 6], "lw": 2 if strong else 1.2}


# --- marks -----------------------------------------------------------------------------------------------------------


@singledispatch
def _draw(mark, ax: Axes, theme: Theme, panel: Panel) -> None:
    raise TypeError(f"mark must be one of {', '.join(kind.__name__ for kind in marks.MARKS)}, got {mark!r}")


@_draw.register
def _(mark: Field, ax, theme, panel):
    z = np.asarray(mark.z, dtype="f4")
    for axis in (0, 1):  # bilinear
        at = np.linspace(0, z.shape[axis] - 1, max(FINE, z.shape[axis]))
        low = at.astype(int).clip(0, z.shape[axis] - 2)
        part = (at - low).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1]).astype("f4")
        z = z.take(low, axis) * (1 - part) + z.take(low + 1, axis) * part
    whose, ends = z.argmax(axis=-1), (*ax.get_xlim(), *ax.get_ylim())
    image = style.expert_image(whose)
    ax.imshow(image, extent=ends, origin="lower", aspect="auto", interpolation="nearest", zorder=0.5)
    whose = whose[2::6, 2::6]  # places for the numbers: in the middle of each territory, and on no point
    x, y = np.meshgrid(np.linspace(*ends[:2], whose.shape[1]), np.linspace(*ends[2:], whose.shape[0]))
    is_free = np.ones(whose.shape, bool)
    for points in (mark for mark in panel.marks if isinstance(mark, marks.Points)):
        for px, py in zip(points.x, points.y):
            is_free &= (x - px) ** 2 + (y - py) ** 2 > 0.012
    for expert in np.unique(whose):
        inside = whose == expert
        away = (x - x[inside].mean()) ** 2 + (y - y[inside].mean()) ** 2  # a territory may be bent
        at = np.where(inside & is_free if (inside & is_free).any() else inside, away, np.inf).argmin()
        look = {"fontsize": 10, "weight": "bold", "color": "black", "ha": "center", "zorder": 2}
        write(ax, str(expert), (x.flat[at], y.flat[at]), LIGHT, halo=True, **look)


@_draw.register
def _(mark: Cells, ax, theme, panel):
    z = np.asarray(mark.z, dtype="f4")  # (rows, E)
    rows, experts = z.shape
    own = [expert_color(expert) for expert in range(experts)]
    if mark.even is None:
        ground = 0.93 * np.array(to_rgb(theme.background)) + 0.07 * np.array(to_rgb(theme.foreground))
        colors = ground + (np.array([*map(to_rgb, own)]) - ground) * np.sqrt(z.clip(0, 1))[..., None]
    else:
        colors = _two_ways(z, mark, theme)
        _color_bar(mark, ax, theme)
        down = ax.get_xaxis_transform() + ScaledTranslation(0, -3 / 72, ax.figure.dpi_scale_trans)
        strip = [[(expert - 0.46, 0), (expert + 0.46, 0)] for expert in range(experts)]  # the experts' colours
        ax.add_collection(LineCollection(strip, colors=own, lw=3.5, transform=down, clip_on=False, capstyle="butt"))
        ax.tick_params(axis="x", pad=7)
    colors[np.isnan(z)] = to_rgb(theme.background)
    ax.imshow(colors, aspect="auto", interpolation="nearest", zorder=0.5)
    gaps = {"color": theme.background if mark.even is None else theme.grid, "lw": 1, "zorder": 0.6, "clip_on": False}
    ax.vlines(np.arange(experts + 1) - 0.5, -0.5, rows - 0.5, **gaps)
    ax.hlines(np.arange(rows + 1) - 0.5, -0.5, experts - 0.5, **gaps)
    if mark.numbers and ax.bbox.width / experts > 18 and ax.bbox.height / rows > 12:
        for (row, expert), share in np.ndenumerate(z):
            text, color = "" if np.isnan(share) else f"{100 * share:.0f}", ink_on(to_hex(colors[row, expert]))
            write(ax, text, (expert, row), theme, color=color, ha="center")
    if mark.selected is not None:
        frame = Rectangle((-0.5, mark.selected - 0.5), experts, 1, fill=False, lw=1.8, ec=style.RED, clip_on=False)
        ax.add_patch(frame).set_zorder(3)


def _two_ways(z: np.ndarray, mark: Cells, theme: Theme) -> np.ndarray:
    """Colours (…, 3): the further a value is from `even`, the stronger."""
    low, high = (np.array(to_rgb(color)) for color in DIRECTIONS[theme.name])
    is_low, paper = (z < mark.even)[..., None], np.array(to_rgb(theme.background))
    part = np.abs(z - mark.even)[..., None] / np.where(is_low, mark.even, mark.most - mark.even or 1)
    return paper + (np.where(is_low, low, high) - paper) * part.clip(0, 1)


def _color_bar(mark: Cells, ax: Axes, theme: Theme) -> None:
    bar, ends = ax.inset_axes((1.03, 0, 0.03, 1)), (0, mark.even, mark.most)
    shades = _two_ways(np.linspace(0, mark.most, 64)[:, None], mark, theme)
    bar.imshow(shades, aspect="auto", origin="lower", extent=(0, 1, 0, mark.most))
    said = [f"{100 * end:.3g} %" if mark.numbers else f"{end:g} ×" for end in ends]
    bar.set_yticks(ends[: len({*ends})], [said[0], f"{said[1]}\neven", said[2]][: len({*ends})])
    bar.tick_params(left=False, labelleft=False, labelright=True, right=True, length=2, color=theme.grid)
    bar.tick_params(labelsize=TEXT_SIZE, labelcolor=theme.muted, bottom=False, labelbottom=False)
    bar.spines[:].set_color(theme.grid)


@_draw.register
def _(mark: marks.Bars, ax, theme, panel):
    y, places = np.asarray(mark.y, dtype=float), np.arange(len(mark.y))
    inks, hatches = [theme.lines[i % 6] for i in places], ""
    if mark.of == "expert":
        inks, hatches = [expert_color(e) for e in places], [expert_hatch(e) for e in places]
    served = y if mark.limit is None else y.clip(max=mark.limit)
    ax.bar(places, served, 0.76, color=inks, edgecolor=theme.background, hatch=hatches, lw=0)
    if mark.limit is not None:
        ax.bar(places, y - served, 0.76, bottom=served, color=inks, alpha=0.35, lw=0)
    if mark.second is not None:
        ticks = np.asarray(mark.second, dtype=float), places - 0.42, places + 0.42
        ax.hlines(*ticks, color=theme.background, lw=4, zorder=2.5)
        ax.hlines(*ticks, color=theme.foreground, lw=2.2, zorder=2.5, label=mark.second_name)
    for i, text in enumerate(mark.texts):
        write(ax, text, (i, y[i]), theme, (0, 7), ha="center")


@_draw.register
def _(mark: marks.Stack, ax, theme, panel):
    x, y = np.asarray(mark.x, dtype=float), np.asarray(mark.y, dtype=float)
    if len(x):  # the first shares count from the beginning of their step
        x, y = np.concatenate([[min(ax.get_xlim()[0], x[0])], x]), np.concatenate([y[:1], y])
        for expert, band in enumerate(ax.stackplot(x, y.T, colors=[expert_color(e) for e in range(y.shape[1])])):
            band.set(hatch=expert_hatch(expert), edgecolor=theme.background, linewidth=0.4)
    if mark.second is not None:
        second = np.asarray(mark.second, dtype=float)
        for expert, top in enumerate(np.cumsum(second)):
            look = {"fc": expert_color(expert), "hatch": expert_hatch(expert), "ec": theme.background, "lw": 0}
            place = (1.015, top - second[expert]), 0.045, second[expert]
            ax.add_patch(Rectangle(*place, transform=ax.get_yaxis_transform(), clip_on=False, **look))


@_draw.register
def _(mark: Line, ax, theme, panel):
    ax.plot(mark.x, np.asarray(mark.y, "f8"), label=mark.name or None, **_line_look(mark.ink, mark.strong, theme))


@_draw.register
def _(mark: marks.Band, ax, theme, panel):
    ends = (np.asarray(end, dtype=float) for end in (mark.low, mark.high))
    ax.fill_between(mark.x, *ends, color=theme.muted if mark.ink < 0 else theme.lines[mark.ink % 6], alpha=0.2, lw=0)


@_draw.register
def _(mark: marks.Points, ax, theme, panel):
    x, y = np.asarray(mark.x), np.asarray(mark.y)
    look = np.zeros(len(x)) if mark.look is None else np.asarray(mark.look)
    light = {"marker": "o", "ms": 4.5 if mark.tokens else 3.4, "color": "white", "mec": "black", "mew": 0.7}
    dark, red = light | {"marker": "X", "ms": 6, "color": "black", "mec": "white"}, {"marker": "x", "ms": 6, "mew": 1.8}
    for kind, points in enumerate((light, dark, red | {"color": style.RED})):
        ax.plot(x[look == kind], y[look == kind], ls="", zorder=2.5, **points)
    if mark.selected is not None:
        ring = {"marker": "o", "ms": 12, "mfc": "none", "mec": style.RED, "mew": 2.2, "clip_on": False}
        ax.plot(x[mark.selected], y[mark.selected], zorder=2.6, **ring)


@_draw.register
def _(mark: marks.Spots, ax, theme, panel):
    colors, is_selected = [theme.lines[ink % 6] for ink in mark.ink], np.arange(len(mark.x)) == mark.selected
    ax.hlines(mark.y, mark.x_low, mark.x_high, colors=colors, lw=np.where(is_selected, 2, 1))
    ax.vlines(mark.x, mark.y_low, mark.y_high, colors=colors, lw=np.where(is_selected, 2, 1))
    ax.scatter(mark.x, mark.y, np.where(is_selected, 90, 36), colors, ec=theme.background, zorder=3, clip_on=False)
    names = [name if selected else "" for name, selected in zip(mark.names, is_selected)]
    style.label_points(ax, mark.x, mark.y, names, theme, style.LABEL_PLACES[2:])  # not over the cross


@_draw.register
def _(mark: Parts, ax, theme, panel):
    values, right = np.asarray(mark.values, dtype=float), panel.x.high  # (rows, parts)
    for name, color, size, left in zip(mark.names, mark.colors, values.T, values.cumsum(axis=1).T - values.T):
        ax.barh(range(len(size)), size, 0.68, left=left, color=color, label=name)
        for row in np.flatnonzero(size):
            said = f"{size[row]:.0%}" if right <= 1 else f"{name} {style.short_number(size[row])}"
            if size[row] / right * ax.bbox.width > style.LETTER * len(said) + 4:  # it fits
                write(ax, said, (left[row] + size[row] / 2, row), theme, color=ink_on(color), ha="center")
    for row, text in enumerate(mark.texts):
        write(ax, text, (values[row].sum(), row), theme, (5, 0), weight="bold")


@_draw.register
def _(mark: marks.Rule, ax, theme, panel):
    ls, lw, alpha = RULES[mark.kind]
    look = {"ls": ls, "lw": lw, "alpha": alpha, "color": style.RED if mark.kind == "limit" else theme.foreground}
    line = ax.axvline(mark.x, **look) if mark.y is None else ax.axhline(mark.y, **look)
    line.set_label(mark.name or "_")


# --- words -----------------------------------------------------------------------------------------------------------


@_draw.register
def _(mark: Table, ax, theme, panel):
    width, height = ax.get_xlim()[1], ax.get_ylim()[0]
    named = 12 + style.LETTER * max(map(len, mark.rows))
    column = min((width - named) / len(mark.columns), 0.27 * width)
    heads = [textwrap.fill(name, max(int(column / 8), 5)) for name in mark.columns]
    top = 8 + 15 * max(name.count("\n") + 1 for name in heads)
    row = min((height - top) / len(mark.rows), 32)
    for i, (head, ink) in enumerate(zip(heads, mark.inks or range(len(heads)))):
        right = width - column * (len(heads) - 1 - i)
        write(ax, head, (right, top / 2), theme, ha="right", weight="bold", color=theme.lines[ink])
        for j, texts in enumerate(mark.cells):
            write(ax, texts[i], (right, top + row * (j + 0.5)), theme, ha="right")
    for j, name in enumerate(mark.rows):
        ax.hlines(top + row * j, 0, width, color=theme.grid, lw=0.8)
        write(ax, name, (0, top + row * (j + 0.5)), theme, color=theme.muted)


def _lay_out(mark: Text, width: float) -> tuple[list, list, float]:
    """Where all stands in `width` pixels, and how high it is: names with y; letters with x, y, width and expert, an
    empty letter for each further byte. A line break is drawn too, and ends its line."""
    has_experts = mark.experts is not None
    is_wide = has_experts and max(mark.experts, default=0) > 9  # numbers of two figures
    cell, rest, line = (13, 13, 30) if is_wide else (10, 7, 30) if has_experts else (8, 0, 16)
    sizes = iter(repeat(1) if mark.sizes is None else mark.sizes)
    experts = iter(mark.experts if has_experts else repeat(-1))
    names, letters, y = [], [], 0.0
    for i, text in enumerate(mark.texts):
        if mark.names:
            names.append((mark.names[i], y))
            y += NAME
        x = 0.0
        for letter in text:
            size = int(next(sizes))
            if x + cell + (size - 1) * rest > width:
                x, y = 0.0, y + line
            for part in range(size):
                letters.append(("" if part else letter, x, y, rest if part else cell, int(next(experts))))
                x += rest if part else cell
            x = np.inf if letter == "\n" and has_experts else x
        y += line + GAP
    return names, letters, y


@_draw.register
def _(mark: Text, ax, theme, panel):
    names, letters, _ = _lay_out(mark, ax.get_xlim()[1])
    look = {"family": FONT, "va": "baseline"}
    for name, y in names:
        name = style.shortened(name, int(ax.get_xlim()[1] / 8))
        write(ax, name, (0, y + 12), theme, va="baseline", weight="bold", color=theme.muted)
    if mark.experts is None:
        for y in dict.fromkeys(letter[2] for letter in letters):
            line = "".join(visible(letter[0]) for letter in letters if letter[2] == y)
            write(ax, line, (0, y + 12), theme, **look)
        return
    boxes: dict[int, list] = {}
    for letter, x, y, wide, expert in letters:
        color = ink_on(expert_color(expert)) if expert >= 0 else theme.foreground
        look |= {"ha": "center", "zorder": 3, "color": color}
        if letter.strip(" "):
            write(ax, visible(letter), (x + wide / 2, y + 13), theme, **look)
        if expert >= 0:
            write(ax, str(expert), (x + wide / 2, y + 24), theme, fontsize=7.2, **look)
            right = x + wide - 0.8
            boxes.setdefault(expert, []).append([(x, y), (right, y), (right, y + BOX), (x, y + BOX)])
    for expert, corners in boxes.items():
        color, hatch = expert_color(expert), expert_hatch(expert)
        ax.add_collection(PolyCollection(corners, fc=color, ec=style.stripe_on(color), hatch=hatch, lw=0, zorder=2))


def visible(char: str) -> str:
    """The character itself if it can be drawn, ↵ for a line break, else ·."""
    return char if char.isprintable() and ord(char) in _drawable() else "↵" if char == "\n" else "·"


@cache
def _drawable() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())
