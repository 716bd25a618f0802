"""Settings of an MoE in the plane: what can be set, presets, balancing methods, models; models of facts and text."""

import json
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from moe_lessons.nn import LanguageModel, MoE, Routing, TransformerConfig, with_baselines
from moe_lessons.nn import routing as all_routers
from moe_lessons.nn.seeding import seeded, torch_threads
from moe_lessons.support.errors import check_choice, check_device, check_positive_int, check_top_k
from moe_lessons.tasks import TextTask
from moe_lessons.tasks.facts import Facts
from moe_lessons.tasks.plane import NUM_CLASSES, PLANE_TASKS, PlaneClassifier, PlaneTask, read_points, spread_prototypes
from moe_lessons.training.knobs import KNOBS, idle_with
from moe_lessons.training.run import Run

D_MODEL = 16
# router initialisations: None is PyTorch's default, a number the sharpness of one with a nearly uniform load
ROUTER_STARTS = {"random": None, "spread": 4.0, "soft spread": 1.0}
# A hash has nothing to learn from a point, and Gaussian noise is 'top-k' with the knob turned on.
PLANE_ROUTERS = {name: make for name, make in all_routers.ROUTERS.items() if name not in ("hash", "gaussian noise")}


@dataclass(frozen=True)
class PlaneSetting:
    """Everything that can be set about a mixture of experts in the plane. Bad values are refused.

    The knobs (see `knobs`) may change while it trains; the others need a new model. router_start: 'random' is torch's
    start. Two others come from k-means of the task's points, a head start that dense models do not have: 'spread' gives
    a nearly uniform load and sharp routing, 'soft spread' flat probabilities. points: one's own, which take the place
    of the task: see `tasks.plane.read_points`.
    """

    task: str = "checker"
    num_experts: int = 8
    top_k: int = 2
    d_ff: int = 3
    router_start: str = "random"
    router: str = "top-k"
    _: KW_ONLY
    router_aux_loss_coef: float = 0.1
    noise_std: float = 0.0
    jitter_noise: float = 0.0
    capacity_factor: float | None = None
    router_z_loss_coef: float = 0.0
    expert_bias_rate: float = 0.0
    lr: float = 0.02
    points: str = ""

    def __post_init__(self):
        check_choice("task", self.task, PLANE_TASKS)
        check_positive_int("num_experts", self.num_experts, 256)
        check_top_k(self.top_k, self.num_experts)
        check_positive_int("d_ff", self.d_ff, 1024)
        check_choice("router_start", self.router_start, ROUTER_STARTS)
        check_choice("router", self.router, PLANE_ROUTERS)
        read_points(self.points)
        idle = idle_with(self.router)
        for name, knob in KNOBS.items():
            value = knob.check(getattr(self, name))
            if knob.auxiliary_loss is None and name in idle and value != knob.off:  # a loss without use does no harm
                raise ValueError(f"{name} must be {knob.off} where the router is {self.router!r}, got {value!r}")


# The collapse: small router initialisation, top-1, no balancing: some experts win early, the others die. Presets and
# balancing methods (`BALANCING_METHODS`) say what they change of it, at a strength that shows their effect.
_STORED = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
PRESETS = {"healthy": PlaneSetting()}
PRESETS |= {name: PlaneSetting(**_STORED["collapse"] | fields) for name, fields in _STORED["presets"].items()}
BALANCING_METHODS: dict[str, dict] = _STORED["methods"]


def balancing_setting(*names: str, base: PlaneSetting = PRESETS["collapse"], **fields) -> PlaneSetting:
    """Put one or more `BALANCING_METHODS` on `base`, then `fields`. ValueError where two want one field differently."""
    merged = {}
    for name in names:
        for field, value in BALANCING_METHODS[check_choice("method", name, BALANCING_METHODS)].items():
            if merged.setdefault(field, value) != value:
                raise ValueError(f"methods must agree on {field}, got {merged[field]!r} and {value!r}")
    return replace(base, **merged | fields)


@torch_threads(1)  # at these sizes a second thread only waits; and the same numbers whatever the setting outside
def plane_model(setting: PlaneSetting, seed: int = 0, block=None, device="cpu") -> tuple[PlaneClassifier, PlaneTask]:
    """Make the classifier of a setting, on a device ("auto": a GPU if there is one), and its task, both from `seed`.

    block: a class of your own, called as block(d_model=…, d_ff=…, num_experts=…, top_k=…); it keeps these four as
    attributes and its experts in `experts`, and its forward maps x (T, D) to y (T, D) and a `Routing`."""
    task = PlaneTask(setting.task, seed, setting.points)
    device = check_device(device)
    sizes = {"d_model": D_MODEL, "d_ff": setting.d_ff, "num_experts": setting.num_experts, "top_k": setting.top_k}
    with seeded(seed):
        if block is None:
            moe = MoE(**sizes, router=PLANE_ROUTERS[setting.router](D_MODEL, setting.num_experts, setting.top_k))
        else:
            moe = make_block(block, sizes)
        model = PlaneClassifier(moe, NUM_CLASSES)
    sharpness = ROUTER_STARTS[setting.router_start]
    router = getattr(model.block, "router", None)
    if sharpness and getattr(getattr(router, "weight", None), "shape", None) == (setting.num_experts, D_MODEL):
        model.start_router_at(spread_prototypes(task, setting.num_experts, seed), sharpness)
    return model.to(device), task


