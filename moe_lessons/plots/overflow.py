"""Tokens that arrive in order, the places of their experts that fill, and the tokens that find no place."""

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from moe_lessons.nn import Routing
from moe_lessons.nn.balancing import rank_within
from moe_lessons.plots.theme import LIGHT, RED, annotate, axes_for, expert_color, ink_on


def buffers(routing: Routing, capacity: int, title: str, ax: Axes | None = None) -> Axes:
    """Draw where each token ends when every expert has `capacity` (C) places; routing: from `apply_capacity`.

    Above, the tokens in their order, each in the colour of its highest score. Below, a row for each expert: its C
    places, outlined where they stay empty, and behind the red line, framed in red, what was dropped.
    """
    lost, num_experts = set(routing.dropped_token_idx.tolist()), routing.num_experts
    boxes = [(t, e, t, -1.9, t in lost) for t, e in enumerate(routing.router_probs.argmax(dim=1).tolist())]
    for tokens, experts, start in (
        (routing.token_idx, routing.expert_idx, 0),
        (routing.dropped_token_idx, routing.dropped_expert_idx, capacity),
    ):
        ranks = (rank_within(experts) + start).tolist()
        boxes += [(t, e, r, e, start > 0) for t, e, r in zip(tokens.tolist(), experts.tolist(), ranks)]
    width = max(capacity, *(x + 1 for _, _, x, _, _ in boxes))
    ax = axes_for(1.2 + 0.24 * width, 0.8 + 0.24 * (num_experts + 2), title, ax=ax)
    for place in ((rank, expert) for rank in range(capacity) for expert in range(num_experts)):
        ax.add_patch(Rectangle(place, 0.92, 0.92, fc="none", ec=LIGHT.grid, lw=0.8))
    for token, expert, x, y, is_lost in boxes:
        color, frame = expert_color(expert), {"ec": RED, "lw": 2, "zorder": 3} if is_lost else {"ec": "none"}
        ax.add_patch(Rectangle((x, y), 0.92, 0.92, fc=color, **frame))
        annotate(ax, str(token), (x + 0.46, y + 0.5), ha="center", color=ink_on(color), zorder=4)
    ax.plot([capacity - 0.04] * 2, [-0.2, num_experts + 0.1], color=RED, lw=1.8)
    annotate(ax, f"C = {capacity} places", (capacity, -0.45), color=RED)
    ax.set_yticks([-1.44, *(e + 0.46 for e in range(num_experts))], ["tokens", *(f"E{e}" for e in range(num_experts))])
    ax.set(xlim=(-0.1, width + 0.1), ylim=(num_experts + 0.2, -2), xticks=[], aspect="equal")
    ax.spines[:].set_visible(False)
    return ax
