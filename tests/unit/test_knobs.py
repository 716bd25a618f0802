"""The one table of knobs: a new knob is one entry and a new router another, and everything else reads them."""

import dataclasses
import importlib.util
import sys
import types
from pathlib import Path

import pytest
from torch import nn

from moe_lessons.nn import FeedForward, MoE, TopKRouter
from moe_lessons.training import PlaneSetting, load_checkpoint, plane_runs, save_checkpoint
from moe_lessons.training.knobs import KNOBS, TRAINING, idle_knobs, idle_with
from moe_lessons.widgets import BalancingLab, Playground, RoutingLab
from moe_lessons.widgets.controls import control

SMALL = {"num_layers": 1, "d_model": 16, "num_experts": 4}


def test_every_knob_has_a_name_says_what_it_does_and_when_it_cannot():
    assert len({knob.label for knob in KNOBS.values()}) == len(KNOBS)  # in one laboratory they could not be told apart
    for knob in KNOBS.values():
        assert knob.label and len(knob.tip) > 5 and (knob.unit or knob.description == knob.label)
        assert bool(knob.needs) == bool(knob.idle) and not (knob.attribute and not knob.needs)


def test_every_knob_of_training_is_in_settings_runs_laboratories_and_checkpoints(tmp_path):
    fields = {field.name: field.default for field in dataclasses.fields(PlaneSetting)}
    labs = Playground(), RoutingLab("json", panels="loss", **SMALL), BalancingLab("nothing", seeds=1)
    run = plane_runs(PlaneSetting(router="sigmoid"))["MoE"]
    for name, knob in TRAINING.items():
        usual = {"lr": 0.02, "router_aux_loss_coef": 0.02}.get(name, knob.off)
        assert fields[name] == usual and all(name in lab.inputs for lab in labs)
        assert control(name).value is not None and knob.check(usual) == usual
        if run.knobs.has(name):
            setattr(run.knobs, name, 0.5)
    save_checkpoint(run, tmp_path / "run.pt")
    same = load_checkpoint(plane_runs(PlaneSetting(router="sigmoid"))["MoE"], tmp_path / "run.pt")
    assert repr(same.knobs) == repr(run.knobs) and repr(run.knobs).count("=0.5") == len(TRAINING) - 1


@pytest.mark.parametrize(
    "router, idle",
    [
        ("top-k", {"expert_bias_rate"}),
        ("gaussian noise", {"expert_bias_rate"}),
        ("learned noise", {"noise_std", "expert_bias_rate"}),
        ("sigmoid", {"noise_std"}),
        ("expert choice", {"noise_std", "expert_bias_rate", "capacity_factor", "router_aux_loss_coef"}),
    ],
)
def test_a_knob_is_idle_where_a_router_has_no_use_for_it(router, idle):
    assert set(idle_with(router)) == idle and all(len(why) > 5 for why in idle_with(router).values())


def test_a_model_without_a_mixture_has_no_use_for_what_acts_on_one():
    assert set(idle_knobs(FeedForward(4, 4))) == {"noise_std", "jitter_noise", "capacity_factor", "expert_bias_rate"}
    both = nn.ModuleList([MoE(4, 4, 2, 1), MoE(4, 4, 2, 1, router=TopKRouter(4, 2, 1))])
    assert set(idle_knobs(both)) == set(idle_knobs(both[0]))  # of use in one layer is of use


@pytest.fixture
def afresh(monkeypatch):
    """Imports the package afresh, with a change to one of its files; afterwards the old one is there again."""

    def change(module: str, old: str, new: str):
        spec = importlib.util.find_spec(module)
        source = Path(spec.origin).read_text(encoding="utf-8")
        assert source.count(old) == 1
        spec.loader.get_code = lambda name: compile(source.replace(old, new), spec.origin, "exec")
        finder = types.SimpleNamespace(find_spec=lambda name, path, target=None: spec if name == module else None)
        monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
        for name in [name for name in sys.modules if name.split(".")[0] == "moe_lessons"]:
            monkeypatch.delitem(sys.modules, name)
        return importlib.import_module("moe_lessons.widgets"), importlib.import_module("moe_lessons.training")

    yield change
    for name in [name for name in sys.modules if name.split(".")[0] == "moe_lessons"]:
        del sys.modules[name]


NEW_KNOB = """
    Knob("confidence", "Confidence", "", "Coefficient of a loss on unsure scores", (0.0, 0.5, 1.0),
         loss=lambda routing: -routing.router_probs.square().sum(dim=-1).mean()),
    # these start afresh"""


def test_a_new_knob_is_one_entry(afresh, tmp_path):
    widgets, training = afresh("moe_lessons.training.knobs", "\n    # these start afresh", NEW_KNOB)
    labs = widgets.Playground(play=2), widgets.RoutingLab("json", panels="loss", **SMALL, play=2)
    for lab in (*labs, widgets.BalancingLab("nothing", seeds=1)):
        assert lab.inputs["confidence"].description == "Confidence" and lab.inputs["confidence"].value == 0
    for lab in labs:
        before = lab.main_run.records[-1].loss
        lab.set(confidence=1.0)
        lab.advance(1)
        assert lab.main_run.knobs.confidence == 1 and "confidence=1.0" in repr(lab) and lab.marks == [2]
        other = eval(repr(lab), vars(widgets))
        assert other.main_run.records[1].loss != before  # it has trained with the knob
    with pytest.raises(ValueError, match="confidence must be a finite number of at least 0, got -1"):
        labs[0].set(confidence=-1)
    training.save_checkpoint(labs[0].main_run, tmp_path / "run.pt")
    same = training.load_checkpoint(widgets.Playground().main_run, tmp_path / "run.pt")
    assert same.knobs.confidence == 1


def test_a_new_router_is_a_class_and_one_entry(afresh):
    entry = '    "mirror": type("MirrorRouter", (TopKRouter,), {}),\n    "hash": HashRouter,'
    widgets, _ = afresh("moe_lessons.nn.routing", '    "hash": HashRouter,', entry)
    for lab in (widgets.Playground(), widgets.RoutingLab("json", panels="loss", **SMALL)):
        lab.set(router="mirror")
        lab.advance(2)
        routers = [type(module).__name__ for module in lab.main_run.model.modules()]
        assert "MirrorRouter" in routers and "router='mirror'" in repr(lab)
        assert lab.inputs["noise_std"].disabled and not lab.inputs["jitter_noise"].disabled
