"""Export what a page needs to train: the course's own step, reading and batch, as ONNX graphs that torch traces.

A page gives the random numbers, keeps `state`, and runs the graphs; it knows nothing of routers, losses or updates.
"""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from onnxscript.optimizer import fold_constants, inline, remove_unused_nodes
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.func import functional_call, functionalize, grad_and_value
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from moe_lessons.nn import LanguageModel, Routing, is_moe, torch_threads
from moe_lessons.nn.dispatch import weight_matrix
from moe_lessons.tasks import Facts, PlaneTask, grid
from moe_lessons.tasks.facts import NOT_SCORED, NUMBER_DIGITS, asked
from moe_lessons.tasks.plane import NUM_PROTOTYPES
from moe_lessons.training import Run, load_share
from moe_lessons.training.knobs import KNOBS
from moe_lessons.widgets.plane_readings import NUM_TOKENS, RESOLUTION

LEFT_OUT = {  # knobs that no graph carries, and why
    "capacity_factor": "a capacity drops tokens, so that sizes depend on values, which a graph cannot say",
}
STEP_KNOBS = tuple(name for name in KNOBS if name not in LEFT_OUT)  # in this order they are an input of a graph
DRAWN = {"jitter_noise": "uniform", "noise_std": "normal"}  # knobs that scale random numbers, as drawn: their inputs
NUM_MEASURED = 256  # held-out points on which a reading measures loss and accuracy
NUM_READ = 100  # entries of a phone book that one reading reads: each book is so many, or a multiple
BETA1, BETA2 = 0.9, 0.999  # of torch's AdamW
EPSILON = 1e-8  # of torch's AdamW


@dataclass(frozen=True)
class PlacedTask(PlaneTask):
    """A task whose centres are given: those of any seed."""

    centres: Tensor | None = None

    @property
    def prototypes(self) -> Tensor:
        return self.centres


class ExpertBias:
    """As much of a router as an update may move: the bias of its experts (E,), from zero."""

    def __init__(self, num_experts: int):
        self.expert_bias = torch.zeros(num_experts)


