"""Pictures of experts: the load of each, by layer and by model, gradients on their logits, capacity, traffic."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from moe_lessons.nn import Routing
from moe_lessons.nn.balancing import rank_within
from moe_lessons.plots import theme as style
from moe_lessons.plots.still import two_ways
from moe_lessons.plots.theme import LIGHT, PALETTE, RED, LessonFigure, annotate, axes_for, dress, ink_on, name_over

INKS = [LIGHT.lines[i] for i in (0, 5, 4)]  # of the token, of the domain, and of the domain given the token


def known_share_bars(tables: Mapping[str, pd.DataFrame]) -> Axes:
    """Draw in percent what an expert tells about its tokens, tables: model -> `analysis.known_shares`, a group of bars
    for each layer."""
    starts = np.cumsum([0, *(len(table) + 0.6 for table in tables.values())])
    ax = axes_for(7.6, 2.9, "What an expert tells about its tokens", ylabel="% of the possible information")
    places = np.concatenate([start + np.arange(len(table)) for start, table in zip(starts, tables.values())])
    rows = pd.concat(tables.values())
    width = 0.8 / len(rows.columns)
    for i, (name, color) in enumerate(zip(rows, INKS)):
        ax.bar(places + (i + 0.5) * width - 0.4, 100 * rows[name], width, color=color, label=name)
    ax.axhline(0, lw=0.8, color=LIGHT.grid)
    ax.set_xticks(places, [f"layer {layer}" for layer in rows.index])
    options = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "top", "weight": "bold"}
    for name, start, end in zip(tables, starts, starts[1:]):
        annotate(ax, name, ((start + end - 1.6) / 2, 0), (0, -20), **options)
    return name_over(ax)


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
    ax.set_xticks(places, [f"E{e}\n{share:.0%}" for e, share in zip(places, load)])
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
    drawn = LessonFigure(4.8, 3.9) if len(rows) == 1 else LessonFigure(0.8 + 3.1 * len(rows), 3.75)
    places = drawn.subplots(1, len(rows), squeeze=False)[0]
    for ax, (name, matrix) in zip(places, rows.items()):
        ranks = np.arange(len(matrix))
        received, share = matrix.sum(axis=0), matrix * len(matrix) / mean[name]
        busiest = f"busiest rank {received.max() / mean[name]:.2g} × {'uniform' if even else 'the mean'}"
        dress(ax, f"{name}: {busiest}", "to rank", "from rank")
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
    """Draw a layer of four experts on two devices, by expert parallelism; below, what each has and what travels."""
    figure = LessonFigure(5.2, 3.5)
    ax = dress(figure.subplots(), "expert parallel")
    ax.axis("off")
    for device, experts in enumerate(((0, 1), (2, 3))):
        left = 1.25 * device
        ax.add_patch(Rectangle((left, 0), 1, 1, fill=False, ec=LIGHT.muted, lw=1.2))
        annotate(ax, f"device {device}", (left + 0.5, 1.06), ha="center", color=LIGHT.muted)
        blocks = [(f"E{e}", PALETTE[e], left + 0.06 + 0.225 * e, 0.205, 0.14) for e in experts]
        for text, color, x, wide, low in [("attention, router", LIGHT.grid, left + 0.06, 0.88, 0.58), *blocks]:
            ax.add_patch(Rectangle((x, low), wide, 0.28, fc=color))
            annotate(ax, text, (x + wide / 2, low + 0.14), ha="center", color=ink_on(color))
    arrow = {"arrowstyle": "<->", "color": LIGHT.foreground, "lw": 1.6}
    ax.annotate("", (1.27, 0.28), (0.98, 0.28), arrowprops=arrow)
    held = "a device holds half of the experts, a copy of the rest, its own sequences"
    sent = "sent: rows, twice in each layer, forward and backward;\ngradients of the copies, once per step"
    annotate(ax, f"{held}\n{sent}", (1.125, -0.08), ha="center", va="top")
    ax.set(xlim=(-0.05, 2.3), ylim=(-0.4, 1.15))
    return figure
