"""Pictures of experts: the load of each, by layer and by model, gradients on their logits, capacity, traffic, links."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from moe_lessons.nn import Routing
from moe_lessons.nn.balancing import rank_within
from moe_lessons.plots import theme as style
from moe_lessons.plots.still import two_ways
from moe_lessons.plots.theme import LIGHT, RED, LessonFigure, annotate, axes_for, dress, ink_on, log_axis, name_over

INKS = [LIGHT.lines[i] for i in (0, 5, 4, 3, 1)]  # in the order of `analysis.traces.ASKED`


def told_bars(tables: Mapping[str, pd.DataFrame]) -> Axes:
    """Draw in bits what an expert tells about its tokens, tables: model -> `analysis.told_bits`, a row a layer."""
    starts = np.cumsum([0, *(len(table) + 0.6 for table in tables.values())])
    ax = axes_for(6.4, 2.9, "What an expert tells about its tokens", ylabel="bits")
    places = np.concatenate([start + np.arange(len(table)) for start, table in zip(starts, tables.values())])
    rows = pd.concat(tables.values())
    width = 0.8 / len(rows.columns)
    for i, (name, color) in enumerate(zip(rows, INKS)):
        ax.bar(places + (i + 0.5) * width - 0.4, rows[name], width, color=color, label=name)
    ax.axhline(0, lw=0.8, color=LIGHT.grid)
    ax.set_xticks(places, [f"layer {layer}" for layer in rows.index])
    options = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "top", "weight": "bold"}
    for name, start, end in zip(tables, starts, starts[1:]):
        annotate(ax, name, ((start + end - 1.6) / 2, 0), (0, -20), **options)
    return name_over(ax)


def muting_maps(shares: pd.DataFrame, rises: pd.DataFrame) -> Figure:
    """Draw where the tokens of each group go, shares (groups, E), above what a group loses without each expert, rises
    (groups, E) in nats. In a frame: the largest of each row."""
    figure = LessonFigure(6.4, 1.6 + 0.66 * len(shares))
    shades = style.shades(LIGHT.background, LIGHT.directions[1])
    maps = (
        (100 * shares, "Where tokens go: % of each row (frame: most)", ".0f"),
        (rises, "Rise of the loss without it, nats (frame: most)", ".2f"),
    )
    for ax, (table, title, form) in zip(figure.subplots(2, 1), maps):
        dress(ax, title)
        image = ax.imshow(table, cmap=shades, vmin=0, aspect="auto")
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            color = ink_on(to_hex(image.to_rgba(value)))
            annotate(ax, f"{value:{form}}".replace("-0.00", "0.00"), (column, row), ha="center", color=color)
        for row, column in enumerate(table.to_numpy().argmax(axis=1)):
            ax.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, ec=LIGHT.foreground, lw=1.6))
        ax.set_xticks(range(table.shape[1]), table.columns)
        ax.set_yticks(range(len(table)), table.index)
        ax.spines[:].set_visible(False)
    return figure


def share_scatter(x, y, labels: tuple[str, str], title: str) -> Axes:
    """Draw two shares of each expert, x, y (N, E) from N steps or runs. Dashed: uniform load; dotted: where x = y."""
    ax = axes_for(4.2, 3.8, title, *labels)
    x, y = np.asarray(x), np.asarray(y)
    for expert, points in enumerate(zip(x.T, y.T)):
        options = {"color": style.expert_color(expert), "hatch": style.expert_hatch(expert), "ec": LIGHT.background}
        ax.scatter(*points, s=26, lw=0.4, label=f"E{expert}", clip_on=False, zorder=3, **options)
    even = 1 / x.shape[1]
    for slope, ls in ((0, "--"), (np.inf, "--"), (1, ":")):
        ax.axline((even, even), slope=slope, ls=ls, lw=0.8, color=LIGHT.muted)
    top = 1.08 * max(x.max(), y.max())
    ax.set(xlim=(0, top), ylim=(0, top))
    return name_over(ax)


def fates(load, raised, is_dead) -> Axes:
    """Draw each expert of several runs before the first step, by its load and by minus the gradient on its logit, which
    raises it above 0: load, raised (S, E). is_dead (S, E): whether it dies later."""
    ax = axes_for(6.4, 3.6, "Each expert before the first step", "load", "−∂L/∂z, sum over all tokens")
    load, raised, is_dead = (np.asarray(values) for values in (load, raised, is_dead))
    for kind, name, ink, marker in ((False, "lives on", style.ALIVE, "o"), (True, "dies", style.DEAD, "X")):
        ax.scatter(
            load[is_dead == kind], raised[is_dead == kind], 40, LIGHT.lines[ink], marker=marker, label=name, zorder=3
        )
    ax.axhline(0, lw=1, color=LIGHT.foreground)
    ax.axvline(1 / load.shape[1], ls="--", lw=1, color=LIGHT.muted)
    ax.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    return name_over(ax)


def logit_gradient_bars(own, others, load, title: str, ax: Axes) -> Axes:
    """Draw minus the gradient on the logit of each expert, so that bars above 0 raise it: own (E,), from the tokens
    that chose the expert (full); others (E,), from all other tokens (pale). load (E,): its share of the tokens."""
    dress(ax, title, ylabel="−∂L/∂z: above 0 raises the logit")
    places = np.arange(len(own))
    options = {"color": [style.expert_color(e) for e in places], "hatch": [style.expert_hatch(e) for e in places]}
    kinds = (own, -0.2, "from its own tokens", 1), (others, 0.2, "from all other tokens", 0.4)
    for heights, side, name, alpha in kinds:
        ax.bar(places + side, heights, 0.4, edgecolor=LIGHT.background, lw=0.5, alpha=alpha, **options)
        ax.bar([0], [0], color=LIGHT.muted, alpha=alpha, label=name)
    ax.axhline(0, lw=1, color=LIGHT.foreground)
    ax.set_xticks(places, [f"E{e}\n{style.percent(share)}" for e, share in zip(places, load)])
    return name_over(ax)


def buffers(routing: Routing, capacity: int, title: str, ax: Axes) -> Axes:
    """Draw the tokens in their order, in the colour of their highest scores, below them the `capacity` (C) places of
    each expert, and in red frames what was dropped. routing: from `apply_capacity`."""
    lost = set(routing.dropped_token_idx.tolist())
    num_experts = routing.num_experts
    boxes = [(t, e, t, -1.9, t in lost) for t, e in enumerate(routing.router_probs.argmax(dim=1).tolist())]
    for start, kind in ((0, ""), (capacity, "dropped_")):
        tokens, experts = (getattr(routing, f"{kind}{name}_idx") for name in ("token", "expert"))
        ranks = (rank_within(experts) + start).tolist()
        boxes += [(t, e, r, e, start > 0) for t, e, r in zip(tokens.tolist(), experts.tolist(), ranks)]
    width = max(capacity, *(x + 1 for _, _, x, _, _ in boxes))
    dress(ax, title)
    for place in np.ndindex(capacity, num_experts):
        ax.add_patch(Rectangle(place, 0.92, 0.92, fc="none", ec=LIGHT.grid, lw=0.8))
    for token, expert, x, y, is_lost in boxes:
        color, frame = style.expert_color(expert), {"ec": RED, "lw": 2, "zorder": 3} if is_lost else {"ec": "none"}
        ax.add_patch(Rectangle((x, y), 0.92, 0.92, fc=color, **frame))
        annotate(ax, str(token), (x + 0.46, y + 0.5), ha="center", color=ink_on(color), zorder=4)
    ax.plot([capacity - 0.04] * 2, [-0.2, num_experts + 0.1], color=RED, lw=1.8)
    annotate(ax, f"C = {capacity} places", (capacity, -0.45), color=RED)
    ax.set_yticks([-1.44, *(e + 0.46 for e in range(num_experts))], ["tokens", *(f"E{e}" for e in range(num_experts))])
    ax.set(xlim=(-0.1, width + 0.1), ylim=(num_experts + 0.2, -2), xticks=[], aspect="equal")
    ax.spines[:].set_visible(False)
    return ax


def plot_exchange(traffic: Mapping[str, Tensor], even: float | None = None) -> Axes:
    """Draw how many rows (tokens' copies) each rank sends to each, a picture for each title; return the last axes.
    traffic: title -> rows (N, N), as `parallel.exchange.rank_traffic` counts them. White: an even share; framed: stays
    on its rank; under a column: what that rank receives. even: the rows that an even load brings to each rank, where
    some were dropped on the way; else the mean of what came."""
    rows = {name: np.asarray(matrix, dtype=float) for name, matrix in traffic.items()}
    mean = {name: even or matrix.sum(axis=0).mean() for name, matrix in rows.items()}  # that a rank receives
    most = max(2, *(matrix.max() * len(matrix) / mean[name] for name, matrix in rows.items()))
    drawn = LessonFigure(5.2, 4.4) if len(rows) == 1 else LessonFigure(0.8 + 3.2 * len(rows), 4.4)
    places = drawn.subplots(1, len(rows), squeeze=False)[0]
    for ax, (name, matrix) in zip(places, rows.items()):
        ranks = np.arange(len(matrix))
        received, share = matrix.sum(axis=0), matrix * len(matrix) / mean[name]
        busiest = f"busiest rank {received.max() / mean[name]:.2g} × {'uniform' if even else 'the mean'}"
        dress(ax, f"{name}:\n{busiest}", "to rank", "from rank")
        mesh = two_ways(ax, [np.arange(len(matrix) + 1)] * 2, share, 1, most)
        for sender, receiver in np.ndindex(matrix.shape):
            color, text = to_hex(mesh.to_rgba(share[sender, receiver])), style.short_number(matrix[sender, receiver])
            annotate(ax, text, (receiver + 0.5, sender + 0.5), ha="center", color=ink_on(color))
        for rank in ranks:
            ax.add_patch(Rectangle((rank + 0.05, rank + 0.05), 0.9, 0.9, fill=False, ec=LIGHT.foreground, lw=1.4))
        ax.set_xticks(ranks + 0.5, [f"{rank}\n{style.short_number(tokens)}" for rank, tokens in enumerate(received)])
        ax.set_yticks(ranks + 0.5, ranks)
        ax.set(aspect="equal", ylim=(len(matrix), 0))
    bar = style.styled(drawn.colorbar, mesh, ax=places, aspect=30, pad=0.02, shrink=0.8)
    bar.set_ticks([0, 1, most], labels=["0", "1 ×\nuniform", f"{most:.3g} ×"])
    return ax


def plot_parallel() -> Figure:
    """Draw the tokens of two ranks on their way to their experts and back, each in the colour of its expert (K = 1).
    The experts stand in blocks, two on each rank."""
    figure = LessonFigure(6.4, 3.6)
    ax = dress(figure.subplots(), "Expert parallelism: dispatch and combine")
    ax.axis("off")
    for rank in range(2):
        ax.add_patch(Rectangle((-0.45, 2.1 * rank - 0.5), 8.9, 1.9, fc=LIGHT.grid, alpha=0.35))
        annotate(ax, f"rank {rank}", (-0.6, 2.1 * rank + 0.45), ha="right", weight="bold")
    for e in range(4):
        ax.add_patch(Rectangle((3.5, _row(e) - 0.36), 1, 0.72, fill=False, ec=style.expert_color(e), lw=2))
        annotate(ax, f"E{e}", (4.12, _row(e)), color=LIGHT.foreground)
    for i, e in enumerate((3, 0, 1, 2)):  # the expert of each token
        home, place, color = _row(i), _row(e), style.expert_color(e)
        line = {"color": color, "lw": 2.4 if e // 2 != i // 2 else 1, "ls": "-" if e // 2 != i // 2 else "--"}
        for start, end in (((0.3, home), (3.55, place)), ((4.45, place), (7.7, home))):
            ax.annotate("", end, start, arrowprops={"arrowstyle": "->", **line})
        for x, y in ((0, home), (3.8, place), (8, home)):
            ax.add_patch(Rectangle((x - 0.22, y - 0.22), 0.44, 0.44, fc=color))
            annotate(ax, f"t{i}", (x, y), ha="center", color=ink_on(color))
    for x, text in ((0, "tokens"), (2, "dispatch"), (4, "experts"), (6, "combine"), (8, "outputs")):
        annotate(ax, text, (x, -0.85), ha="center", color=LIGHT.muted)
    annotate(ax, "thick: crosses the link between the ranks; dashed: stays", (4, 3.85), ha="center", color=LIGHT.muted)
    ax.set(xlim=(-1.5, 8.6), ylim=(4.1, -1.1))
    return figure


def _row(i: int) -> float:
    """Say how far down number i stands, of two tokens or experts on each rank."""
    return 2.1 * (i // 2) + 0.9 * (i % 2)


def plot_links(models: Mapping[str, tuple[float, Mapping[str, float]]], link: float) -> Figure:
    """Draw for each model the time of a token's exchange over the speed of the link, and of its arithmetic; a dot is
    where they cross. models: name -> (seconds of the arithmetic, {way: bytes of a token's exchange}). link: of which
    the text speaks, in bytes per second."""
    figure, speeds = LessonFigure(7.2, 3.8), np.geomspace(10e9, 400e9, 50)
    for ax, (name, (arithmetic, ways)) in zip(figure.subplots(1, len(models), sharey=True), models.items()):
        dress(ax, name, "link, GB/s", "µs per token")
        ax.axhline(1e6 * arithmetic, color=LIGHT.lines[0], lw=2, ls="--", label="arithmetic")
        for (way, sent), ink in zip(ways.items(), (4, 3)):
            ax.plot(speeds / 1e9, 1e6 * sent / speeds, color=LIGHT.lines[ink], label=f"exchange, {way}")
            ax.plot(sent / arithmetic / 1e9, 1e6 * arithmetic, "o", color=LIGHT.lines[ink])
        ax.axvline(link / 1e9, color=LIGHT.muted, lw=1)
        annotate(ax, f"{link / 1e9:.0f} GB/s", (link / 1e9, 25), (4, 0), color=LIGHT.muted)
        ax.set(xlim=(10, 400), ylim=(20, 4000))
        log_axis(ax, "x", (10, 20, 50, 100, 200, 400))
        name_over(log_axis(ax, "y", (20, 100, 500, 2000)))
    return figure
