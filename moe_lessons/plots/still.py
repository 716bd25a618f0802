"""Panels as a matplotlib figure: for code hosts, exported pages and print, where nothing runs."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm, to_hex, to_rgb, to_rgba
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FuncFormatter, MaxNLocator

from moe_lessons.plots import marks
from moe_lessons.plots import theme as style
from moe_lessons.plots.labels import place_labels
from moe_lessons.plots.marks import Axis, Cells, Field, Panel, Parts, Table, Text
from moe_lessons.plots.theme import LIGHT, LessonFigure, annotate, between, expert_color, expert_hatch, ink_on
from moe_lessons.tasks.plane import read_points

FONT = "monospace"
RULES = {"dash": ("--", 1.2, 1), "even": ((0, (2, 3)), 0.8, 0.75), "limit": ("-", 1.6, 1), "mark": ("-", 0.9, 0.6)}
RULES["end"] = RULES["limit"]
FILLING = Field | Cells | marks.Stack | marks.Heat | marks.Boxes | marks.Lamps | marks.Route  # the panel
LEAST_PART = 0.008  # of a plane, as in the page: a smaller territory has no number
RING = {"marker": "o", "ms": 12, "mfc": "none", "mec": style.RED, "mew": 2.2, "clip_on": False}
TITLE = 24  # pixels: heights of a title, a line of text, and one with experts
LINE, BOX = 18, 30
PALE = 0.3  # of the full colour, as in the page: at most, where not all digits of an answer are right
DRAWABLE = frozenset(get_font(findfont(FONT)).get_charmap())


def plot(panel: Panel, ax: Axes | None = None, width: float = 6.4, height: float = 2.8) -> Axes:
    """Draw one panel in given axes, or in those of a new figure of this size."""
    ax = LessonFigure(width, height).add_subplot() if ax is None else ax
    x, y = panel.x, panel.y
    first = panel.marks[0]
    is_filled = any(isinstance(mark, FILLING) for mark in panel.marks)
    style.dress(ax, panel.title, x.label, y.label)
    if isinstance(first, Parts):
        y = Axis(len(first.rows) - 0.5, -0.5, ticks=list(enumerate(first.rows)))
    ax.set(xlim=(x.low, x.high), ylim=(y.low, y.high), autoscale_on=False, axisbelow=True)
    for axis, said in ((ax.xaxis, x), (ax.yaxis, y)):
        if said.ticks is not None:
            ticks, longest = said.ticks, max((len(text) for _, text in said.ticks), default=0)
            longest *= style.LETTER * ax.figure.dpi / 100
            while said is x and longest * (len(ticks) - 1) >= ax.bbox.width:  # as many as do not touch
                ticks = ticks[::2]
            axis.set_ticks([value for value, _ in ticks], [text for _, text in ticks], parse_math=False)
        else:
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if v < 1e5 else style.short_number(v)))
            axis.grid(not is_filled)
    for mark in panel.marks:
        if type(mark) not in DRAWING:
            raise ValueError(f"a mark must be one of {', '.join(kind.__name__ for kind in DRAWING)}, got {mark!r}")
        DRAWING[type(mark)](mark, ax, panel)
    if isinstance(first, Text | Table):
        ax.set_axis_off()
    if panel.caption:
        ax.set_xlabel("\n".join(filter(None, (x.label, panel.caption))), loc="left")
    if panel.selected:
        ax.spines[:].set(visible=True, color=LIGHT.muted, linewidth=2, zorder=4)  # red is for what is dead
    elif is_filled:
        ax.spines[:].set_visible(False)
    return style.name_over(ax)


def figure(panels: Sequence[Panel], width: int = 980, caption: str = "") -> LessonFigure:
    """Draw all panels, in rows of 12 columns, and lines of text under them. width: in pixels."""
    rows: list[list[Panel]] = []
    for panel in panels:
        if not rows or sum(other.width for other in rows[-1]) + panel.width > 12:
            rows.append([])
        rows[-1].append(panel)
    heights = [max(_height(panel, panel.width * width / 12) for panel in row) for row in rows]
    lines = textwrap.wrap(caption, int(width / style.LETTER))
    made = LessonFigure(width / 100, (sum(heights) + LINE * len(lines)) / 100, letters=1)
    grid = made.add_gridspec(len(rows) or 1, 12, height_ratios=heights or None)
    for place, row in enumerate(rows):
        for panel, end in zip(row, np.cumsum([panel.width for panel in row])):
            part = made.add_subfigure(grid[place, end - panel.width : end])  # it is laid out on its own
            plot(panel, style.styled(part.add_subplot))
    if lines:
        made.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=style.TEXT_SIZE, color=LIGHT.foreground)
    return made


def _height(panel: Panel, width: float) -> float:
    first = panel.marks[0]
    if isinstance(first, Text):
        return TITLE + 8 + (LINE if first.experts is None else BOX) * _lay_out(first, width - 20)[2]
    return TITLE + panel.height + 16 * len(panel.caption.splitlines())


def _line_style(ink: int, strong: bool = True) -> dict:
    if ink < 0:
        return {"color": LIGHT.muted, "alpha": 0.45, "lw": 3.5}
    return {"color": LIGHT.lines[ink % 8], "ls": style.DASHES[ink % 8], "lw": 2 if strong else 1.2}


def _two_ways() -> LinearSegmentedColormap:
    low, high = LIGHT.directions
    return style.shades(low, LIGHT.background, high)


def two_ways(ax: Axes, edges, z: np.ndarray, even: float, most: float) -> QuadMesh:
    """Draw cells in two directions of colour from an even value, which is that of the page: to 0 and to the most."""
    norm = TwoSlopeNorm(even, 0, most if most > even else 2 * even)
    lines = LIGHT.grid if ax.bbox.width / z.shape[1] > 8 else "none"  # they would be nearly as wide as the cells
    return ax.pcolormesh(*edges, z, cmap=_two_ways(), norm=norm, edgecolors=lines, lw=1, zorder=0.5)


def draw_field(mark: Field, ax, panel):
    z = np.asarray(mark.z, dtype=float)  # (rows, columns, E)
    x, y = (np.linspace(*ends, count) for ends, count in ((ax.get_xlim(), z.shape[1]), (ax.get_ylim(), z.shape[0])))
    first = z.argmax(axis=-1)
    ax.set_box_aspect(1)  # a plane, as in the page
    if mark.classes is not None:
        level = np.asarray(mark.classes) % 8  # as in the page
        alpha = 0.05 * (level % 2 * 4 + level // 2)
        pale = style.shades(LIGHT.background + "00", LIGHT.background + "ff")
        place = {"origin": "lower", "extent": (*ax.get_xlim(), *ax.get_ylim()), "aspect": "auto", "zorder": 0.6}
        ax.imshow(alpha, cmap=pale, vmin=0, vmax=1, interpolation="bilinear", **place)
    for expert in range(z.shape[-1]):
        lead = z[..., expert] - np.delete(z, expert, axis=-1).max(axis=-1, initial=-1e9)  # at its borders it is 0
        area = ax.contourf(x, y, lead, [0, np.inf], colors=[expert_color(expert)], zorder=0.5)
        area.set(hatch=expert_hatch(expert), edgecolor=LIGHT.background, linewidth=1)
        rows, columns = np.nonzero(first == expert)
        if len(rows) >= LEAST_PART * first.size:  # its number stands at that point of it which is nearest to its middle
            at = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
            options = {"fontsize": 10, "weight": "bold", "color": "black", "ha": "center", "halo": style.WHITE}
            annotate(ax, str(expert), (x[columns[at]], y[rows[at]]), zorder=2.55, **options)  # over the points


def draw_cells(mark: Cells, ax, panel):
    z = np.asarray(mark.z, dtype=float)  # (rows, E)
    rows, experts = z.shape
    edges = np.arange(experts + 1) - 0.5, np.arange(rows + 1) - 0.5
    if mark.even is None:
        inks = [to_rgb(expert_color(expert)) for expert in range(experts)]
        colors = np.dstack([np.broadcast_to(inks, (rows, experts, 3)), np.sqrt(z.clip(0, 1))])
        ax.set_facecolor(between(0.07))
        ax.pcolormesh(*edges, colors, edgecolors=LIGHT.background, lw=1, zorder=0.5)
    else:
        mesh, ends = two_ways(ax, edges, z, mark.even, mark.most), (0, mark.even, mark.most)
        said = [f"{100 * end:.3g} %" if mark.numbers else f"{end:g} ×" for end in ends]
        bar = style.styled(ax.figure.colorbar, mesh, ax=ax, aspect=30, pad=0.02)
        bar.set_ticks(ends, labels=[said[0], f"{said[1]}\neven", said[2]])
        colors = mesh.to_rgba(z)
        ax.hlines(edges[1][1:-1], -0.5, experts - 0.5, color=LIGHT.grid, lw=1, zorder=0.6)
    if mark.numbers and ax.bbox.width / experts > 18 and ax.bbox.height / rows > 12:
        for row, expert in np.argwhere(~np.isnan(z)):
            *color, alpha = colors[row, expert]
            color = ink_on(to_hex(alpha * np.array(color) + (1 - alpha) * np.array(to_rgb(ax.get_facecolor()))))
            annotate(ax, f"{100 * z[row, expert]:.0f}", (expert, row), color=color, ha="center")
    if mark.selected is not None:
        ax.barh(mark.selected, experts, 1, -0.5, fill=False, lw=1.8, ec=style.RED, clip_on=False, zorder=3)


def draw_bars(mark: marks.Bars, ax, panel):
    y, places = np.asarray(mark.y, dtype=float), np.arange(len(mark.y))
    colors, hatches = [*map(expert_color, places)], [*map(expert_hatch, places)]
    served = y if mark.limit is None else y.clip(max=mark.limit)
    ax.bar(places, served, 0.76, color=colors, edgecolor=LIGHT.background, hatch=hatches, lw=0)
    if mark.limit is not None:
        ax.bar(places, y - served, 0.76, bottom=served, color=colors, alpha=0.35, lw=0)
    if mark.second is not None:
        ticks = np.asarray(mark.second, dtype=float), places - 0.42, places + 0.42
        ax.hlines(*ticks, color=LIGHT.background, lw=4, zorder=2.5)
        ax.hlines(*ticks, color=LIGHT.foreground, lw=2.2, zorder=2.5, label=mark.second_name)


def draw_stack(mark: marks.Stack, ax, panel):
    x, y = np.asarray(mark.x, dtype=float), np.asarray(mark.y, dtype=float)
    colors, hatches = zip(*((expert_color(e), expert_hatch(e)) for e in range(y.shape[1])))
    if len(x):  # the first shares count from the beginning of their step
        x, y = np.concatenate([[min(ax.get_xlim()[0], x[0])], x]), np.concatenate([y[:1], y])
        for band, hatch in zip(ax.stackplot(x, y.T, colors=colors, edgecolor=LIGHT.background, lw=0.4), hatches):
            band.set_hatch(hatch)
    if mark.second is not None:  # a strip at the right edge
        place = {"bottom": np.cumsum(mark.second) - mark.second, "transform": ax.get_yaxis_transform()}
        options = {"color": colors, "hatch": hatches, "edgecolor": LIGHT.background, "lw": 0, "clip_on": False}
        ax.bar([1.04] * len(colors), mark.second, 0.05, **place, **options)


def draw_heat(mark: marks.Heat, ax, panel):
    z = np.asarray(mark.z, dtype=float)
    (x, x_end), (y, y_end) = ax.get_xlim(), ax.get_ylim()
    rows = np.linspace(y, y_end, len(z))
    plane = np.linspace(x, x_end, z.shape[1]), rows, z
    ax.pcolormesh(*plane, cmap=_two_ways(), vmin=-mark.most, vmax=mark.most, shading="gouraud", zorder=0.5)
    ax.plot(np.asarray(mark.contours, dtype=float).T, rows, color=LIGHT.foreground, lw=0.7, zorder=1)
    for label in place_labels(panel, ax.bbox.width, ax.bbox.height):
        place = x + (x_end - x) * label.x / ax.bbox.width, y + (y_end - y) * label.y / ax.bbox.height
        weight = "bold" if label.is_region else "normal"
        annotate(ax, label.text, place, halo=LIGHT.background, ha="center", weight=weight, zorder=3)
    if mark.selected is not None:
        ax.plot(*mark.selected, zorder=2.6, **RING)


def draw_line(mark: marks.Line, ax, panel):
    if mark.low is not None:
        ends = (np.asarray(end, dtype=float) for end in (mark.low, mark.high))
        ax.fill_between(mark.x, *ends, color=LIGHT.lines[mark.ink % 8], alpha=0.2, lw=0)
    name = mark.name or None
    ax.plot(mark.x, np.asarray(mark.y, "f8"), label=name, **_line_style(mark.ink, mark.strong))


def draw_points(mark: marks.Points, ax, panel):
    x, y = np.asarray(mark.x), np.asarray(mark.y)
    if mark.fill is not None:
        colors = {"c": mark.fill, "cmap": _two_ways(), "vmin": -mark.most, "vmax": mark.most}
        ax.scatter(x, y, 60, **colors, ec=LIGHT.foreground, lw=1, zorder=2.5, clip_on=False)
        return
    symbol = np.zeros(len(x)) if mark.symbol is None else np.asarray(mark.symbol)
    light = {"marker": "o", "ms": 4.5 if mark.tokens else 3.4, "color": style.WHITE, "mec": "black", "mew": 0.7}
    dark = light | {"marker": "X", "ms": 6, "color": "black", "mec": style.WHITE}
    for kind, points in enumerate((light, dark, {"marker": "x", "ms": 6, "mew": 1.8, "color": style.RED})):
        ax.plot(x[symbol == kind], y[symbol == kind], ls="", zorder=2.5, **points)
    if mark.selected is not None:
        ax.plot(x[mark.selected], y[mark.selected], zorder=2.6, **RING)


def draw_drawn(mark: marks.Drawn, ax, panel):
    for place, label in zip(*(part.tolist() for part in read_points(mark.points))):
        options = {"halo": style.WHITE, "fontsize": 6, "color": "black", "ha": "center", "va": "center", "zorder": 2.4}
        annotate(ax, marks.CLASSES[label], place, **options)


def draw_spots(mark: marks.Spots, ax, panel):
    colors = [LIGHT.lines[ink % 8] for ink in mark.ink]
    (x, *x_ends), (y, *y_ends) = mark.x, mark.y
    ax.hlines(y, *x_ends, colors=colors, lw=1.5)
    ax.vlines(x, *y_ends, colors=colors, lw=1.5)
    ax.scatter(x, y, 50, colors, ec=LIGHT.background, zorder=3, clip_on=False)


def draw_parts(mark: Parts, ax, panel):
    values, right = np.asarray(mark.values, dtype=float), panel.x.high  # (rows, parts)
    places = range(len(values))
    for name, color, size, left in zip(mark.names, mark.colors, values.T, values.cumsum(axis=1).T - values.T):
        bars = ax.barh(places, size, 0.68, left=left, color=color, label=name)
        if len(mark.names) == 1:
            break  # a whole has its text at its end
        texts = [style.percent(part) if right <= 1 else f"{name} {style.short_number(part)}" for part in size]
        rooms = size / right * ax.bbox.width - 4  # pixels
        texts = [text if style.LETTER * len(text) < room else "" for text, room in zip(texts, rooms)]
        ax.bar_label(bars, texts, label_type="center", color=ink_on(color), fontsize=style.TEXT_SIZE)
    for row, text in enumerate(mark.texts):
        annotate(ax, text, (values[row].sum(), row), (5, 0), weight="bold")


def draw_rule(mark: marks.Rule, ax, panel):
    options = dict(zip(("ls", "lw", "alpha"), RULES[mark.kind]), label=mark.name or "_")
    options["color"] = style.RED if mark.kind in ("limit", "end") else LIGHT.foreground
    if mark.kind == "end":
        options["label"] = "_"
        ax.axhspan(mark.y, panel.y.high, color=LIGHT.background, alpha=0.6, lw=0, zorder=1.5)
        annotate(ax, mark.name, (panel.x.low, mark.y), (6, 8), halo=LIGHT.background, zorder=3)
    ax.axvline(mark.x, **options) if mark.y is None else ax.axhline(mark.y, **options)


def draw_boxes(mark: marks.Boxes, ax, panel):
    x, y, w, h = np.reshape(np.asarray(mark.places, dtype=float), (-1, 4)).T
    room = np.abs(w / (panel.x.high - panel.x.low)) * ax.figure.bbox.width / style.LETTER
    grey = between(0.1)
    for i, (text, fill, expert) in enumerate(zip(mark.texts, mark.fill, mark.expert)):
        color = expert_color(expert) if fill == 3 else LIGHT.lines[(fill - 4) % 8] if fill > 3 else grey
        face, hatch = ("none" if fill < 2 else color), expert_hatch(expert) if fill == 3 else ""
        edge = between(0.4) if fill == 1 else LIGHT.background if hatch else "none"
        if fill:
            ax.bar(x[i], h[i], w[i], y[i] - h[i] / 2, color=face, ec=edge, hatch=hatch, lw=fill == 1, zorder=2)
        if text and mark.token[i] == mark.selected:
            ax.bar(x[i], h[i], w[i], y[i] - h[i] / 2, fill=False, ec=style.RED, lw=2, zorder=3)
        if w[i] and len(text) > room[i]:
            text = text[: int(room[i]) - 1] + "…" if room[i] > 2 else ""
        ink = ink_on(color) if fill > 2 else LIGHT.muted if fill == 2 else LIGHT.foreground
        place = {"ha": "center" if w[i] else "left", "weight": "bold" if mark.strong else "normal"}
        # keeps letters apart from stripes, and from lines
        halo = color if hatch else LIGHT.background if mark.strong and not fill else ""
        annotate(ax, text, (x[i], y[i]), halo=halo, color=ink, zorder=4, **place)


def draw_arrows(mark: marks.Arrows, ax, panel):
    for (x, y, x_to, y_to), expert, token in zip(mark.ends, mark.expert, mark.token):
        color = LIGHT.foreground if expert < 0 else expert_color(expert)
        is_strong = token < 0 or token == mark.selected
        options = {"arrowstyle": "-|>" if is_strong else "-", "lw": 1.6 if is_strong else 0.8, "color": color}
        options |= {"alpha": 1 if is_strong else 0.7, "shrinkA": 0, "shrinkB": 0, "zorder": 1 + is_strong}
        ax.annotate("", (x_to, y_to), (x, y), arrowprops=options | {"mutation_scale": 9}, annotation_clip=False)


def draw_route(mark: marks.Route, ax, panel):
    probs, weights = np.asarray(mark.probs, dtype=float), np.asarray(mark.weights, dtype=float)
    busy = np.flatnonzero(weights > 0)
    x = (np.arange(len(probs)) + 0.5) / len(probs)
    grey = between(0.3)
    ax.set(xlim=(0, 1), ylim=(1, 0))
    for expert in busy:
        below = 0.29 + 0.17 * probs[expert] * (len(probs) <= 10)  # the number of its probability
        for ends in (((x[expert], below), (x[expert], 0.52)), ((x[expert], 0.52), (0.5, 0.79))):
            ax.plot(
                *zip(*ends), color=expert_color(expert), lw=2 + 6 * weights[expert], solid_capstyle="butt", zorder=1
            )
    ax.plot([0.5, 0.5], [0.04, 0.18], [0.5, 0.5], [0.79, 0.95], color=grey, lw=1.5, zorder=1)
    for expert, prob in enumerate(probs):
        is_busy, size = weights[expert] > 0, 0.8 / len(probs)
        color, hatch = (expert_color(expert), expert_hatch(expert)) if is_busy else (grey, "")
        ax.bar(x[expert], 0.17 * prob, 0.75 * size, 0.22, color=color, hatch=hatch, ec=LIGHT.background, lw=0, zorder=2)
        face = color if is_busy else "none"
        ax.bar(
            x[expert], 0.11, size, 0.465, color=face, ec=LIGHT.background if is_busy else grey, hatch=hatch, zorder=2
        )
        ink, weight = (ink_on(color), "bold") if is_busy else (LIGHT.muted, "normal")
        place = {"ha": "center", "color": ink, "weight": weight, "halo": color if hatch else "", "zorder": 4}
        annotate(ax, f"E{expert}" if len(probs) <= 10 else str(expert), (x[expert], 0.52), **place)
        if len(probs) <= 10:
            annotate(ax, style.percent(prob), (x[expert], 0.255 + 0.17 * prob), ha="center", weight=weight, zorder=4)
    terms = " + ".join(f"{style.as_weight(weights[e])} · E{e}(x)" for e in busy) or "0: no expert serves it"
    total = f"y = {terms}" if len(busy) <= 4 else f"weighted sum of {len(busy)} experts"
    each = f"a probability for each of {len(probs)} experts" if len(probs) > 1 else "there is one expert"
    router = f"router: {each}"
    rows = (0.04, 0.6, mark.head), (0.18, 1, router), (0.79, 0.8, total), (0.95, 0.6, mark.foot)
    for y, width, text in rows:
        ax.bar(0.5, 0.08, width, y - 0.04, color=LIGHT.background, ec=grey, lw=1, zorder=3, clip_on=False)
        annotate(ax, text, (0.5, y), ha="center", zorder=4)


def draw_lamps(mark: marks.Lamps, ax, panel):
    right, digits = np.asarray(mark.right), np.shape(mark.answers)[1]
    rows = -(-len(right) // mark.columns)
    states = np.full(rows * mark.columns, digits + 1)  # no lamp
    states[: len(right)] = right
    full = LIGHT.lines[mark.ink % 8]
    colors = [*(to_rgba(full, PALE * count / digits) for count in range(digits)), to_rgba(full)]
    colors = np.array([*colors, to_rgba(LIGHT.background)])
    edges, cells = (np.arange(mark.columns + 1), np.arange(rows + 1)), colors[states].reshape(rows, mark.columns, 4)
    ax.set_facecolor(between(0.1))
    ax.pcolormesh(*edges, cells, zorder=0.5, edgecolors=LIGHT.background, lw=0.6)
    ax.set_aspect("equal", anchor="NW")


def draw_table(mark: Table, ax, panel):
    room = max(int(0.7 * ax.figure.bbox.width / len(mark.columns) / style.LETTER) - 3, 1)  # letters; these are bold
    heads = ["", *(textwrap.fill(name, room, break_long_words=False) for name in mark.columns)]
    cells = [heads, *([name, *texts] for name, texts in zip(mark.rows, mark.cells))]
    widths = [0.3] + [0.7 / len(mark.columns)] * len(mark.columns)
    table = ax.table(cells, colWidths=widths, edges="horizontal", bbox=(0, 0, 1, 1))
    table.auto_set_font_size(False)
    colors = [LIGHT.muted, *(LIGHT.lines[ink % 8] for ink in mark.inks or range(len(mark.columns)))]
    colors += [LIGHT.muted] * (len(heads) - len(colors))
    for (row, column), cell in table.get_celld().items():
        options = {"ha": "right" if column else "left", "weight": "normal" if row else "bold", "size": style.TEXT_SIZE}
        cell.set_text_props(color=LIGHT.foreground if row and column else colors[column], **options)
        cell.set(edgecolor=LIGHT.grid, lw=0.8, height=1 if row else 1 + 0.6 * max(head.count("\n") for head in heads))


def _lay_out(mark: Text, width: float) -> tuple[list, list, int, int]:
    """Place in `width` pixels: (name, line), (letter, column, line, expert) for each byte; count lines and columns."""
    experts = [-1] * sum(map(len, mark.texts)) if mark.experts is None else mark.experts
    columns = int(width / (8 if mark.experts is None else 12 if max(experts, default=0) < 10 else 16))
    sizes = iter([1] * len(experts) if mark.sizes is None else mark.sizes)
    names, letters = [], []
    line = 0
    for i, text in enumerate(mark.texts):
        if mark.names:
            names.append((mark.names[i], line))
            line += 1
        column = 0
        for letter in text:
            size = int(next(sizes))
            if column + size > columns:
                column, line = 0, line + 1
            for part in range(size):
                letters.append(("" if part else letter, column + part, line, int(experts[len(letters)])))
            column = columns if letter == "\n" and mark.experts is not None else column + size
        line += 1
    return names, letters, line, columns


def draw_text(mark: Text, ax, panel):
    room = ax.figure.bbox
    names, letters, _, columns = _lay_out(mark, room.width - 20)
    line_height, middle = (LINE, 0.5) if mark.experts is None else (BOX, 0.26)
    ax.set(xlim=(0, columns), ylim=((room.height - TITLE - 8) / line_height, 0))
    for name, line in names:
        annotate(ax, name, (0, line + 0.6), weight="bold", color=LIGHT.muted)
    for letter, column, line, expert in letters:
        color = ink_on(expert_color(expert)) if expert >= 0 else LIGHT.foreground
        options = {"family": FONT, "ha": "center", "zorder": 3, "color": color, "in_layout": False}
        if letter.strip(" "):
            annotate(ax, visible(letter), (column + 0.5, line + middle), **options)
        if expert >= 0:
            annotate(ax, str(expert), (column + 0.5, line + 0.7), fontsize=style.TEXT_SIZE - 2, **options)
            ax.bar(column, 0.9, 0.92, line, align="edge", color=expert_color(expert), lw=0, zorder=2)


def visible(char: str) -> str:
    """Take the character itself if it can be drawn, ↵ for a line break, else ·."""
    return char if char.isprintable() and ord(char) in DRAWABLE else "↵" if char == "\n" else "·"


DRAWING = {
    Field: draw_field,
    Cells: draw_cells,
    marks.Bars: draw_bars,
    marks.Stack: draw_stack,
    marks.Heat: draw_heat,
    marks.Line: draw_line,
    marks.Points: draw_points,
    marks.Drawn: draw_drawn,
    marks.Spots: draw_spots,
    Parts: draw_parts,
    marks.Rule: draw_rule,
    marks.Boxes: draw_boxes,
    marks.Arrows: draw_arrows,
    marks.Lamps: draw_lamps,
    marks.Route: draw_route,
    Text: draw_text,
    Table: draw_table,
}
