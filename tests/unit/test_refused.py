"""Bad values are refused where they enter, in one sentence that names the argument and the value; nothing has changed.

A row is a function of one value, the argument that it is given for, and a bad one. A new function need not join."""

import numpy as np
import pytest
import torch

from moe_lessons.analysis import replicate
from moe_lessons.analysis.releases import release_costs
from moe_lessons.course import Answer, Prediction
from moe_lessons.nn import (
    FeedForward,
    HashRouter,
    LanguageModel,
    MoE,
    Routing,
    SigmoidRouter,
    SoftMoE,
    TopKRouter,
    TransformerConfig,
    dense_baseline,
)
from moe_lessons.support.errors import check_device, shown
from moe_lessons.tasks import PlaneClassifier, PlaneTask, TextTask
from moe_lessons.training import PlaneSetting, Run, SeedBand, balancing_setting, plane_runs
from moe_lessons.training.as_pytorch import as_pytorch
from moe_lessons.training.knobs import KNOBS
from moe_lessons.widgets import SpeedupMap, draw_block

SMALL = {"d_model": 8, "d_ff": 8, "vocab_size": 9, "num_experts": 4, "top_k": 1, "max_positions": 24}
MODEL = LanguageModel(TransformerConfig(**SMALL))
IDS = torch.zeros(1, 9).long()
X = torch.zeros(3, 4)
BLOCK = MoE(8, 4, 4, router=SigmoidRouter(8, 4, 2))
RUN = Run(PlaneClassifier(BLOCK, num_classes=8), PlaneTask("blobs"), batch_size=8)


def config(**changes) -> TransformerConfig:
    return TransformerConfig(**SMALL | changes)


def filled(cache_of: int):
    """A cache for so many sequences, in which one place of ten is left."""
    cache = MODEL.new_cache(cache_of, 10)
    MODEL(IDS.expand(cache_of, 9), cache)
    return cache


NN = [
    (lambda value: MoE(4, 8, 8, value), "top_k", 9),
    (lambda value: MoE(4, 8, 8, router=value), "router", "hash"),
    (lambda value: MoE(4, 8, 8, router=value), "router", 7),
    (lambda value: MoE(4, 8, 8, router=lambda *sizes: value), "router", 7),
    (lambda value: MoE(4, 8, 8, router=TopKRouter(value, 8, 2)), "router", 5),
    (lambda value: MoE(4, 8, 8, router=TopKRouter(4, 8, 2), bias=True), "router", "a module"),
    (lambda value: HashRouter(8, 9, seed=value), "seed", 2**32),
    (lambda value: dense_baseline(value), "model", FeedForward(4, 4)),
    (lambda value: config(d_model=value), "d_model", 20),
    (lambda value: config(moe_layers=value), "moe_layers", (0, 3)),
    (lambda value: LanguageModel(config(router="hash", router_std=value)), "router_std", 1),
    (lambda value: LanguageModel(value), "config", SMALL),
    (lambda value: MODEL(torch.zeros(1, value).long()), "ids", 25),
    (lambda value: MODEL(torch.zeros(value).long(), filled(2)), "ids", (2, 2)),
    (lambda value: MODEL(torch.zeros(value).long(), filled(2)), "ids", (1, 1)),
    (lambda value: MODEL(IDS, cache=value), "cache", "str"),
    (lambda value: MODEL.new_cache(value), "batch_size", 10**15),
    (lambda value: MODEL.generate(IDS, value), "max_new_tokens", 16),
    (lambda value: MODEL.generate(IDS, 1, top_k=value), "top_k", 10),
    (lambda value: MODEL.generate(IDS, 1, temperature=value), "temperature", 1e-46),
    (lambda value: TopKRouter(4, 8, 2)(torch.zeros(value)), "x", (2, 3, 4)),
    (lambda value: SoftMoE(4, 8, 3)(torch.zeros(value)), "x", (4,)),
    *((lambda value: HashRouter(8, 10)(X, value), "token_ids", ids) for ids in (None, [1, 2, 3], torch.ones(3))),
    *((lambda value: HashRouter(8, 10)(X, value), "token_ids", ids) for ids in (X[:, 0] > 0, torch.ones(2).long())),
    (lambda value: HashRouter(8, 10)(X, torch.tensor([10, 0, 3])), "token_ids", "0 to 10"),
    (lambda value: HashRouter(8, 10)(X, torch.tensor([-1, 5, 3])), "token_ids", "-1 to 5"),
    (lambda value: MoE(4, 8, 5, 1, router=HashRouter(5, 30))(X[None], torch.zeros(value).long()), "token_ids", (3, 1)),
    (check_device, "device", "cuda:99"),
]
TRAINING = [
    *((lambda value, name=name: setattr(RUN.knobs, name, value), name, bad) for name in KNOBS for bad in (-0.1, "a")),
    *((lambda value: setattr(RUN.knobs, "lr", value), "lr", bad) for bad in (np.nan, True)),
    (lambda value: setattr(RUN.knobs, "noise_std", value), "noise_std", 0.5),
    (lambda value: Run(RUN.model, RUN.task, warmup_steps=5, decay_steps=value), "decay_steps", 5),
    (lambda value: Run(torch.nn.Linear(2, 2), RUN.task).step(), "model", "Tensor"),
    (lambda value: PlaneSetting(router="learned noise", noise_std=value), "noise_std", 0.5),
    (lambda value: balancing_setting("bias update", value), "methods", "expert choice"),
    *((lambda value: PlaneSetting(points=value), "points", bad) for bad in ("0fle3xy", "6xe0", "0FLE")),  # a class 8
    (lambda value: PlaneTask(points=value), "points", None),
    (lambda value: PlaneTask(points=value * "0fle"), "points", 501),
    (lambda value: plane_runs(PlaneSetting(), device=value), "device", "cuda:99"),
    (lambda value: SeedBand(PlaneSetting(), [0], device=value), "device", "gpu"),
    (lambda value: SeedBand(PlaneSetting(), value), "seeds", []),
    (lambda value: as_pytorch(PlaneSetting(router=value)), "router", "gaussian noise"),
    (lambda value: TextTask({"own": 999 * "abc"}, value), "context", 300),
]
SHOWN = [
    (lambda value: replicate(torch.ones(3), value), "slots", 2),
    (lambda value: release_costs(value), "machine", "abacus"),
    (lambda value: release_costs(width=value), "width", 0.5),
    (lambda value: draw_block(MoE(6, 4, value, 2), torch.zeros(12, 6)), "moe", 17),
    (lambda value: draw_block(MoE(6, 4, 8, 2), torch.zeros(value)), "x", (17, 6)),
    (lambda value: Answer(value), "length", "one hour"),
    (lambda value: Prediction("How many?", ("all", "one")).compare(value), "outcome", "none"),
    *((lambda value, name=name: SpeedupMap(**{name: value}), name, bad) for name, bad in {
        "model": "GPT-4", "top_k": 9, "num_experts": 2.5, "machine": "abacus", "weights": "int3", "matched": 3.0,
        "context_length": -1, "width": 0.5, "batch_size": 5000,
    }.items()),
    (lambda value: SpeedupMap(measured=[value]), "measured", (1, 2)),
]  # fmt: skip


