"""Readings of the plane while a model trains."""

from typing import NamedTuple

import torch
from torch import Tensor

from moe_lessons.nn import Routing, evaluating, muted, torch_threads
from moe_lessons.tasks import PlaneClassifier, grid
from moe_lessons.training import Run, load_share

RESOLUTION = 25  # points of the grid on which the router is read, in each direction: borders are exact in between
SHOWN = 1_000_001  # a part of the seed of the tokens
NUM_TOKENS = 32  # whose routing is shown


class Plane(NamedTuple):
    """The decisions of the router and the model over the plane, without noise."""

    points: Tensor  # (T, 2): the tokens that are shown, sorted by class
    classes: Tensor  # (T,)
    scores: Tensor  # (R, R, E): log-probabilities of the router on a `tasks.grid`
    routing: Routing  # of the tokens
    correct: Tensor  # (T,): whether the model gives a token its class
    hidden: Tensor  # (T, D): what goes into the block
    out: Tensor  # (T, D): what comes out of it


@torch.no_grad()
@torch_threads(1)  # a second thread only waits
def route(model: PlaneClassifier, points: Tensor) -> tuple[Tensor, Routing, Tensor, Tensor]:
    """The model's logits on points (T, 2), their routing, without noise, and what goes into and out of the block."""
    seen: list[Tensor] = []
    hook = model.block.register_forward_hook(lambda block, inputs, outputs: seen.extend((inputs[0], outputs[0])))
    try:
        with evaluating(model):
            logits, (routing,) = model(points.to(next(model.parameters()).device))
    finally:
        hook.remove()
    return logits, routing, *seen


def clean_load(run: Run, num_points: int) -> list[float]:
    """The load on held-out points, without noise."""
    points, _ = run.held_out(num_points)
    return load_share(route(run.model, points)[1]).tolist()


def read_plane(run: Run, without: int | None = None) -> Plane:
    """Read a run of a `PlaneTask`. without: an expert that is muted for the tokens."""
    model, generator = run.model, torch.Generator().manual_seed(run.seed + SHOWN)
    points, classes = run.task.batch(NUM_TOKENS, generator)
    scores = route(model, grid(RESOLUTION))[1].router_probs.clamp_min(1e-30).log()
    shown = model if without is None else muted(model, model.block, without)
    logits, routing, hidden, out = route(shown, points)  # as drawn, or a capacity would always drop the last
    order = classes.argsort(stable=True)
    correct, scores = logits.argmax(dim=-1).cpu() == classes, scores.cpu().view(RESOLUTION, RESOLUTION, -1)
    points, classes, correct, hidden, out = (part.cpu()[order] for part in (points, classes, correct, hidden, out))
    return Plane(points, classes, scores, routing.of_tokens(order.to(logits.device)), correct, hidden, out)
