"""The one table of knobs: a new knob is one entry and a new router another, and everything else reads them."""

import dataclasses

import pytest
import torch
from oracle import refused
from torch.nn import functional as F

from moe_lessons.nn import MoE, TopKRouter, seeded
from moe_lessons.tasks import PlaneClassifier, PlaneTask
from moe_lessons.training import PlaneSetting, Run, plane_model
from moe_lessons.training.knobs import KNOBS, Knob, Knobs, idle_with
from moe_lessons.widgets import BalancingLab, Playground, RoutingLab

SMALL = {"num_layers": 1, "d_model": 16, "num_experts": 4}


def test_the_knobs_of_a_run_are_those_of_the_table():
    assert [field.name for field in dataclasses.fields(Knobs)] == list(KNOBS)


def test_every_knob_of_training_is_in_settings_and_laboratories_and_each_of_its_stops_can_be_applied():
    fields = {field.name: field.default for field in dataclasses.fields(PlaneSetting)}
    labs = Playground(), RoutingLab("json", panels="loss", **SMALL), BalancingLab("no balancing", seeds=1)
    for name, knob in KNOBS.items():
        usual = {"lr": 0.02, "router_aux_loss_coef": 0.1}.get(name, knob.off)
        assert fields[name] == knob.check(usual) == usual and all(name in lab.inputs for lab in labs)
        for stop in knob.stops:
            assert knob.check(knob.off if stop == 0 else stop) == (knob.off if stop == 0 else stop)


IDLE = {"top-k": {"expert_bias_rate"}, "gaussian noise": {"expert_bias_rate"}, "sigmoid": {"noise_std"}}
IDLE["learned noise"] = {"noise_std", "expert_bias_rate"}
IDLE["expert choice"] = {"noise_std", "expert_bias_rate", "capacity_factor", "router_aux_loss_coef"}


@pytest.mark.parametrize("router", IDLE)
def test_a_knob_is_idle_where_a_router_has_no_use_for_it(router):
    asked = set().union(*IDLE.values())
    assert asked & set(idle_with(router)) == IDLE[router]


def surprise(routing):
    return -routing.router_probs.square().sum(dim=-1).mean()


def test_a_new_loss_is_a_row_and_is_in_history_and_in_states(monkeypatch):
    made = [plane_model(PlaneSetting()) for _ in range(3)]
    monkeypatch.setitem(KNOBS, "confidence", Knob(name="confidence", label="Confidence", auxiliary_loss=surprise))
    plain, run, later = (Run(*each) for each in made)
    run.knobs.confidence = 1.0
    first, other = (each.step() for each in (run, plain))
    assert first.auxiliary == other.auxiliary and first.auxiliary["surprise"] < 0
    assert run.step().loss != plain.step().loss
    later.load_state_dict(run.state_dict())
    assert later.history.surprise.tolist() == run.history.surprise.tolist() and later.knobs.confidence == 1
    assert later.step().auxiliary == run.step().auxiliary
    state = run.state_dict()
    monkeypatch.delitem(KNOBS, "confidence")
    with refused("state must be of a run with run.knobs .*, got .*, confidence"):
        plain.load_state_dict(state)


class WarmRouter(TopKRouter):
    temperature = 1.0

    def choose(self, logits):
        return super().choose(logits / self.temperature)


def test_a_router_of_ones_own_has_a_knob_of_its_own_which_is_a_row(monkeypatch):
    without = plane_model(PlaneSetting())[0]
    row = {"off": 1.0, "attribute": True, "needs": lambda module: hasattr(module, "temperature"), "idle": "it is cold"}
    monkeypatch.setitem(KNOBS, "temperature", Knob(name="temperature", label="Temperature", is_above=True, **row))
    with seeded(0):
        models = [PlaneClassifier(MoE(16, 4, 8, router=WarmRouter(16, 8, 2)), 8) for _ in range(2)]
    run, later = (Run(model, PlaneTask()) for model in models)
    x, y = PlaneTask().batch(256, torch.Generator().manual_seed(0))
    run.knobs.temperature = run.model.block.router.temperature = 4.0
    expected = F.cross_entropy(run.model(x)[0], y).item()
    run.model.block.router.temperature, run.knobs.temperature = 1.0, 4.0
    assert run.step().loss == pytest.approx(expected)
    later.load_state_dict(run.state_dict())
    assert later.knobs.temperature == later.model.block.router.temperature == 4
    assert later.step().loss == run.step().loss
    with refused("temperature must be 1.0 here, since it is cold, got 2.0"):
        Run(without, PlaneTask()).knobs.temperature = 2.0
