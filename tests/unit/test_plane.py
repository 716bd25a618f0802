"""Tasks in the plane: the same seed gives the same points, every label by its rule, and the model around a block."""

import math
from dataclasses import replace

import pytest
import torch
from live_tools import written

from moe_lessons.nn import FeedForward, MoE
from moe_lessons.tasks.plane import PLANE_TASKS, PlaneClassifier, PlaneTask, grid, read_points
from moe_lessons.training import BALANCING_METHODS, PRESETS, PlaneSetting, balancing_setting, plane_model
from moe_lessons.training.settings import PLANE_ROUTERS

tasks = pytest.mark.parametrize("name", PLANE_TASKS)


def draw(task: PlaneTask, num_points: int = 500, seed: int = 0):
    return task.batch(num_points, torch.Generator().manual_seed(seed))


@tasks
def test_points_lie_in_the_square_every_class_occurs_and_the_seed_decides(name):
    before, task = torch.get_rng_state(), PlaneTask(name)
    x, y = draw(task, 5000)
    assert x.shape == (5000, 2) and y.shape == (5000,) and y.dtype == torch.int64
    assert x.abs().max() <= 1 and set(y.tolist()) == set(range(8))
    assert (task.labels(x) == y).float().mean() > (0.9 if name in ("blobs", "uneven") else 0.9999)  # blobs overlap
    assert torch.equal(x, draw(PlaneTask(name), 5000)[0]) and not torch.equal(x, draw(task, 5000, seed=2)[0])
    placed = name in ("blobs", "uneven", "voronoi")  # only these have something to place
    assert all(map(torch.equal, (x, y), draw(PlaneTask(name, seed=7), 5000))) != placed
    assert torch.equal(torch.get_rng_state(), before)


def test_uneven_blobs_voronoi_waves_and_the_checker_by_their_rules():
    _, y = draw(PlaneTask("uneven"), 50_000)
    shares = torch.tensor([1 / rank for rank in range(1, 25)]).view(3, 8).sum(dim=0)  # every eighth blob has a class
    expected = 50_000 * shares / shares.sum()
    assert ((torch.bincount(y) - expected).abs() < 5 * expected.sqrt()).all()  # five standard deviations
    task = PlaneTask("voronoi", seed=3)
    for point, label in zip(*(part.tolist() for part in draw(task, 50))):
        distances = [math.dist(point, centre) for centre in task.prototypes.tolist()]
        assert label == distances.index(min(distances)) % 8
    task = PlaneTask("waves")  # stripes of height 2.5 / 8 from -1.25 to 1.25
    x = torch.tensor([[0.0, -1.0], [0.0, -0.1], [0.0, 0.1], [0.0, 1.0], [0.25, 0.5], [-0.25, 0.5]])
    assert task.labels(x).tolist() == [0, 3, 4, 7, 6, 4]
    board = PlaneTask("checker").labels(grid(6) * 5 / 6).view(6, 6)  # the centres of the squares
    assert not (board[1:] == board[:-1]).any() and not (board[:, 1:] == board[:, :-1]).any()
    assert grid(3).tolist() == [[x, y] for y in (-1, 0, 1) for x in (-1, 0, 1)]


def test_own_points_take_the_place_of_the_task_each_draw_is_one_of_them_moved_a_little():
    given = [(-1, -1, 0), (1, 1, 7), (0.25, -0.5, 3), (-0.37, 0.91, 3)]
    places, classes = read_points(written(*given))
    assert torch.allclose(torch.cat([places, classes[:, None]], dim=1), torch.tensor(given))
    task = PlaneTask("uneven", 3, written(*given))
    x, y = draw(task, 4000)
    away, near = torch.cdist(x, places).min(dim=1)
    assert torch.equal(classes[near], y) and torch.equal(task.labels(x), y) and x.abs().max() == 1
    assert away.square()[y == 3].mean().sqrt() == pytest.approx(0.03 * 2**0.5, rel=0.05)  # in two directions
    assert (near.bincount() / 4000 - 0.25).abs().max() < 0.03
    assert torch.equal(task.class_map.flatten(), classes[torch.cdist(grid(96), places).argmin(dim=1)])
    assert read_points("")[0].shape == (0, 2)


@pytest.mark.parametrize("top_k", [1, 2])
def test_classifier_is_embed_block_head(top_k, device):
    model = PlaneClassifier(MoE(6, 4, 5, top_k), num_classes=3).to(device)
    x = torch.randn(7, 2, device=device)
    logits, (routing,) = model(x)
    hidden = model.embed(3 * x)
    torch.testing.assert_close(logits, model.head(hidden + model.block(hidden)[0]))
    assert logits.shape == (7, 3) and (routing.num_tokens, routing.num_experts) == (7, 5)
    logits, routings = PlaneClassifier(FeedForward(6, 4), num_classes=3)(torch.randn(7, 2))
    assert logits.shape == (7, 3) and routings == []


def test_start_router_at_sends_each_point_to_its_nearest_prototype():
    model = PlaneClassifier(MoE(8, 4, 6, 1), num_classes=3).double()
    prototypes, x = torch.rand(6, 2).double() * 2 - 1, torch.rand(300, 2).double() * 2 - 1
    model.start_router_at(prototypes)
    _, (routing,) = model(x)
    assert torch.equal(routing.expert_idx, torch.cdist(x, prototypes).argmin(dim=1))


@pytest.mark.parametrize("router_start", ["spread", "soft spread"])
@tasks
def test_a_spread_router_starts_with_a_territory_and_a_load_for_every_expert(name, router_start):
    least, most = (0.01, 0.5) if name == "uneven" else (0.04, 0.25)  # an even share is 0.125
    for seed in range(5):
        model, task = plane_model(PlaneSetting(task=name, router_start=router_start, top_k=1), seed)
        _, (everywhere,) = model(grid(48))
        assert everywhere.router_probs.argmax(dim=-1).unique().numel() == 8
        x, _ = task.batch(2000, torch.Generator().manual_seed(seed))
        share = model(x)[1][0].tokens_per_expert / 2000
        assert share.min() > least and share.max() < most


@pytest.mark.parametrize("router_start", ["spread", "soft spread", "random"])
@pytest.mark.parametrize("router", PLANE_ROUTERS)
def test_whichever_router_it_is_all_clean_logits_and_weights_start_the_same(router, router_start):
    setting = PlaneSetting(router_start=router_start)
    (plain, _), (model, _) = plane_model(setting, seed=3), plane_model(replace(setting, router=router), seed=3)
    x = torch.randn(50, 2)
    _, (expected,), (_, (got,)) = *plain.eval()(x), model.eval()(x)
    assert torch.equal(got.router_logits, expected.router_logits)
    weights = dict(model.named_parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in plain.named_parameters())


def test_a_method_changes_the_collapse_by_its_fields_alone_and_several_are_merged():
    assert balancing_setting() == balancing_setting("no balancing") == PRESETS["collapse"]
    for name, fields in BALANCING_METHODS.items():
        assert balancing_setting(name) == balancing_setting(name, name) == replace(PRESETS["collapse"], **fields)
    assert len({balancing_setting(name) for name in BALANCING_METHODS}) == len(BALANCING_METHODS) == 10
    base = PRESETS["healthy"]
    both = balancing_setting("capacity", "auxiliary loss", base=base, lr=0.5, capacity_factor=2.0)
    assert both == replace(base, **BALANCING_METHODS["auxiliary loss"], lr=0.5, capacity_factor=2.0)
