"""Tasks in the plane: the same seed gives the same points, every label by its rule, and the model around a block."""

import math

import pytest
import torch

from moe_lessons.nn import FeedForward, MoE
from moe_lessons.tasks.plane import (
    PLANE_TASKS,
    PlaneClassifier,
    PlaneSetting,
    PlaneTask,
    grid,
    plane_model,
    spread_prototypes,
)

tasks = pytest.mark.parametrize("name", PLANE_TASKS)


def draw(task: PlaneTask, num_points: int = 500, seed: int = 0):
    return task.batch(num_points, torch.Generator().manual_seed(seed))


@tasks
@pytest.mark.parametrize("num_classes", [2, 8])
def test_points_lie_in_the_square_and_every_class_occurs(name, num_classes):
    x, y = draw(PlaneTask(name, num_classes))
    assert x.shape == (500, 2) and y.shape == (500,) and y.dtype == torch.int64
    assert x.abs().max() <= 1
    assert set(y.tolist()) == set(range(num_classes))


@tasks
def test_the_seed_decides(name):
    def same(a, b):
        return all(torch.equal(left, right) for left, right in zip(a, b))

    task, before = PlaneTask(name), torch.get_rng_state()
    assert same(draw(task, seed=1), draw(PlaneTask(name), seed=1))
    assert not same(draw(task, seed=1), draw(task, seed=2))
    placed = name in ("blobs", "voronoi")  # only these have something to place
    assert same(draw(task), draw(PlaneTask(name, seed=7))) != placed
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["voronoi", "waves", "checker"])
def test_batch_has_the_labels_of_its_points(name):
    task = PlaneTask(name, num_classes=5)
    x, y = draw(task)
    assert torch.equal(task.labels(x), y)


def test_most_points_of_a_blob_have_the_label_of_the_nearest_centre():
    task = PlaneTask("blobs")
    x, y = draw(task, 5000)
    assert (task.labels(x) == y).float().mean() > 0.9


def test_voronoi_by_the_loop():
    task = PlaneTask("voronoi", num_classes=5, seed=3)
    x, y = draw(task, 50)
    for point, label in zip(x.tolist(), y.tolist()):
        distances = [math.dist(point, centre) for centre in task.prototypes.tolist()]
        assert label == distances.index(min(distances)) % 5


def test_waves_by_hand():
    task = PlaneTask("waves", num_classes=4)  # stripes of height 2.5 / 4 from -1.25 to 1.25
    x = torch.tensor([[0.0, -1.0], [0.0, -0.1], [0.0, 0.1], [0.0, 1.0], [0.25, 0.5], [-0.25, 0.5]])
    assert task.labels(x).tolist() == [0, 1, 2, 3, 3, 2]
    assert task.labels(torch.tensor([[0.25, 1.0], [-0.25, -1.0]])).tolist() == [3, 0]


@pytest.mark.parametrize("num_classes", range(2, 9))
def test_no_two_neighbours_of_the_checker_are_alike(num_classes):
    centres = torch.tensor([[column, row] for row in range(6) for column in range(6)]) / 3 - 5 / 6
    board = PlaneTask("checker", num_classes).labels(centres).view(6, 6)
    assert not (board[1:] == board[:-1]).any() and not (board[:, 1:] == board[:, :-1]).any()


@tasks
def test_corners_have_a_label(name):
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    assert set(PlaneTask(name).labels(corners).tolist()) <= set(range(8))


def test_grid_goes_row_by_row_from_the_bottom_left():
    assert grid(3).tolist() == [[x, y] for y in (-1, 0, 1) for x in (-1, 0, 1)]


@pytest.mark.parametrize("top_k", [1, 2])
def test_classifier_is_embed_block_head(top_k, device):
    model = PlaneClassifier(MoE(6, 4, 5, top_k), num_classes=3, input_scale=2.0).to(device)
    x = torch.randn(7, 2, device=device)
    logits, (routing,) = model(x)
    hidden = model.embed(2 * x)
    torch.testing.assert_close(logits, model.head(hidden + model.block(hidden)[0]))
    assert logits.shape == (7, 3) and (routing.num_tokens, routing.num_experts) == (7, 5)


def test_classifier_takes_a_dense_block():
    logits, routings = PlaneClassifier(FeedForward(6, 4), num_classes=3)(torch.randn(7, 2))
    assert logits.shape == (7, 3) and routings == []


@pytest.mark.parametrize("seed", range(5))
def test_start_router_at_sends_each_point_to_its_nearest_prototype(seed):
    torch.manual_seed(seed)
    model = PlaneClassifier(MoE(8, 4, 6, 1), num_classes=3).double()
    prototypes, x = torch.rand(6, 2).double() * 2 - 1, torch.rand(300, 2).double() * 2 - 1
    model.start_router_at(prototypes)
    _, (routing,) = model(x)
    assert torch.equal(routing.expert_idx, torch.cdist(x, prototypes).argmin(dim=1))


@tasks
def test_spread_prototypes_share_the_points(name):
    task = PlaneTask(name)
    prototypes = spread_prototypes(task, 8)
    nearest = torch.cdist(draw(task, 2000, seed=5)[0], prototypes).argmin(dim=1)
    shares = torch.bincount(nearest, minlength=8) / 2000
    assert shares.min() > 0.03 and shares.max() < 0.3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "spiral"}, "name must be one of 'blobs', 'voronoi', 'waves', 'checker', got 'spiral'"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, got 0"),
        ({"num_classes": 2.0}, r"num_classes must be a whole number of at least 1, got 2\.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        PlaneTask(**arguments)


@pytest.mark.parametrize("router_start", ["spread", "soft spread"])
@pytest.mark.parametrize("name", PLANE_TASKS)
def test_a_spread_router_starts_with_a_territory_and_a_load_for_every_expert(name, router_start):
    for seed in range(5):
        model, task = plane_model(PlaneSetting(task=name, router_start=router_start, top_k=1), seed)
        _, (everywhere,) = model(grid(48))
        assert everywhere.router_probs.argmax(dim=-1).unique().numel() == 8
        x, _ = task.batch(2000, torch.Generator().manual_seed(seed))
        share = model(x)[1][0].tokens_per_expert / 2000
        assert share.min() > 0.04 and share.max() < 0.25  # an even share is 0.125
