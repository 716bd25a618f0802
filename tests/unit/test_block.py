"""The drawing of the block has the numbers of the module's own routing, for any router that it says it draws."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from live_tools import MyMoE

from moe_lessons.nn import HashRouter, MoE, SigmoidRouter, seeded
from moe_lessons.plots.marks import Boxes, Panel
from moe_lessons.plots.panels.block import EXPERT, GREY, HEIGHT, WIDTH, as_digits, block_panel
from moe_lessons.widgets import draw_block


def made(num_experts=8, top_k=2, tokens=12, seed=0, block=MoE, **options):
    with seeded(seed):
        moe = block(d_model=6, d_ff=4, num_experts=num_experts, top_k=top_k, **options)
        if hasattr(moe.router, "weight"):
            moe.router.weight.data *= 4
        return moe, torch.randn(tokens, 6)


@torch.no_grad()
def panel_of(moe, x, token=0) -> Panel:
    y, routing = moe(x)
    return block_panel(moe, x, y, routing, token)


def boxes(panel: Panel, place: int) -> list[SimpleNamespace]:
    """The boxes of one of its marks: 1 what is bold, 2 the block, 3 the strip."""
    said = panel.marks[place]
    return [SimpleNamespace(**dict(zip(Boxes._fields, values))) for values in zip(*said[:6])]


def row(panel: Panel, says: str) -> list[SimpleNamespace]:
    return [box for box in boxes(panel, 2) if box.says == says]


def values(panel: Panel, says: str) -> list[float]:
    return [float(box.texts.replace("−", "-").replace("∞", "inf")) for box in row(panel, says)]


def texts(panel: Panel) -> list[str]:
    return [box.texts for place in (1, 2) for box in boxes(panel, place)]


@pytest.mark.parametrize("num_experts, top_k", [(1, 1), (8, 2), (16, 16)])
@pytest.mark.parametrize("divided", [True, False])
def test_the_numbers_are_those_of_the_routing(num_experts, top_k, divided):
    moe, x = made(num_experts, top_k, norm_topk_prob=divided)
    y, routing = moe(x)
    near = 0.0051 if num_experts <= 10 else 0.051
    for token in (0, 11):
        panel = panel_of(moe, x, token)
        chosen = dict(zip(routing.topk_indices[token].tolist(), routing.topk_weights[token].tolist()))
        assert values(panel, "router logit") == pytest.approx(routing.router_logits[token].tolist(), abs=near)
        weights = row(panel, "weight")
        assert values(panel, "weight") == pytest.approx([chosen.get(e, 0) for e in range(num_experts)], abs=0.0051)
        assert [box.fill for box in weights] == [EXPERT if e in chosen else GREY for e in range(num_experts)]
        (total,) = [text for text in texts(panel) if text.startswith("y = ")]
        assert total.endswith(f"({', '.join(as_digits(v) for v in y[token, :3].tolist())}, …)")


def test_divided_weights_are_the_softmax_of_what_the_mask_leaves_and_a_full_expert_is_idle():
    panel = panel_of(*made())
    masked = torch.tensor(values(panel, "logit after the mask")).softmax(dim=0).tolist()
    assert masked.count(0) == 6 and values(panel, "weight") == pytest.approx(masked, abs=0.01)
    moe, x = made(norm_topk_prob=False)
    panel, probs = panel_of(moe, x), moe(x)[1].router_probs[0].tolist()
    assert values(panel, "probability") == pytest.approx(probs, abs=0.0051)
    moe, x = made(4, 1, 16, capacity_factor=0.5)
    _, routing = moe(x)
    token = int(routing.dropped_token_idx[0])
    panel = panel_of(moe, x, token)
    assert [box.expert for box in row(panel, "weight") if box.texts == "full"] == [int(routing.dropped_expert_idx[0])]
    assert not [box for box in boxes(panel, 3) if box.token == token and box.expert >= 0]


@pytest.mark.parametrize("num_experts, top_k, tokens", [(1, 1, 1), (8, 2, 12), (16, 16, 16)])
def test_the_strip_has_each_assignment_once_and_no_box_lies_over_another(num_experts, top_k, tokens):
    moe, x = made(num_experts, top_k, tokens)
    _, routing = moe(x)
    panel = panel_of(moe, x, tokens - 1)
    pairs = set(zip(routing.expert_idx.tolist(), routing.token_idx.tolist()))
    computed = [box for box in boxes(panel, 3) if box.says.startswith("computed by")]
    assert [(box.expert, box.token) for box in computed] == sorted(pairs)  # from left to right
    assert np.all(np.diff([box.places[0] for box in computed]) > 0)
    assert sum(token >= 0 for token in panel.marks[0].token) == 2 * len(pairs)
    assert panel.marks[3].selected == tokens - 1
    x, y, w, h = np.array([box.places for place in (2, 3) for box in boxes(panel, place) if box.places[2]]).T
    left, right, top, low = x - w / 2, x + w / 2, y - h / 2, y + h / 2
    assert left.min() >= 0 and right.max() <= WIDTH and top.min() >= 0 and low.max() <= HEIGHT
    over = (left[:, None] < right - 1e-6) & (left < right[:, None] - 1e-6)
    over &= (top[:, None] < low - 1e-6) & (top < low[:, None] - 1e-6)
    assert over.sum() == len(over)  # each over itself alone


def test_a_block_of_your_own_is_drawn_a_router_that_only_looks_up_and_one_that_is_too_sure():
    assert isinstance(panel_of(*made(4, 2, block=MyMoE)), Panel)
    hashed, (_, x) = MoE(6, 4, 4, 2, router=HashRouter(4, vocab_size=9, top_k=2)), made()
    y, routing = hashed(x, token_ids=torch.arange(12) % 9)
    assert sorted(values(block_panel(hashed, x, y, routing, 0), "weight")) == [0, 0, 0.5, 0.5]
    moe, x = made()
    moe.router.weight.data *= 1000  # probabilities vanish
    assert isinstance(panel_of(moe, x), Panel)
    with pytest.raises(ValueError, match="^moe must have a router "):  # which the drawing would misstate
        draw_block(*made(router=SigmoidRouter(6, 8, 2)), token=2)
