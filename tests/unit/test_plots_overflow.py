"""The picture of the buffers: each token stands once above, each assignment in a place of its expert or behind it."""

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from moe_lessons.nn import TopKRouter, apply_capacity, seeded
from moe_lessons.plots import THEMES
from moe_lessons.plots.overflow import buffers
from moe_lessons.plots.theme import RED, expert_color


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("tokens, experts, top_k, capacity", [(12, 4, 1, 2), (9, 3, 2, 4), (1, 2, 1, 1), (6, 2, 1, 6)])
def test_each_assignment_has_its_box(tokens, experts, top_k, capacity, theme):
    with seeded(1):
        routing = TopKRouter(8, experts, top_k)(torch.randn(tokens, 8))
    ax = buffers(apply_capacity(routing, capacity), capacity, "a title", theme=theme)
    filled = [p for p in ax.patches if isinstance(p, Rectangle) and p.get_facecolor()[3] > 0]
    above, below = [p for p in filled if p.get_y() < 0], [p for p in filled if p.get_y() >= 0]
    assert len(above) == tokens and len(below) == tokens * top_k
    demand = routing.demand_per_expert.tolist()
    for expert in range(experts):
        row = [p for p in below if p.get_y() == expert]
        assert sorted(p.get_x() for p in row) == list(range(demand[expert]))
        assert {to_hex(p.get_facecolor()) for p in row} <= {expert_color(expert).lower()}
        framed = [p.get_x() for p in row if to_hex(p.get_edgecolor()) == RED]
        assert sorted(framed) == list(range(capacity, demand[expert]))
    outlines = [p for p in ax.patches if p.get_facecolor()[3] == 0]
    assert len(outlines) == capacity * experts and ax.get_title(loc="left") == "a title"
