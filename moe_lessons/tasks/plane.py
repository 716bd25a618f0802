"""Points in the plane, and the class of each: small enough to see every decision of a router.

A task draws labelled points; `PlaneClassifier` puts a mixture of experts (or a dense FFN) to work on them. A
point is a token, and where it lies is all that the router knows of it.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from moe_lessons.errors import check_choice, check_positive_int, check_top_k
from moe_lessons.knobs import TRAINING, KnobFields, idle_with
from moe_lessons.nn import MoE, Routing, is_moe, seeded, torch_threads
from moe_lessons.nn import routers as all_routers
from moe_lessons.nn.balancing import PRIORITIES

NUM_PROTOTYPES = 24
PLANE_TASKS = ("blobs", "voronoi", "waves", "checker", "uneven")


@dataclass(frozen=True)
class PlaneTask:
    """Labelled points in the square from -1 to 1.

    blobs:   24 Gaussian blobs, pressed into the square; every num_classes-th has the same class.
    voronoi: the cells of 24 prototypes (a point belongs to the nearest), with classes as for the blobs.
    waves:   each class is one of num_classes wavy stripes.
    checker: 6 × 6 squares in num_classes classes, no two neighbours alike (with 2 or more).
    uneven:  the blobs, of which the r-th is drawn with a probability proportional to 1/r (Zipf's law).

    `seed` places blobs and prototypes; points are drawn from a generator that the caller owns.

    >>> x, y = PlaneTask("blobs").batch(5, torch.Generator().manual_seed(0))
    >>> x.shape, y.shape
    (torch.Size([5, 2]), torch.Size([5]))
    """

    name: str = "blobs"
    num_classes: int = 8
    seed: int = 0

    def __post_init__(self):
        check_choice("name", self.name, PLANE_TASKS)
        check_positive_int("num_classes", self.num_classes)

    @cached_property
    def prototypes(self) -> Tensor:
        """(24, 2): the centres of the blobs or cells, kept apart by taking the farthest of ten candidates."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.rand(1, 2, generator=generator) * 1.8 - 0.9
        while len(chosen) < NUM_PROTOTYPES:
            candidates = torch.rand(10, 2, generator=generator) * 1.8 - 0.9
            farthest = torch.cdist(candidates, chosen).min(dim=1).values.argmax()
            chosen = torch.cat([chosen, candidates[farthest][None]])
        return chosen

    def labels(self, x: Tensor) -> Tensor:
        """The class of each point: x (T, 2) -> (T,). For blobs, of the nearest centre."""
        if self.name in ("blobs", "uneven", "voronoi"):
            return torch.cdist(x, self.prototypes).argmin(dim=1) % self.num_classes
        if self.name == "waves":
            height = x[:, 1] + 0.25 * torch.sin(2 * torch.pi * x[:, 0])  # -1.25 to 1.25
            return ((height + 1.25) / 2.5 * self.num_classes).long().clamp(0, self.num_classes - 1)
        column, row = ((x + 1) / 2 * 6).long().clamp(0, 5).unbind(dim=1)  # 6 × 6 squares
        step = 2 if self.num_classes == 3 else 3  # from one row to the next: not a multiple of num_classes
        return (column + step * row) % self.num_classes

    def batch(self, num_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`num_points` (T) points and their classes: x (T, 2), y (T,)."""
        if self.name in ("blobs", "uneven"):
            if self.name == "blobs":
                blob = torch.randint(NUM_PROTOTYPES, (num_points,), generator=generator)
            else:
                frequency = 1 / torch.arange(1.0, NUM_PROTOTYPES + 1)
                blob = torch.multinomial(frequency, num_points, replacement=True, generator=generator)
            x = self.prototypes[blob] + 0.08 * torch.randn(num_points, 2, generator=generator)
            return x.clamp(-1, 1), blob % self.num_classes
        x = torch.rand(num_points, 2, generator=generator) * 2 - 1
        return x, self.labels(x)


def grid(resolution: int) -> Tensor:
    """(resolution², 2): the points of a regular grid over the square, row by row from the bottom left."""
    ticks = torch.linspace(-1, 1, resolution)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([x.reshape(-1), y.reshape(-1)], dim=1)


class PlaneClassifier(nn.Module):
    """One block of a transformer without attention: embed the point, add what the block says, read off the class.

    h = embed(x); logits = head(h + block(h)).  x (T, 2) -> logits (T, num_classes) and the routings of its
    mixtures: one `Routing`, or none where `block` is a dense FFN.

    `block` is an `MoE`, a `FeedForward`, or any module that maps (T, D) to (T, D) or to that and a `Routing`.

    >>> from moe_lessons.nn import MoE
    >>> logits, routings = PlaneClassifier(MoE(16, 8, num_experts=8, top_k=2), num_classes=8)(torch.zeros(5, 2))
    >>> logits.shape, len(routings)
    (torch.Size([5, 8]), 1)
    """

    def __init__(self, block: nn.Module, num_classes: int, input_scale: float = 3.0):
        super().__init__()
        self.input_scale = input_scale
        self.embed = nn.Linear(2, block.d_model)
        self.block = block
        self.head = nn.Linear(block.d_model, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, list]:
        hidden = self.embed(x * self.input_scale)  # (T, D)
        out = self.block(hidden)
        y, routings = (out[0], [out[1]]) if isinstance(out, tuple) else (out, [])
        return self.head(hidden + y), routings

    @torch.no_grad()
    def start_router_at(self, prototypes: Tensor, sharpness: float = 4.0) -> None:
        """Set the router so that each point goes first to the expert of the nearest prototype (E, 2).

        -|x - c|² = 2 c·x - |c|² - |x|², and |x|² is the same for all experts: a linear router can say it exactly,
        through the embedding h = M·(x, 1). `sharpness` multiplies the logits.
        """
        embedding = torch.cat([self.embed.weight * self.input_scale, self.embed.bias[:, None]], dim=1)  # M (D, 3)
        target = torch.cat([2 * prototypes, -prototypes.square().sum(dim=1, keepdim=True)], dim=1)  # (E, 3)
        self.block.router.weight.copy_(sharpness * target.to(embedding) @ torch.linalg.pinv(embedding))


def spread_prototypes(task: PlaneTask, num: int, seed: int = 0) -> Tensor:
    """(num, 2): prototypes that share the points of a task about evenly (20 rounds of k-means)."""
    points, _ = task.batch(1024, torch.Generator().manual_seed(seed))
    centres = points[:num].clone()
    for _ in range(20):
        nearest = torch.cdist(points, centres).argmin(dim=1)
        for i in nearest.unique():
            centres[i] = points[nearest == i].mean(dim=0)
    return centres


D_MODEL, NUM_CLASSES = 16, 8
# how the router starts: the sharpness of a router that shares the points evenly, or None for torch's own start
ROUTER_STARTS = {"spread": 4.0, "soft spread": 1.0, "random": None}
# A hash has nothing to learn from a point, and Gaussian noise is 'top-k' with the knob turned on.
ROUTERS = {name: make for name, make in all_routers.ROUTERS.items() if name not in ("hash", "gaussian noise")}


@dataclass(frozen=True)
class PlaneSetting(KnobFields):
    """Everything that can be set about a mixture of experts in the plane, with bad values refused.

    Some need a new model: task, num_experts (E), top_k (K), d_ff (F), router (a name of `ROUTERS`), capacity_priority
    (see `nn.apply_capacity`), and router_start: 'spread' gives each expert about an even share of the points and sure
    decisions, 'soft spread' the same shares and unsure ones, 'random' is torch's own start, which leaves some experts
    without any point from the beginning. The router's clean logits start the same whichever router it is.
    The others may change while it trains: see `training.Knobs`.
    """

    task: str = "checker"
    num_experts: int = 8
    top_k: int = 2
    d_ff: int = 4
    router_start: str = "spread"
    router: str = "top-k"
    capacity_priority: str = "order"
    _: KW_ONLY
    lr: float = 0.02
    router_aux_loss_coef: float = 0.02  # the other knobs are off: see `knobs.KnobFields`

    def __post_init__(self):
        check_choice("task", self.task, PLANE_TASKS)
        check_positive_int("num_experts", self.num_experts)
        check_top_k(self.top_k, self.num_experts)
        check_positive_int("d_ff", self.d_ff)
        check_choice("router_start", self.router_start, ROUTER_STARTS)
        check_choice("router", self.router, ROUTERS)
        check_choice("capacity_priority", self.capacity_priority, PRIORITIES)
        idle = idle_with(self.router)
        for name, knob in TRAINING.items():
            value = knob.check(getattr(self, name))
            if knob.loss is None and name in idle and value != knob.off:  # a loss without use does no harm
                raise ValueError(f"{name} must be {knob.off} where the router is {self.router!r}, got {value!r}")


# An unsure router, one expert for each point, nothing that balances: some experts win early, and the others starve.
_COLLAPSE = PlaneSetting("voronoi", top_k=1, d_ff=8, router_start="soft spread", lr=0.01, router_aux_loss_coef=0.0)

PRESETS = {
    "healthy": PlaneSetting(),
    "collapse": _COLLAPSE,
    "rescued": replace(_COLLAPSE, router_aux_loss_coef=1.0),
    "too much balance": replace(_COLLAPSE, router_aux_loss_coef=10.0),
    "noise": replace(_COLLAPSE, noise_std=1.0),
    "capacity": replace(_COLLAPSE, capacity_factor=1.25),
    "k = E": replace(_COLLAPSE, top_k=8),
    "one expert": replace(_COLLAPSE, num_experts=1),
}

# what can be put on the collapse, each with a strength that shows what it does
REMEDIES: dict[str, dict] = {
    "nothing": {},
    "Gaussian noise": {"noise_std": 1.0},
    "learned noise": {"router": "learned noise"},
    "jitter": {"jitter_noise": 0.1},
    "top-2": {"top_k": 2},
    "capacity": {"capacity_factor": 1.25},
    "auxiliary loss": {"router_aux_loss_coef": 0.1},
    "z-loss": {"router_z_loss_coef": 0.01},
    "bias update": {"router": "sigmoid", "expert_bias_rate": 0.01},
    "expert choice": {"router": "expert choice"},
}


def remedy_setting(*names: str, base: PlaneSetting = _COLLAPSE, **fields) -> PlaneSetting:
    """`base` with one or more `REMEDIES` put on it, then `fields`. ValueError where two want one field differently.

    >>> remedy_setting("top-2", "capacity", capacity_factor=1.0).capacity_factor
    1.0
    """
    merged = {}
    for name in names:
        for field, value in REMEDIES[check_choice("remedy", name, REMEDIES)].items():
            if merged.setdefault(field, value) != value:
                asked = f"{merged[field]!r} and {value!r}"
                raise ValueError(f"remedies must not want different values of {field}, got {asked}")
    return replace(base, **merged | fields)


@torch_threads(1)  # at these sizes a second thread only waits; and the same numbers whatever the setting outside
def plane_model(
    setting: PlaneSetting, seed: int = 0, block: Callable[..., nn.Module] | None = None
) -> tuple[PlaneClassifier, PlaneTask]:
    """The classifier and the task of a setting, both from `seed`.

    block: a class of your own, called as block(d_model=…, d_ff=…, num_experts=…, top_k=…); it keeps these four as
    attributes and its experts in `experts`, and its forward maps x (T, D) to y (T, D) and a `Routing`. Where it has
    no `router.weight` (E, D), it starts as you wrote it. None: our `MoE`, with the router that the setting names.
    """
    task = PlaneTask(setting.task, NUM_CLASSES, seed)
    sizes = {"d_model": D_MODEL, "d_ff": setting.d_ff, "num_experts": setting.num_experts, "top_k": setting.top_k}
    with seeded(seed):
        if block is None:
            router = ROUTERS[setting.router](D_MODEL, setting.num_experts, setting.top_k)
            moe = MoE(**sizes, router=router, capacity_priority=setting.capacity_priority)
            model = PlaneClassifier(moe, NUM_CLASSES)
        else:
            model = PlaneClassifier(check_block(make_block(block, sizes), sizes), NUM_CLASSES)
    sharpness = ROUTER_STARTS[setting.router_start]
    weight = getattr(getattr(model.block, "router", None), "weight", None)
    if sharpness is not None and weight is not None and weight.shape == (setting.num_experts, D_MODEL):
        model.start_router_at(spread_prototypes(task, setting.num_experts, seed), sharpness)
    return model, task


def make_block(block: Callable[..., nn.Module], sizes: dict[str, int]) -> nn.Module:
    """Call a learner's class, or raise ValueError if it is no class."""
    if isinstance(block, nn.Module) or not callable(block):
        raise ValueError(f"block must be a class called with {', '.join(sizes)}, got {type(block).__name__}")
    return block(**sizes)


def check_block(block: nn.Module, sizes: dict[str, int]) -> nn.Module:
    """Return a learner's mixture of experts if it keeps the contract for these sizes, else raise ValueError."""
    name = type(block).__name__
    if not is_moe(block):
        names = "d_model, d_ff, num_experts, top_k and experts"
        raise ValueError(f"block must have the attributes {names}, got {name} without all of them")
    for size, value in sizes.items():
        if getattr(block, size) != value:
            raise ValueError(f"block must keep {size} as given ({value}), got {getattr(block, size)!r} in {name}")
    if not isinstance(block.experts, nn.Module):
        kind = type(block.experts).__name__
        raise ValueError(f"block must keep its experts in a module such as nn.ModuleList, got a {kind} in {name}")
    x = torch.randn(5, block.d_model)
    given = x.clone()
    out = block(x)
    if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], Routing)):
        raise ValueError(f"block must return (y, Routing), got {type(out).__name__} from {name}")
    y, routing = out
    if y.shape != x.shape or not torch.isfinite(y).all() or not y.requires_grad:
        raise ValueError(f"block must return a finite y of the shape of x, with a gradient, got another from {name}")
    if not torch.equal(x, given):
        raise ValueError(f"block must leave x as it is, got it changed by {name}")
    wanted, got = (5, block.num_experts), tuple(routing.router_probs.shape)
    if got != wanted:
        raise ValueError(f"block must route 5 tokens with router_probs of shape {wanted}, got {got} from {name}")
    num_assignments = len(routing.expert_idx) + routing.dropped
    if num_assignments != 5 * block.top_k:
        raise ValueError(f"block must send 5 tokens to {block.top_k} experts each, got {num_assignments} assignments")
    return block
