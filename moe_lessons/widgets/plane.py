"""What a router makes of the plane, read while a model trains."""

from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from moe_lessons.nn import Routing, evaluating, muted, torch_threads
from moe_lessons.tasks import PlaneClassifier, PlaneTask, grid

RESOLUTION = 25  # points of the grid on which the router is read, in each direction: borders are exact in between
NUM_TOKENS = 32  # whose routing is shown


class Tokens(NamedTuple):
    """Points as they were drawn, their classes, and the order in which they are shown: by class."""

    points: Tensor  # (T, 2)
    classes: Tensor  # (T,)
    order: Tensor  # (T,)


class Plane(NamedTuple):
    """What the router and the model make of the plane, without noise: see `plots.panels.shares` and `…block`."""

    points: Tensor  # (T, 2): the tokens that are shown
    scores: Tensor  # (R, R, E): log-probabilities of the router on a `tasks.grid`
    routing: Routing  # of the tokens
    correct: Tensor  # (T,): whether the model gives a token its class
    hidden: Tensor  # (T, D): what goes into the block
    out: Tensor  # (T, D): what comes out of it


def draw_tokens(task: PlaneTask, seed: int) -> Tokens:
    """The tokens that a view shows."""
    points, classes = task.batch(NUM_TOKENS, torch.Generator().manual_seed(seed + 1_000_001))
    return Tokens(points, classes, classes.argsort(stable=True))


@torch.no_grad()
@torch_threads(1)  # a second thread only waits
def route(model: PlaneClassifier, points: Tensor) -> tuple[Tensor, Routing, Tensor, Tensor]:
    """The model's logits on points (T, 2), their routing, without noise, and what goes into and out of the block."""
    seen: list[Tensor] = []
    hook = model.block.register_forward_hook(lambda block, inputs, outputs: seen.extend((inputs[0], outputs[0])))
    try:
        with evaluating(model):
            logits, (routing,) = model(points)
    finally:
        hook.remove()
    return logits, routing, *seen


def read_plane(model: PlaneClassifier, tokens: Tokens, without: int | None = None) -> Plane:
    """without: an expert that is muted for the tokens."""
    scores = route(model, grid(RESOLUTION))[1].router_probs.clamp_min(1e-30).log()
    with nullcontext() if without is None else muted(model.block.experts, without):
        logits, routing, hidden, out = route(model, tokens.points)  # as drawn, or a capacity would always drop the
    order = tokens.order  # last classes
    place = order.argsort()
    routing = replace(
        routing,
        router_logits=routing.router_logits[order],
        router_probs=routing.router_probs[order],
        token_idx=place[routing.token_idx],
        dropped_token_idx=place[routing.dropped_token_idx],
    )
    correct = logits.argmax(dim=-1)[order] == tokens.classes[order]
    scores = scores.view(RESOLUTION, RESOLUTION, -1)
    return Plane(tokens.points[order], scores, routing, correct, hidden[order], out[order])
