"""The one table of knobs: a new knob is one entry and a new router another, and everything else reads them."""

import dataclasses
import importlib.util
import sys
import types
from pathlib import Path

import pytest
from oracle import refused

from moe_lessons.training import PlaneSetting, Run, load_checkpoint, plane_model, save_checkpoint
from moe_lessons.training.knobs import KNOBS, TRAINING, Knob, idle_with
from moe_lessons.widgets import BalancingLab, Playground, RoutingLab
from moe_lessons.widgets.controls import control

SMALL = {"num_layers": 1, "d_model": 16, "num_experts": 4}


def test_every_knob_has_a_name_says_what_it_does_and_when_it_cannot():
    assert len({knob.label for knob in KNOBS.values()}) == len(KNOBS)  # in one laboratory they could not be told apart
    for knob in KNOBS.values():
        assert knob.label and len(knob.tip) > 5 and (knob.unit or knob.description == knob.label)
        assert bool(knob.needs) == bool(knob.idle) and not (knob.attribute and not knob.needs)


def test_every_knob_of_training_is_in_settings_and_laboratories():
    fields = {field.name: field.default for field in dataclasses.fields(PlaneSetting)}
    labs = Playground(), RoutingLab("json", panels="loss", **SMALL), BalancingLab("nothing", seeds=1)
    for name, knob in TRAINING.items():
        usual = {"lr": 0.02, "router_aux_loss_coef": 0.02}.get(name, knob.off)
        assert fields[name] == knob.check(usual) == usual and all(name in lab.inputs for lab in labs)
        assert control(name).value is not None


IDLE = {"top-k": {"expert_bias_rate"}, "gaussian noise": {"expert_bias_rate"}, "sigmoid": {"noise_std"}}
IDLE["learned noise"] = {"noise_std", "expert_bias_rate"}
IDLE["expert choice"] = {"noise_std", "expert_bias_rate", "capacity_factor", "router_aux_loss_coef"}


@pytest.mark.parametrize("router", IDLE)
def test_a_knob_is_idle_where_a_router_has_no_use_for_it(router):
    assert set(idle_with(router)) == IDLE[router] and all(len(why) > 5 for why in idle_with(router).values())


def surprise(routing):
    return -routing.router_probs.square().sum(dim=-1).mean()


def test_a_new_loss_is_a_row_and_is_in_history_and_in_checkpoints(monkeypatch, tmp_path):
    made = [plane_model(PlaneSetting()) for _ in range(3)]
    monkeypatch.setitem(TRAINING, "confidence", Knob("confidence", "Confidence", loss=surprise))
    plain, run, later = (Run(*each) for each in made)
    run.knobs.confidence = 1.0
    first, other = (each.step() for each in (run, plain))
    assert first.auxiliary == other.auxiliary and first.auxiliary["surprise"] < 0
    assert run.step().loss != plain.step().loss
    save_checkpoint(run, tmp_path / "run.pt")
    load_checkpoint(later, tmp_path / "run.pt")
    assert later.history.surprise.tolist() == run.history.surprise.tolist() and later.knobs.confidence == 1
    assert later.step().auxiliary == run.step().auxiliary
    monkeypatch.delitem(TRAINING, "confidence")
    with refused(".* must be of a run with run.knobs .*, got .*, confidence"):
        load_checkpoint(plain, tmp_path / "run.pt")


@pytest.fixture
def afresh(monkeypatch):
    """Imports the package afresh, with text put before a line of some modules; then the old one is there again."""

    def change(**changes: tuple[str, str]):
        specs = {}
        for module, (line, more) in changes.items():
            specs[name] = spec = importlib.util.find_spec(name := f"moe_lessons.{module.replace('__', '.')}")
            source = Path(spec.origin).read_text(encoding="utf-8")
            assert source.count(line) == 1
            code = compile(source.replace(line, f"{more}\n{line}"), spec.origin, "exec")
            spec.loader.get_code = lambda name, code=code: code
        finder = types.SimpleNamespace(find_spec=lambda name, path, target=None: specs.get(name))
        monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
        for name in [name for name in sys.modules if name.split(".")[0] == "moe_lessons"]:
            monkeypatch.delitem(sys.modules, name)
        return importlib.import_module("moe_lessons.widgets"), importlib.import_module("moe_lessons.training")

    yield change
    for name in [name for name in sys.modules if name.split(".")[0] == "moe_lessons"]:
        del sys.modules[name]


ROUTER = """
class WarmRouter(TopKRouter):
    temperature = 1.0

    def choose(self, logits):
        return super().choose(logits / self.temperature)


ROUTERS["warm"] = WarmRouter

"""
KNOB = """
APPLIED["temperature"] = {"attribute": True, "off": 1.0, "needs": lambda m: hasattr(m, "temperature")}
ROWS["temperature"] = {"label": "Temperature", "tip": "Of the softmax", "stops": ["reach", 0.5, 4, 0.5]}
ROWS["temperature"]["idle"] = "this router has no temperature"
"""


def test_a_new_router_with_a_knob_of_its_own_is_a_class_two_entries_and_a_row(afresh, tmp_path):
    widgets, training = afresh(nn__routing=("def make_router(", ROUTER), training__knobs=("KNOBS = {name: ", KNOB))
    setting = training.PlaneSetting(router="warm", temperature=2.0)
    runs = [training.plane_runs(setting, seed)["MoE"] for seed in (0, 1, 0)]
    losses = [run.step().loss for run in runs]
    assert training.SeedBand(setting, (0, 1)).step().losses == pytest.approx(losses[:2], abs=1e-5)
    assert training.plane_runs(dataclasses.replace(setting, temperature=1.0))["MoE"].step().loss != losses[0]
    run, _, later = runs
    run.knobs.temperature = 4.0
    run.step()
    training.save_checkpoint(run, tmp_path / "run.pt")
    training.load_checkpoint(later, tmp_path / "run.pt")
    assert later.knobs.temperature == later.model.block.router.temperature == 4
    assert later.step().loss == run.step().loss
    with pytest.raises(ValueError, match="temperature must be 1.0 where the router is 'top-k', got 2.0"):
        training.PlaneSetting(temperature=2.0)
    for lab in (widgets.Playground(), widgets.RoutingLab("json", panels="loss", **SMALL)):
        assert lab.inputs["temperature"].disabled
        lab.set(router="warm")
        lab.set(temperature=2.0)
        lab.advance(1)
        assert lab.main_run.knobs.temperature == 2 and "temperature=2.0" in repr(lab)