def make_block(block, sizes: dict[str, int]) -> nn.Module:
    """Make a mixture of experts of a learner's class. ValueError where it breaks the contract of `plane_model`."""
    if not callable(block) or isinstance(block, nn.Module):
        raise ValueError(f"block must be a class called with {', '.join(sizes)}, got {type(block).__name__}")
    block, x = block(**sizes), torch.randn(5, D_MODEL)
    name = type(block).__name__
    given, out = x.clone(), block(x)
    for size, value in sizes.items():
        if getattr(block, size, None) != value:
            raise ValueError(f"block must keep {size} as given ({value}), got {getattr(block, size, None)} in {name}")
    experts = getattr(block, "experts", None)
    top_k, num_experts = block.top_k, block.num_experts
    y, routing = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
    contract = {
        "keep its experts in a module such as nn.ModuleList": lambda: isinstance(experts, nn.Module),
        "return (y, Routing)": lambda: isinstance(routing, Routing),
        "return a finite y of the shape of x": lambda: y.shape == x.shape and y.isfinite().all(),
        "return a y with a gradient": lambda: y.requires_grad,
        "leave x as it is": lambda: torch.equal(x, given),
        f"give each token {num_experts} probabilities": lambda: routing.router_probs.shape == (5, num_experts),
        f"give each token {top_k} experts": lambda: len(routing.expert_idx) + routing.dropped == 5 * top_k,
    }
    for rule, is_kept in contract.items():
        if not is_kept():
            raise ValueError(f"block must {rule}, got {name}, which does not")
    return block


def plane_runs(setting: PlaneSetting, seed: int = 0, block=None, device="cpu") -> dict[str, Run]:
    """Make a mixture and its two dense baselines, which learn from the same points; block, device: see
    `plane_model`."""
    model, task = plane_model(setting, seed, block, device)
    runs = {name: Run(each, task, lr=setting.lr, seed=seed) for name, each in with_baselines(model, seed).items()}
    runs["MoE"].knobs.take(setting)
    return runs


FACTS_CONFIG = TransformerConfig(
    Facts.vocab_size, d_model=16, num_layers=2, num_kv_heads=4, max_positions=Facts.context + 1, d_ff=16, num_experts=16
)
FACTS_LR = 1e-2
RACE_CONFIG = TransformerConfig(d_model=64, num_layers=2, num_kv_heads=4, max_positions=64, d_ff=64, num_experts=16)
RACE_LR = 3e-3  # of the three in the sweep `size_64_rates` the best for each model


def facts_model(seed: int = 0, device="cpu", **sizes) -> LanguageModel:
    """Make a small transformer that learns `tasks.Facts`: `FACTS_CONFIG`, and what is given of other `sizes`."""
    device = check_device(device)
    with seeded(seed):
        return LanguageModel(replace(FACTS_CONFIG, **sizes)).to(device)


def facts_run(model: nn.Module, task: Facts, seed: int = 0, *, lr: float = FACTS_LR) -> Run:
    """Make a run in which `model` learns the facts by heart, in steps that read each 96 times, and at least 300."""
    steps = max(3 * task.num_entries // 4, 300)
    run = Run(model, task, lr=lr, batch_size=128, seed=seed, warmup_steps=20, decay_steps=steps, max_grad_norm=1.0)
    if run.num_experts:
        run.knobs.router_aux_loss_coef = 0.01
    return run


def facts_runs(num_experts=16, top_k=2, num_entries=400, seed=0, device="cpu") -> dict[str, Run]:
    """Make a mixture and its two dense baselines, which learn the same facts."""
    task, model = Facts(num_entries, seed), facts_model(seed, device, num_experts=num_experts, top_k=top_k)
    return {name: facts_run(model, task, seed) for name, model in with_baselines(model, seed).items()}


def race_runs(seed=0, device="cpu") -> dict[str, Run]:
    """Make a mixture and its two dense baselines, which learn the source code of Python's standard library."""
    task, device = TextTask("source", context=RACE_CONFIG.max_positions, held_out_bytes=80_000), check_device(device)
    with seeded(seed):
        model = LanguageModel(RACE_CONFIG).to(device)
    options = {"lr": RACE_LR, "batch_size": 16, "seed": seed, "warmup_steps": 20, "max_grad_norm": 1.0}
    runs = {name: Run(each, task, **options) for name, each in with_baselines(model, seed).items()}
    runs["MoE"].knobs.router_aux_loss_coef = 0.01
    return runs
