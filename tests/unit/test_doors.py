"""What the package offers, called with bad values of each argument: it works, or says in one sentence what is wrong.
The calls are made from the signatures. What is new needs good arguments in GOOD, or in BASE where a name means another
thing there; else the test fails."""

import dataclasses
import importlib
import inspect
import math
import re
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from matplotlib import pyplot as plt

from moe_lessons import nn as ours
from moe_lessons import parallel, plots
from moe_lessons.analysis import decode_speed, fit_link, trace, trace_text
from moe_lessons.course import NumberPrediction, Prediction, progress
from moe_lessons.course.interview import ANSWERS, FIGURE
from moe_lessons.hub import export_model
from moe_lessons.parallel import Job
from moe_lessons.plots import colored_trace
from moe_lessons.plots.panels.text import shares_panel
from moe_lessons.support.show import show_source
from moe_lessons.tasks import Facts, TextTask
from moe_lessons.training import PlaneSetting, Run, plane_runs, save_checkpoint, train
from moe_lessons.widgets import LiveRun, PlanCalculator, Playground

PACKAGES = "nn tasks training analysis plots widgets course hub parallel".split()
SIZES = {"d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "num_experts": 4, "top_k": 2}
BAD = {
    "None": None, "text": "x", "-1": -1, "0": 0, "3": 3, "9": 9, "nan": math.nan, "inf": math.inf, "huge": 10**400,
    "2.5": 2.5, "True": True, "[]": [], "{}": {}, "object": object(), "[None]": [None], "shape": torch.zeros(3, 5, 7),
    "row": torch.zeros(6, dtype=torch.int64), "whole": torch.zeros(6, 8, dtype=torch.int64),
    "high": torch.full((6, 8), 999), "empty": torch.zeros(1, 0, dtype=torch.int64), "double": torch.ones(6, 8).double(),
    "meta": torch.zeros(6, 8, device="meta"), "sparse": torch.zeros(6, 8).to_sparse(),
    "nested": torch.nested.nested_tensor([torch.zeros(2, 8)] * 3),
}  # fmt: skip


def offered() -> dict:
    """Find what the packages offer, but for errors and for plain records, which take what they are given."""
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(f"moe_lessons.{package}")
        names = [name for name in [*vars(module), *getattr(module, "LATE", ())] if not name.startswith("_")]
        things = {f"{package}.{name}": getattr(module, name) for name in names}
        found |= {name: thing for name, thing in things.items() if callable(thing) and not is_plain(thing)}
    lab = Playground()
    own = {
        "FeedForward.forward": ours.FeedForward(8, 8).forward,
        "MoE.forward": lambda x: ours.MoE(8, 8, 4)(x),
        "SoftMoE.forward": ours.SoftMoE(8, 8, 4).forward,
        "TopKRouter.forward": ours.TopKRouter(8, 4, 2).forward,
        "LanguageModel.forward": lambda ids: MODEL(ids),
        "LanguageModel.generate": lambda ids, max_new_tokens: MODEL.generate(ids, max_new_tokens),
        "Lab.set": lambda router_aux_loss_coef: lab.set(router_aux_loss_coef=router_aux_loss_coef),
        "progress.export": progress.export,
        "Prediction.compare": Prediction("?", ("a", "b")).compare,
        "NumberPrediction.compare": NumberPrediction("?", "GB", 0, 1).compare,
    }
    return found | own


def is_plain(thing) -> bool:
    is_record = dataclasses.is_dataclass(thing) and not hasattr(thing, "__post_init__")
    return is_record or (inspect.isclass(thing) and issubclass(thing, Exception))


MODEL = ours.LanguageModel(ours.TransformerConfig(**SIZES))
MIXTRAL = export_model(MODEL)
ROUTING = ours.TopKRouter(8, 4, 2)(torch.randn(6, 8))
TRACE, TEXT_TRACE = trace(MODEL, TextTask(("code", "json")), 2), trace_text(MODEL, "a text")
RUNS = plane_runs(PlaneSetting())
train(RUNS.values(), 2)
PANEL = colored_trace(TEXT_TRACE, 0)
IDS = torch.zeros(2, 9, dtype=torch.int64)
# by the names of arguments
GOOD = SIZES | {
    "a": ["x", "y", "x"], "b": ["u", "v", "u"], "batch_size": 2, "bytes_per_second": 1e9, "capacity": 1,
    "capacity_factor": 1.0, "command": ["true"], "config": MODEL.config, "domain": "code", "expert": 0,
    "experts": ours.Experts(4, 8, 8), "family": {4: [0.1, 0.2], 8: [0.5, 0.6]}, "flops_per_second": 1e12,
    "folder": "engines", "function": dist.get_world_size, "head_dim": 4, "hf_block": MIXTRAL.model.layers[0].mlp,
    "hf_model": MIXTRAL, "high": 2.0, "ids": IDS, "job": Job(["true"]), "layer": 0, "length": "one sentence",
    "lesson": "05", "load": [1, 2, 3], "losses": [1.0], "low": 1.0, "max_length": 8, "max_new_tokens": 2,
    "mixture": [0.3, 0.4], "model": MODEL, "models": {"ours": MODEL}, "module": MODEL, "moe": ours.MoE(8, 8, 4),
    "name": "rates", "num_bytes": 4, "num_classes": 3, "num_tokens": 3, "options": ("a", "b"), "ours": MODEL,
    "outcome": "a", "path": "run.pt", "prompt": "ab", "prompts": {"code": "x"},
    "question": "How?", "ranks": 2, "resolution": 3, "routing": ROUTING, "routings": [ROUTING], "run": RUNS["MoE"],
    "runs": RUNS, "seed": 0, "seconds": [1e-3, 2e-3, 9e-3], "sent": [1e3, 1e4, 1e5], "setting": PlaneSetting(),
    "shares": pd.DataFrame({"E0": [0.5], "E1": [0.5]}, index=["code"]), "steps": 1,
    "target": "moe_lessons.parallel.training", "task": RUNS["MoE"].task, "text": "ab", "things": [1], "threads": 1,
    "title": "T", "tokens": torch.tensor([97, 98]), "trace": TRACE, "trace_a": TRACE, "trace_b": TRACE,
    "traffic": torch.ones(2, 2), "unit": "GB", "value": 1.0, "vocab_size": 64, "wanted": 0.5, "weights": torch.eye(2),
    "x": torch.randn(6, 8), "router_aux_loss_coef": 0.1, "lr": 0.01,
}  # fmt: skip
# where a name means something else, and what makes a call quick
BASE = {
    "nn.update_expert_bias": {"router": ours.SigmoidRouter(8, 4, 2)},
    "nn.KVCache": {"cos_sin": None},
    "tasks.TextTask": {"domains": ("code",)},
    "tasks.TextAtOnce": {"domains": ("code",)},
    "tasks.PlaneClassifier": {"block": ours.MoE(16, 8, 4)},
    "training.facts_run": {"task": Facts(250)},
    "training.train": {"runs": RUNS["MoE"]},
    "analysis.distinct_experts": {"batch_sizes": (1, 2)},
    "analysis.known_share": {"counts": [[3, 1], [1, 3]], "top_k": 1},
    "analysis.mutual_information": {"a": [[3, 1], [1, 3]]},
    "analysis.shuffled_counts": {"counts": [[3, 1], [1, 3]]},
    "analysis.paired_ratio": {"a": int, "b": int},
    "analysis.plan": {"model": "DeepSeek-V3"},
    "analysis.trace": {"task": TextTask(("code",))},
    "plots.colored_trace": {"trace": TEXT_TRACE},
    "plots.figure": {"panels": [PANEL]},
    "course.CurvePrediction": {"x": ("steps", 0, 9), "y": ("loss", 0, 4)},
    "hub.SwitchMoE": {"d_model": 8, "d_ff": 8, "num_experts": 4, "expert_capacity": 2},
    "hub.write_engine_configs": {"model": "mixtral"},
    "parallel.rank_traffic": {"ranks": 2},
    "widgets.BalancingLab": {"remedies": ("nothing",), "seeds": 1},
    "widgets.RoutingLab": {"task": ("code",), "config": MODEL.config},
    "widgets.FactsLab": {"num_experts": 2, "num_entries": 250},
    "widgets.LiveRun": {"panels": ("loss",)},
    "widgets.RoutersView": {"counts": {"m": {0: pd.DataFrame([[3, 1], [1, 3]])}}},
    "widgets.WallRecording": {"name": "book_8000_6000"},
    "progress.export": {"path": "mine.json"},
}


OFFERED = offered()
ALSO = {"task": "domains"}  # as it is called on the page
MADE_BY_OTHERS = {"widgets.Lab", "nn.KVCache"}  # laboratories specify the one, a model makes the other
NEEDS_RANKS = {"parallel.global_load_balancing_loss", "parallel.shard_experts"}


def parameters(thing) -> list[inspect.Parameter]:
    found = inspect.signature(thing).parameters.values()
    return [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def good_arguments(name: str, thing) -> dict:
    own = BASE.get(name, {})
    return {p.name: GOOD[p.name] for p in parameters(thing) if p.default is p.empty and p.name not in own} | own


def call(thing, arguments: dict) -> None:
    """Call it, and have it do what it does late: in a `with`, or while it gives one thing after another."""
    result = thing(**arguments)
    if isinstance(result, AbstractContextManager) and not isinstance(result, Path):
        with result:
            pass
    if inspect.isgenerator(result) and thing is not parallel.launch:
        list(result)


@pytest.fixture
def here(tmp_path, monkeypatch, own_progress):
    """A folder of its own, with a model, a checkpoint and all figures; and no process is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inspect.getmodule(Job), "Job", list)
    for key in FIGURE.findall(ANSWERS["one sentence"]):
        progress.record("figures", key, value=1.0)
    export_model(MODEL, "mixtral")
    save_checkpoint(RUNS["MoE"], "run.pt")


@pytest.mark.parametrize("name", sorted(OFFERED.keys() - MADE_BY_OTHERS))
def test_bad_arguments_are_named_in_one_sentence(name, here):
    thing, good = OFFERED[name], good_arguments(name, OFFERED[name])
    names = [parameter.name for parameter in parameters(thing)]
    if name not in NEEDS_RANKS:
        call(thing, good)
    for argument in [*names, "unknown"]:
        named = re.compile("|".join(rf"\b{word}\b" for word in (*names, "unknown", ALSO.get(argument, argument))))
        for kind, value in BAD.items():
            at = f"{name}({argument}={kind})"
            try:
                call(thing, good | {argument: value})
            except (ValueError, TypeError, OSError) as error:
                said = str(error)
                is_file = isinstance(error, OSError) or f"/{value}" in said
                assert (is_file or named.search(said)) and "\n" not in said and len(said) < 1000, f"{at}: {error!r}"
            except Exception as error:
                raise AssertionError(f"{at}: {error!r}") from error
    plt.close("all")


ACCEPTED = [
    lambda: ours.MoE(8, 8, 4, bias="no"),
    lambda: ours.MoE(10**30, 4, 4, 1),
    lambda: ours.TopKRouter(8, 4, 2, jitter_noise=2.0),
    lambda: plane_runs(PlaneSetting(jitter_noise=2.0)),
    lambda: ours.MoE(8, 8, 4, foo=1),
    lambda: ours.load_balancing_loss(ROUTING, torch.zeros(6).long()),
    lambda: Run(RUNS["MoE"].model, RUNS["MoE"].task, batch_size=10**9),
    lambda: plots.attention_heatmap(torch.eye(2), "abc"),
    lambda: shares_panel(pd.DataFrame([[0.5, 0.6]]), "Shares"),
    lambda: fit_link([1, 1], [1, 2]),
    lambda: TextTask(("code", "code")),
    lambda: decode_speed({"a": MODEL}, prompt_length=10**4),
    lambda: Prediction("q", (1, 2)),
    lambda: Prediction("q", ("a", "a")),
    lambda: Prediction("q", ("a", "b"), key="05.Left!"),
    lambda: trace(ours.dense_baseline(MODEL), TextTask("code")),
    lambda: PlanCalculator("Mixtral 8x7B", expert_parallel=64),
    lambda: LiveRun(RUNS, panels=[[]]),
]


@pytest.mark.parametrize("make", ACCEPTED)
def test_what_means_nothing_is_refused(make):
    with pytest.raises((ValueError, TypeError), match="^.+$"):
        make()


def test_a_guarded_function_is_still_itself():
    assert "Switch Transformer" in ours.load_balancing_loss.__doc__ and "probs" in show_source(ours.load_balancing_loss)
    assert list(inspect.signature(ours.MoE).parameters)[:3] == ["d_model", "d_ff", "num_experts"]


def test_what_goes_wrong_in_the_code_of_a_learner_is_shown_as_it_is():
    def broken(**sizes):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        plane_runs(PlaneSetting(), block=broken)