def state() -> list:
    """What a bad value must not change: the weights, the knobs and the records of what is asked above."""
    models = [repr(list(model.state_dict().items())) for model in (MODEL, RUN.model)]
    return [*models, MODEL.training, RUN.model.training, repr(RUN.knobs), RUN.records]


@pytest.mark.parametrize("call, name, value", [*NN, *TRAINING, *SHOWN])
def test_it_is_refused_in_one_sentence(call, name, value):
    before = state()
    with pytest.raises(ValueError) as refusal:
        call(value)
    said = str(refusal.value)
    argument, _, allowed = said.partition(" must ")
    got = allowed.partition("got ")[2]
    assert "\n" not in said and name in argument
    assert (value if isinstance(value, str) else shown(value)) in got or type(value).__name__ in got
    assert state() == before


@pytest.mark.parametrize("layer", [FeedForward(4, 8), MoE(4, 8, 8), SoftMoE(4, 8, 3)])
def test_autocast_casts_no_float64(layer):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="^x must have the type .*float64$"):
        layer(torch.zeros(2, 4).double())


class Changed(torch.nn.Module):
    """A router that says nothing about its sizes; its routing is that of `num_experts` experts, with `changes`."""

    def __init__(self, num_experts=5, **changes):
        super().__init__()
        self.inner, self.changes = [TopKRouter(4, num_experts, 2)], changes

    def forward(self, x):
        parts = vars(self.inner[0](x))
        return Routing(**{name: self.changes.get(name, lambda value: value)(value) for name, value in parts.items()})


@pytest.mark.parametrize(
    "router, got",
    [
        (torch.nn.Linear(4, 5), "Tensor"),
        (Changed(6), r"\(3, 6\)"),
        (Changed(weight=lambda weight: weight[:5]), r".*\(5,\)\]"),
    ],
)
def test_a_router_of_ones_own_must_keep_the_contract(router, got):
    assert MoE(4, 8, 5, 2, router=Changed())(torch.randn(3, 4))[0].shape == (3, 4)  # any module can be the router
    with pytest.raises(ValueError, match=f"^router must return .*, got {got}$"):
        MoE(4, 8, 5, 2, router=router)(torch.randn(3, 4))