class Trained:
    """Runs that train in step, as functions of one vector `state`: the weights of all models (P,), Adam's two averages
    of their gradients (P,) and (P,), and the bias of the experts (E,) where a router has one.

    runs: names and `Run`s. The learning rate of a step is one of the knobs: `lr_scale` is for who gives it."""

    def __init__(self, runs: dict[str, Run], num_bias: int = 0):
        self.models = {name: copy.deepcopy(run.model) for name, run in runs.items()}
        first = next(iter(runs.values()))
        self.batch_size, self.max_grad_norm = first.batch_size, first.max_grad_norm
        for moe in [module for model in self.models.values() for module in model.modules() if is_moe(module)]:
            moe.dispatch = "dense"  # others ask for values
        self.shapes = [p.shape for model in self.models.values() for p in model.parameters()]
        self.num_weights, self.num_bias = sum(map(math.prod, self.shapes)), num_bias  # P, and E or 0
        self.size = 3 * self.num_weights + num_bias

    def start(self) -> Tensor:
        """Give the state before the first step: (3·P,) or (3·P + E,)."""
        weights = [p.detach().flatten() for model in self.models.values() for p in model.parameters()]
        return torch.cat([*weights, torch.zeros(self.size - self.num_weights)])

    def parts(self, state: Tensor) -> list[Tensor]:
        """Split a state: weights, the two averages, the bias of the experts (which may be empty)."""
        return list(state.split([self.num_weights] * 3 + [self.num_bias]))

    def named(self, weights: Tensor, bias: Tensor) -> list[dict[str, Tensor]]:
        """Give each model's tensors by their names, without a gradient where frozen: weights (P,), bias (E,)."""
        pieces = iter(weights.split([math.prod(shape) for shape in self.shapes]))
        found = [{n: (next(pieces).view(p.shape), p) for n, p in m.named_parameters()} for m in self.models.values()]
        return [{n: w if p.requires_grad else w.detach() for n, (w, p) in tensors.items()} for tensors in found]

    def learn(self, state, count, x, y, knobs, seen=lambda routings: ()) -> tuple:
        """Train one step, as `Run.step` does, but for the bias of the experts.

        state: see above; count (); a batch x and y; knobs: as `STEP_KNOBS`. Return the next weights and averages
        (3·P,), the loss of each model (nats), the norm of the gradient, and what is `seen` of the routings."""
        value = dict(zip(STEP_KNOBS, knobs.unbind(0)))
        weights, mean, square, bias = self.parts(state)

        def loss_of(weights: Tensor):
            losses = []
            total = 0.0
            routings = []
            for model, tensors in zip(self.models.values(), self.named(weights, bias)):
                logits, its = functional_call(model, tensors, (x,))
                losses.append(F.cross_entropy(logits.flatten(0, -2), y.flatten(), ignore_index=NOT_SCORED))
                total = total + losses[-1]
                for routing in its:
                    for name, knob in KNOBS.items():
                        total = total + (value[name] * knob.auxiliary_loss(routing) if knob.auxiliary_loss else 0.0)
                routings += its
            return total, (torch.stack(losses), seen(routings))

        self._training(True)
        gradient, (_, (losses, more)) = grad_and_value(loss_of, has_aux=True)(weights)
        norm = gradient.norm()
        if self.max_grad_norm is not None:  # as `clip_grads_with_norm_` does
            gradient = gradient * (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        mean = BETA1 * mean + (1 - BETA1) * gradient  # Adam (arXiv:1412.6980, algorithm 1)
        square = BETA2 * square + (1 - BETA2) * gradient * gradient
        size = (square / (1 - BETA2**count)).sqrt() + EPSILON
        weights = weights - value["lr"] * (mean / (1 - BETA1**count)) / size
        return torch.cat([weights, mean, square]), losses, norm, *more

    def _training(self, is_training: bool) -> None:
        for model in self.models.values():
            model.train(is_training)


class TrainedPlane(Trained):
    """Runs in the plane, as `plane_runs` makes them: the first with a router such as `TopKRouter`. ValueError for
    knobs and schedules that no graph can carry."""

    def __init__(self, runs: dict[str, Run]):
        main = next(iter(runs.values()))
        for name, run in runs.items():
            if (run.warmup_steps, run.decay_steps, run.max_grad_norm) != (0, None, None):
                raise ValueError(f"runs must have a constant rate and no max_grad_norm, got {name} with one")
        for name, why in LEFT_OUT.items():
            if getattr(main.knobs, name) != KNOBS[name].off:
                value = getattr(main.knobs, name)
                raise ValueError(f"{name} must be {KNOBS[name].off} for an export, since {why}, got {value:g}")
        self.num_experts, self.d_model = main.num_experts[0], main.model.block.d_model
        has_bias = hasattr(main.model.block.router, "expert_bias")
        super().__init__(runs, self.num_experts if has_bias else 0)
        self.main = next(iter(self.models.values()))
        self.router = self.main.block.router
        for name in DRAWN:  # how large they are is an input: see `step`
            if KNOBS[name].needs(self.router):
                setattr(self.router, name, 1.0)
        attributes = [name for name in STEP_KNOBS if KNOBS[name].attribute and name not in DRAWN]
        modules = list(self.main.modules())
        acts_on = {name: [module for module in modules if KNOBS[name].needs(module)] for name in attributes}
        self.turned = {name: found for name, found in acts_on.items() if found}

    def named(self, weights: Tensor, bias: Tensor) -> list[dict[str, Tensor]]:
        found = super().named(weights, bias)
        found[0] |= {"block.router.expert_bias": bias} if self.num_bias else {}
        return found

    def step(self, state, count, x, y, normal, uniform, knobs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Train one step, as `Run.step` does.

        state: see `Trained`; count (); x (T, 2), y (T,); normal (T, E); uniform (T, D); knobs: as `STEP_KNOBS`. Return
        the next state, the loss of each model (nats), the norm of the gradient, and the load shares (E,)."""
        value = self.turn(knobs)
        self.router.draw_noise = lambda logits: normal * value["noise_std"]  # instead of torch's own random numbers
        self.router.draw_jitter = lambda x: 1 + value["jitter_noise"] * (2 * uniform - 1)
        learned, losses, norm, load, moves = self.learn(
            state, count, x, y, knobs, lambda routings: (load_share(routings[0]), self.moves(routings[0]))
        )
        bias = self.parts(state)[3] + sum(value[name] * move for name, move in moves.items())
        return torch.cat([learned, bias]), losses, norm, load

    def turn(self, knobs: Tensor) -> dict[str, Tensor]:
        """Name the values of the knobs, and set those that are attributes of modules."""
        value = dict(zip(STEP_KNOBS, knobs.unbind(0)))
        for name, modules in self.turned.items():
            for module in modules:
                setattr(module, name, value[name])
        return value

    def moves(self, routing: Routing) -> dict[str, Tensor]:
        """Say for each knob that updates the router how it moves the bias of the experts (E,) where it is 1."""
        moved = {}
        for name, knob in KNOBS.items():
            if knob.update and knob.needs(self.router):
                router = ExpertBias(self.num_experts)
                try:
                    knob.update(router, routing, 1.0)
                except AttributeError as error:
                    raise ValueError(f"{name} must move nothing but expert_bias in a graph, got {error}") from None
                moved[name] = router.expert_bias
        return moved

    def export(self, function: Callable[..., Sequence[Tensor]], inputs: dict[str, Tensor], outputs: tuple) -> bytes:
        """Make the graph of a function of this object; see `to_onnx`. ValueError for a knob that no graph carries."""
        try:
            return to_onnx(function, inputs, outputs)
        except RuntimeError as error:
            if not self.turned:
                raise
            names = ", ".join(self.turned)
            raise ValueError(f"{names} must be a number in formulas, or be named in LEFT_OUT, got a branch") from error

    def read(self, state, x, held_x, held_y, keep, knobs) -> tuple[Tensor, ...]:
        """Read the mixture and measure all models, without noise.

        x (T, 2); held_x (N, 2), held_y (N,); keep (E,): 0 for one that is muted. Return the router's log-probabilities
        on the grid (R, R, E); of the tokens its logits (T, E), its probabilities (T, E), the weight of each expert, 0
        where it does not serve (T, E), and the class that the model names (T,); the loss and the accuracy of each
        model; and the load shares (E,)."""
        weights, _, _, bias = self.parts(state)
        self._training(False)
        self.turn(knobs)
        first, *others = self.named(weights, bias)
        probs = functional_call(self.main, first, (grid(RESOLUTION),))[1][0].router_probs
        scores = probs.clamp_min(1e-30).log().view(RESOLUTION, RESOLUTION, -1)
        first["block.experts.down_proj"] = first["block.experts.down_proj"] * keep[:, None, None]  # as `nn.muted` does
        logits, (routing,) = functional_call(self.main, first, (x,))
        serves = weight_matrix(x, routing).T  # (T, E)
        losses, hits = [], []
        routings = []
        for model, tensors in zip(self.models.values(), [first, *others]):
            measured, its = functional_call(model, tensors, (held_x,))
            routings += its
            losses.append(F.cross_entropy(measured, held_y))
            hits.append((measured.argmax(dim=-1) == held_y).float().mean())
        named = logits.argmax(dim=-1).int()
        return (scores, routing.router_logits, routing.router_probs, serves, named, torch.stack(losses),
                torch.stack(hits), load_share(routings[0]))  # fmt: skip


class TrainedFacts(Trained):
    """A run that learns the `Facts` by heart, as `facts_runs` makes it, of whatever size its book is."""

    def __init__(self, run: Run):
        super().__init__({"model": run})
        self.model = self.models["model"]
        self.model.check_ids = lambda *_: None  # it looks at values

    def step(self, state, count, entries, knobs) -> tuple[Tensor, Tensor, Tensor]:
        """Train one step on entries (B, T + 1). Return the next state, the loss (1,) and the norm of the gradient."""
        return self.learn(state, count, *asked(entries), knobs)

    def read(self, state, entries) -> tuple[Tensor, Tensor]:
        """Give what the model answers for entries (N, T + 1), as bytes (N, digits), and the loss on them."""
        (x, y), (weights, *_, bias) = asked(entries), self.parts(state)
        self._training(False)
        logits, _ = functional_call(self.model, self.named(weights, bias)[0], (x,))
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=NOT_SCORED)
        return logits.argmax(dim=-1)[:, -NUMBER_DIGITS:].int(), loss


def export_step(runs: dict[str, Run]) -> bytes:
    """Make the graph of `TrainedPlane.step`. ValueError as there."""
    trained = TrainedPlane(runs)
    T = trained.batch_size
    inputs = {"state": trained.start(), "count": torch.tensor(1.0)}
    inputs |= {"x": torch.rand(T, 2), "y": torch.arange(T).int() % 8}
    inputs |= {"normal": torch.randn(T, trained.num_experts), "uniform": torch.rand(T, trained.d_model)}
    inputs |= {"knobs": torch.full((len(STEP_KNOBS),), 0.01)}
    outputs = "next", "losses", "norm", "load"
    return trained.export(lambda s, n, x, y, *rest: trained.step(s, n, x, y.long(), *rest), inputs, outputs)


def export_reading(runs: dict[str, Run]) -> bytes:
    """Make the graph of `TrainedPlane.read`. ValueError as there."""
    trained, N = TrainedPlane(runs), NUM_MEASURED
    inputs = {"state": trained.start(), "x": torch.rand(NUM_TOKENS, 2), "held_x": torch.rand(N, 2)}
    inputs |= {"held_y": torch.arange(N).int() % 8, "keep": torch.ones(trained.num_experts)}
    inputs |= {"knobs": torch.full((len(STEP_KNOBS),), 0.01)}
    outputs = "scores", "logits", "probs", "serves", "named", "measured", "accuracy", "clean"
    return trained.export(
        lambda s, x, hx, hy, keep, knobs: trained.read(s, x, hx, hy.long(), keep, knobs), inputs, outputs
    )


def export_facts_step(run: Run) -> bytes:
    """Make the graph of `TrainedFacts.step`."""
    trained = TrainedFacts(run)
    inputs = {"state": trained.start(), "count": torch.tensor(1.0), "entries": Facts(trained.batch_size).tokens.int()}
    inputs |= {"knobs": torch.full((len(STEP_KNOBS),), 0.01)}
    outputs = "next", "losses", "norm"
    return to_onnx(lambda s, n, entries, knobs: trained.step(s, n, entries.long(), knobs), inputs, outputs)


def export_facts_reading(run: Run) -> bytes:
    """Make the graph of `TrainedFacts.read`, of `NUM_READ` entries."""
    trained = TrainedFacts(run)
    inputs, outputs = {"state": trained.start(), "entries": Facts(NUM_READ).tokens.int()}, ("answers", "loss")
    return to_onnx(lambda s, entries: trained.read(s, entries.long()), inputs, outputs)


def export_batch(task: PlaneTask, num_points: int) -> bytes:
    """Make the graph of `PlaneTask.place`: random numbers (T, 2), blobs (T,) and prototypes (24, 2) -> x, y."""

    def place(drawn: Tensor, blob: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        placed = PlacedTask(task.name, centres=prototypes)
        x, y = placed.place(drawn, blob.long() if placed.has_blobs else None)
        return x, y.int()

    inputs = {"drawn": torch.rand(num_points, 2), "blob": (torch.arange(num_points) % NUM_PROTOTYPES).int()}
    return to_onnx(place, inputs | {"prototypes": task.prototypes}, ("x", "y"))


def export_text(model: LanguageModel, window: int) -> bytes:
    """Make the graph of what a causal language model of L layers of experts, chosen by logits, does with each of
    `window` bytes (T).

    Inputs: weights (P,) float16 and ids (T,) int32. Outputs of each layer: the router's probabilities (L, T, E), the
    experts that serve and their weights, first choices first (L, T, K); then all bytes that may come next, likeliest
    first, and their probabilities (T, V); and how much the bytes so far surprised on average, from the second on, in
    nats (T - 1,)."""
    copied, kept = copy.deepcopy(model).eval(), []
    copied.check_ids = lambda *_: None  # it looks at values
    for moe in filter(is_moe, copied.modules()):
        moe.dispatch = "dense"
        moe.register_forward_hook(lambda _, inputs, outputs: kept.append(outputs[1]))
    tensors = dict(copied.named_parameters())

    def read(weights: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        kept.clear()
        pieces, ids = weights.float().split([p.numel() for p in tensors.values()]), ids.long()
        given = {name: piece.view(p.shape) for (name, p), piece in zip(tensors.items(), pieces)}
        logits = functional_call(copied, given, (ids[None],))[0][0]  # (T, V)
        found = []
        for routing in kept:
            chosen = (v.view(routing.top_k, window).T for v in (routing.expert_idx.int(), routing.weight))  # (T, K)
            found.append((routing.router_probs, *chosen))
        probs, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        surprise = F.cross_entropy(logits[:-1], ids[1:], reduction="none").cumsum(0) / torch.arange(1, window)
        return *map(torch.stack, zip(*found)), order.int(), probs, surprise

    inputs = {"weights": torch.cat([p.detach().flatten() for p in tensors.values()]).half()}
    outputs = "probs", "experts", "serves", "bytes", "next", "surprise"
    return to_onnx(read, inputs | {"ids": torch.arange(window).int()}, outputs)


@torch_threads(1)
def to_onnx(function: Callable[..., Sequence[Tensor]], inputs: dict[str, Tensor], outputs: tuple[str, ...]) -> bytes:
    """Make an ONNX graph of a function that computes with tensors alone: inputs give names, shapes and types."""
    table, aten = dict(core_aten_decompositions()), torch.ops.aten
    # ONNX has no memory that is not set, and no distances
    table[aten.empty_permuted.default] = lambda size, order, dtype=None, **_: aten.full.default(size, 0.0, dtype=dtype)
    table[aten._cdist_forward.default] = lambda a, b, p, mode: (a[:, None] - b).square().sum(dim=-1).sqrt()
    table[aten.roll.default] = rolled
    args = tuple(inputs.values())
    with quiet(), sdpa_kernel(SDPBackend.MATH):
        graph = make_fx(functionalize(function), decomposition_table=table, tracing_mode="real")(*args)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        # not optimized: torch's rules take a number near zero for zero, and drop Adam's epsilon
        program = torch.onnx.export(graph, args, dynamo=True, optimize=False, verbose=False, input_names=list(inputs),
                                    output_names=list(outputs))  # fmt: skip
        for tidy in (inline, fold_constants, remove_unused_nodes):
            tidy(program.model)
    return program.model_proto.SerializeToString()


def rolled(x: Tensor, shifts: Sequence[int], dims: Sequence[int]) -> Tensor:
    """Do what `roll` does along one dimension, by two slices: a gather, as torch has it, is slow."""
    (shift,), (dim,) = shifts, dims
    size = x.shape[dim]
    return torch.cat(x.split([-shift % size, shift % size], dim)[::-1], dim)


@contextmanager
def quiet() -> Iterator[None]:
    """Within it nothing is logged or warned of: torch's export says much that nobody asked for, and slowly."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
