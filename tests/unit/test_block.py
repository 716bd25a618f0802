"""The drawing of the block has the numbers of the module's own routing, for any router that it says it draws."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from live_tools import MyMoE, click, mark, on_a_loop, settled

from moe_lessons.analysis.counting import count_parameters
from moe_lessons.nn import (
    ExpertChoiceRouter,
    FeedForward,
    HashRouter,
    LanguageModel,
    MoE,
    SigmoidRouter,
    TransformerConfig,
    dense_twin,
    seeded,
)
from moe_lessons.plots import PANELS, THEMES, draw_block
from moe_lessons.plots.marks import Arrows, Boxes, Panel
from moe_lessons.plots.panels import block as module
from moe_lessons.plots.panels.block import EXPERT, GREY, block_panel, number
from moe_lessons.tasks import PlaneClassifier, PlaneTask, TextTask
from moe_lessons.training import PRESETS, Run, plane_runs
from moe_lessons.widgets import LiveRun, Playground


def made(num_experts=8, top_k=2, tokens=12, seed=0, block=MoE, **options):
    """A block whose router is sure, and tokens."""
    with seeded(seed):
        moe = block(d_model=6, d_ff=4, num_experts=num_experts, top_k=top_k, **options)
        if hasattr(moe.router, "weight"):
            moe.router.weight.data *= 4
        return moe, torch.randn(tokens, 6)


def panel_of(moe, x, token=0, dense=None) -> Panel:
    y, routing = moe(x)
    return block_panel(moe, x, y, routing, token, dense)


def boxes(panel: Panel, place: int) -> list[SimpleNamespace]:
    """The boxes of one of its marks: 1 what is bold, 2 the block, 3 the strip."""
    said = panel.marks[place]
    names = "x y w h texts look expert token says".split()
    return [SimpleNamespace(**dict(zip(names, values))) for values in zip(*(getattr(said, name) for name in names))]


def row(panel: Panel, says: str) -> list[SimpleNamespace]:
    """The boxes of a row of the block, one for each expert."""
    return [box for box in boxes(panel, 2) if box.says == says]


def texts(panel: Panel) -> list[str]:
    return [box.texts for place in (1, 2) for box in boxes(panel, place)]


def value(text: str) -> float:
    return float(text.replace("−", "-").replace("∞", "inf"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_experts, top_k", [(1, 1), (3, 1), (4, 4), (8, 2), (10, 3), (16, 2), (16, 16)])
@pytest.mark.parametrize("divided", [True, False])
def test_the_numbers_are_those_of_the_routing(num_experts, top_k, divided, seed):
    moe, x = made(num_experts, top_k, seed=seed, norm_topk_prob=divided)
    y, routing = moe(x)
    near = 0.0051 if num_experts <= 10 else 0.051
    for token in (0, 5, 11):
        panel = panel_of(moe, x, token)
        chosen = dict(zip(routing.topk_indices[token].tolist(), routing.topk_weights[token].tolist()))
        logits, weights = row(panel, "router logit"), row(panel, "weight")
        assert [value(box.texts) for box in logits] == pytest.approx(routing.router_logits[token].tolist(), abs=near)
        assert [value(box.texts) for box in weights] == pytest.approx(
            [chosen.get(e, 0) for e in range(num_experts)], abs=0.0051
        )
        assert {box.expert for box in weights if box.look == EXPERT} == set(chosen)
        assert {box.expert for box in weights if box.look == GREY} == set(range(num_experts)) - set(chosen)
        experts = [box for box in boxes(panel, 2) if re.match(r"E\d+( · idle)?$", box.texts) and box.w]
        assert {box.expert for box in experts if box.look == EXPERT} == set(chosen) and len(experts) == num_experts
        assert panel.title.endswith(f"token {token}")
        wanted = ", ".join(number(v) for v in y[token, :3].tolist())
        (total,) = [text for text in texts(panel) if text.startswith("y = ")]
        assert total.endswith(f"({wanted}, …)")
        if top_k <= 4:
            assert all(f"{number(weight)} · E{e}(x)" in total for e, weight in chosen.items())


@pytest.mark.parametrize("seed", range(3))
def test_divided_weights_are_the_softmax_of_what_the_mask_leaves_and_the_drawing_says_which_comes_first(seed):
    moe, x = made(seed=seed)
    panel = panel_of(moe, x)
    masked = torch.tensor([value(box.texts) for box in row(panel, "logit after the mask")])
    assert (masked == -torch.inf).sum() == 6
    weights = torch.tensor([value(box.texts) for box in row(panel, "weight")])
    torch.testing.assert_close(masked.softmax(dim=0), weights, atol=0.01, rtol=0)
    assert panel.caption.startswith("Weights: −∞ for the experts not chosen, then softmax")
    for top_k in (1, 2):
        moe, x = made(top_k=top_k, seed=seed, norm_topk_prob=False)
        panel, probs = panel_of(moe, x), moe(x)[1].router_probs[0].tolist()
        assert [value(box.texts) for box in row(panel, "probability")] == pytest.approx(probs, abs=0.0051)
        assert not row(panel, "logit after the mask") and panel.caption.startswith("Weights: softmax over all")


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"bias": True}])
def test_the_counters_are_those_of_the_analysis_and_the_ffn_is_named(options):
    moe, x = made(**options)
    count, total, active = count_parameters(moe), dense_twin(moe, "total"), dense_twin(moe, "active")
    for dense, name in ((None, "equal-total twin"), (active, "equal-active twin"), (FeedForward(6, 7), "F = 7")):
        panel = panel_of(moe, x, dense=dense)
        ffn = count_parameters(dense or total)
        assert f"parameters: total {count.total:,}, active for this token {count.active:,}" in texts(panel)
        assert {f"parameters: total {ffn.total:,}", f"active for this token {ffn.active:,}"} <= set(texts(panel))
        assert any(text.startswith(name) for text in texts(panel))


@pytest.mark.parametrize("top_k, tokens", [(1, 1), (2, 12), (3, 16), (8, 5)])
def test_the_strip_has_each_assignment_once_sorted_to_its_expert_and_put_back(top_k, tokens):
    moe, x = made(top_k=top_k, tokens=tokens)
    _, routing = moe(x)
    panel = panel_of(moe, x, tokens - 1)
    strip, arrows = boxes(panel, 3), panel.marks[0]
    pairs = set(zip(routing.expert_idx.tolist(), routing.token_idx.tolist()))
    sorted_, back = ([box for box in strip if box.says.startswith(says)] for says in ("computed by", "from"))
    assert [(box.expert, box.token) for box in sorted_] == sorted(pairs)  # from left to right
    assert np.all(np.diff([box.x for box in sorted_]) > 0) and {(box.expert, box.token) for box in back} == pairs
    assert [box.token for box in strip if box.says.startswith("goes to")] == list(range(tokens))
    assert [box.token for box in strip if box.says.startswith("sum of")] == list(range(tokens))
    assert sum(token >= 0 for token in arrows.token) == 2 * len(pairs) and panel.marks[3].selected == tokens - 1


@pytest.mark.parametrize("num_experts, top_k, tokens", [(1, 1, 1), (8, 2, 16), (16, 2, 16), (16, 16, 16), (16, 1, 3)])
def test_no_box_lies_over_another_and_all_is_within_the_drawing(num_experts, top_k, tokens):
    moe, x = made(num_experts, top_k, tokens)
    panel = panel_of(moe, x)
    all_boxes = [box for place in (2, 3) for box in boxes(panel, place) if box.w]
    left, right = (np.array([box.x + side * box.w / 2 for box in all_boxes]) for side in (-1, 1))
    top, low = (np.array([box.y + side * box.h / 2 for box in all_boxes]) for side in (-1, 1))
    assert left.min() >= 0 and right.max() <= module.WIDTH and top.min() >= 0 and low.max() <= module.HEIGHT
    over = (left[:, None] < right - 1e-6) & (left < right[:, None] - 1e-6)
    over &= (top[:, None] < low - 1e-6) & (top < low[:, None] - 1e-6)
    np.fill_diagonal(over, False)
    assert not over.any(), [all_boxes[i].texts for i in np.argwhere(over)[0]]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("num_experts", [2, 8, 16])
def test_in_the_figure_each_text_fits_into_its_box_and_none_is_small(theme, num_experts):
    moe, x = made(num_experts, tokens=16)
    figure = draw_block(moe, x, 3, theme=theme)
    figure.canvas.draw()
    (ax,) = figure.axes
    written = {text.get_text() for text in ax.texts} - {""}
    assert not any(text.endswith("…") for text in written)  # shortened
    assert {box.texts for place in (1, 2, 3) for box in boxes(panel_of(moe, x, 3), place)} - {""} <= written
    assert min(text.get_fontsize() for text in ax.texts) * figure.dpi / 72 >= 8
    bars = np.array([bar.get_window_extent().extents for bar in ax.patches])  # (N, 4): left, low, right, top
    for text in ax.texts:
        if text.get_text() and text.get_ha() == "center":
            left, low, right, top = text.get_window_extent().extents
            middle = (bars[:, 1] < (low + top) / 2) & ((low + top) / 2 < bars[:, 3])
            assert (middle & (bars[:, 0] <= left) & (right <= bars[:, 2])).any(), text.get_text()
    starts = [text.get_window_extent() for text in ax.texts if text.get_text() and text.get_ha() == "left"]
    assert not any(a.overlaps(b) for i, a in enumerate(starts) for b in starts[i + 1 :])


def test_a_full_expert_is_idle_and_says_so():
    moe, x = made(4, 1, 16, capacity_factor=0.5)
    _, routing = moe(x)
    token = int(routing.dropped_token_idx[0])
    panel = panel_of(moe, x, token)
    assert [box.expert for box in row(panel, "weight") if box.texts == "full"] == [int(routing.dropped_expert_idx[0])]
    assert any(text.startswith("y = 0: every expert was full") for text in texts(panel))
    assert not [box for box in boxes(panel, 3) if box.token == token and box.expert >= 0]


def test_a_block_of_your_own_is_drawn_and_a_router_that_only_looks_up():
    moe, x = made(4, 2, block=MyMoE)
    assert isinstance(panel_of(moe, x), Panel)
    hashed = MoE(6, 4, 4, 2, router=HashRouter(4, vocab_size=9, top_k=2))
    y, routing = hashed(x, token_ids=torch.arange(12) % 9)
    weights = [box.texts for box in row(block_panel(hashed, x, y, routing, 0), "weight")]
    assert sorted(weights) == ["0", "0", "0.50", "0.50"]


def test_a_router_so_sure_that_probabilities_vanish_is_drawn():
    moe, x = made()
    moe.router.weight.data *= 1000
    assert isinstance(panel_of(moe, x), Panel)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"router": SigmoidRouter(6, 8, 2)}, "moe must have a router whose weights are a softmax of its K largest"),
        ({"router": ExpertChoiceRouter(6, 8, 2)}, "moe must have a router whose weights"),
        ({"shared_d_ff": 4}, "moe must have no shared expert and no weight_input"),
        ({"weight_input": True}, "moe must have no shared expert and no weight_input"),
        ({"num_experts": 17}, "moe must have at most 16 experts to be drawn, got 17"),
    ],
)
def test_what_the_drawing_would_misstate_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw_block(*made(**options))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.zeros(17, 6),), r"x must have the shape \(T, 6\) with T from 1 to 16, got .*17, 6"),
        ((torch.zeros(0, 6),), "x must have the shape"),
        ((torch.zeros(6),), "x must have the shape"),
        ((torch.zeros(2, 6), 2), "token must be between 0 and 1, got 2"),
        ((torch.zeros(2, 6), 0, torch.nn.Linear(6, 6)), "dense must be a FeedForward or None, got Linear"),
        ((torch.zeros(2, 6), 0, None, "grey"), "theme must be one of 'light', 'dark', got 'grey'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_block(made()[0], *arguments)
    with pytest.raises(ValueError, match="moe must be a mixture of experts such as nn.MoE, got FeedForward"):
        draw_block(FeedForward(6, 4), torch.zeros(2, 6))


# --- live --------------------------------------------------------------------------------------------------------


def live_run(**options) -> LiveRun:
    with seeded(0):
        model = PlaneClassifier(MoE(16, 8, num_experts=8, top_k=2), num_classes=8)
    return LiveRun(Run(model, PlaneTask("checker"), lr=0.02), **{"panels": ("territory", "loss", "block")} | options)


@on_a_loop
async def test_a_click_on_a_token_shows_its_numbers_while_it_trains():
    view = live_run(play=30)
    assert [panel.width for panel in view.panels()] == [4, 4, 12]
    for token, steps in ((0, 30), (21, 31), (5, 31)):
        if token:
            click(view, "token", token)
            await settled()
        if steps > view.step:
            view.advance(steps - view.step)
        await view.finished()
        shown, routing = view.canvas.panels[2], view.plane.routing
        assert shown.title.endswith(f"token {token}") and mark(view, 0, object, 1).selected == token
        assert [value(box.texts) for box in row(shown, "router logit")] == pytest.approx(
            routing.router_logits[token].tolist(), abs=0.0051
        )
        tokens = {t for t in mark(view, 2, Boxes, 2).token if t >= 0}
        assert tokens == set(range(16, 32) if token > 15 else range(16)) and len(mark(view, 2, Arrows).x) > 60
    click(view, "token", 32)  # there is none
    await settled()
    assert view.selected == 5


def test_the_playground_shows_the_same_block_with_its_own_twin():
    playground = Playground(panels=("territory", "block"), play=5)
    playground.set(token=20)
    panel = playground.panels()[1]
    assert panel.title.endswith("token 20") and any(text.startswith("equal-total twin") for text in texts(panel))
    logits = playground.plane.routing.router_logits[20].tolist()
    assert [box.texts for box in row(panel, "router logit")] == [number(logit) for logit in logits]


def test_a_plane_is_read_of_a_mixture_on_the_plane_only():
    dense = plane_runs(PRESETS["healthy"])["equal-active twin"]
    with pytest.raises(ValueError, match="panels that show experts need a mixture of experts"):
        LiveRun(dense, ("block",))
    with pytest.raises(ValueError, match="panels that show the plane need a PlaneTask, got TextTask"):
        LiveRun(Run(LanguageModel(TransformerConfig()), TextTask(["code"])), ("block",))
    assert PANELS["block"] is module.block
