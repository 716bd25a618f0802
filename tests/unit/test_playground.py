"""The playground: its controls do what they say, and nothing they can be set to breaks it."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from live_tools import button, click, ended, mark, on_a_loop, settled, until, words
from torch import nn

from moe_lessons.analysis.load import describe_load
from moe_lessons.knobs import TRAINING, idle_with
from moe_lessons.nn import FeedForward, MoE, TopKRouter
from moe_lessons.plots.marks import Bars, Cells, Line, Points, Table
from moe_lessons.tasks import PRESETS, grid
from moe_lessons.training import plane_runs
from moe_lessons.widgets import Playground, live
from moe_lessons.widgets.picture import descendants
from moe_lessons.widgets.playground import NUM_TOKENS, RESOLUTION

TERRITORY, HEATMAP, LOAD, _, LOSS, COST = range(6)
STRUCTURE = {"task": "blobs", "num_experts": 4, "top_k": 1, "d_ff": 8, "router": "sigmoid", "router_start": "random"}
LIVE = {"lr": 0.1, "jitter_noise": 0.1, "router_aux_loss_coef": 1, "router_z_loss_coef": 0.01, "capacity_factor": 0.75}


class MyMoE(nn.Module):
    """A learner's mixture, as small as it can be: no noise, no capacity, experts in a list of modules."""

    def __init__(self, d_model, d_ff, num_experts, top_k):
        super().__init__()
        self.d_model, self.d_ff, self.num_experts, self.top_k = d_model, d_ff, num_experts, top_k
        self.router = TopKRouter(d_model, num_experts, top_k)
        self.experts = nn.ModuleList(FeedForward(d_model, d_ff) for _ in range(num_experts))

    def forward(self, x):
        routing, y = self.router(x), torch.zeros_like(x)
        for expert, ffn in enumerate(self.experts):
            mine = routing.expert_idx == expert
            tokens = routing.token_idx[mine]
            y = y.index_add(0, tokens, routing.weight[mine][:, None] * ffn(x[tokens]))
        return y, routing


def losses(playground: Playground) -> dict[str, list[float]]:
    return {name: [record.loss for record in run.records] for name, run in playground.runs.items()}


def territory(playground: Playground) -> torch.Tensor:
    """The favourite of each place, in the picture: in half precision."""
    return torch.from_numpy(mark(playground, TERRITORY, object).z.argmax(axis=-1)).flatten()


def routing_of(playground: Playground, points: torch.Tensor):
    with torch.no_grad():
        logits, (routing,) = playground.main_run.model.eval()(points)
    return logits, routing


def shown(playground: Playground) -> dict:
    """What the controls stand at; 'off' of the capacity is None."""
    values = {name: widget.value for name, widget in playground.inputs.items()}
    return values | {"capacity_factor": values["capacity_factor"] or None}


def idle(playground: Playground) -> list[str]:
    return [name for name, widget in playground.inputs.items() if widget.disabled]


def assert_consistent(playground: Playground) -> None:
    """The controls show the setting, and the models have it."""
    setting, run, in_force = playground.setting, playground.main_run, playground.values | vars(playground.setting)
    assert shown(playground) == {name: in_force[name] for name in playground.inputs}
    block, task = run.model.block, run.task
    assert (block.num_experts, block.top_k, block.d_ff) == (setting.num_experts, setting.top_k, setting.d_ff)
    assert (task.name, task.seed) == (setting.task, playground.values["seed"])
    assert all(getattr(run.knobs, name) == getattr(setting, name) for name in TRAINING)
    assert {run.knobs.lr for run in playground.runs.values()} == {setting.lr}


# --- presets and settings --------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_and_says_what_is_seen(preset):
    playground = Playground(preset, play=3)
    assert playground.setting == PRESETS[preset] and playground.step == 3
    assert_consistent(playground)
    assert len(playground.words()) > 20 and "Router logits (probabilities)" in words(playground)
    assert repr(playground) == f"Playground({preset!r}, play=3)"


@pytest.mark.parametrize("preset", ["capacity", "one expert", "healthy"])
@on_a_loop
async def test_a_preset_button_moves_the_controls_starts_afresh_and_is_marked(preset):
    playground = Playground("noise")
    playground.advance(21)
    old = playground.main_run
    button(playground, preset).click()
    await settled()
    assert playground.setting == PRESETS[preset] and repr(playground) == f"Playground({preset!r})"
    assert_consistent(playground)
    same_task = PRESETS[preset].task == PRESETS["noise"].task
    assert playground.step == 0 and playground.ghost is (old if same_task else None)
    assert [name for name in PRESETS if button(playground, name).button_style] == [preset]
    playground.set(lr=0.05)
    assert not any(button(playground, name).button_style for name in PRESETS)


def test_a_preset_can_be_chosen_from_code_and_rescued_goes_on_with_a_collapsed_run():
    playground = Playground("noise", play=2)
    playground.choose_preset("collapse")
    assert playground.setting == PRESETS["collapse"] and playground.canvas.words["step"] == 0
    for choose in (playground.choose_preset, Playground):
        with pytest.raises(ValueError, match="preset must be one of 'healthy', .*, got 'lucky'"):
            choose("lucky")
    playground.advance(60)
    dead, run = playground.main_run.records[-1].dead_experts, playground.main_run
    playground.choose_preset("rescued")
    assert playground.main_run is run and playground.marks == [60] and playground.step == 60
    playground.advance(200)
    assert playground.main_run.records[-1].dead_experts < dead
    playground.choose_preset("collapse")
    assert playground.step == 0 and playground.marks == []


@pytest.mark.parametrize(
    "made",
    [
        lambda: Playground("collapse", seed=3, lr=0.05, num_experts=16, top_k=3),
        lambda: Playground("capacity", capacity_factor=None, noise_std=0.3, play=2),
        lambda: Playground(block=MyMoE, task="waves"),
        lambda: Playground("collapse", router="sigmoid", expert_bias_rate=0.01, capacity_priority="weight"),
        lambda: Playground(num_experts=24, top_k=22, d_ff=50, noise_std=5.0, lr=0.7, capacity_factor=9.0),  # beyond
    ],
)
def test_its_repr_makes_the_same_again(made):
    playground = made()
    playground.set(d_ff=1, router_z_loss_coef=0.002)
    assert_consistent(playground)
    again = eval(repr(playground), {"Playground": Playground, "MyMoE": MyMoE})
    assert (again.setting, again.values, again.block) == (playground.setting, playground.values, playground.block)
    assert repr(again) == repr(playground)


@pytest.mark.parametrize(
    "router, lacking",
    [
        ("learned noise", ["noise_std", "expert_bias_rate"]),
        ("sigmoid", ["noise_std"]),
        ("expert choice", ["router_aux_loss_coef", "noise_std", "capacity_factor", "expert_bias_rate"]),
    ],
)
@on_a_loop
async def test_knobs_that_a_router_has_no_use_for_are_off_until_another_has(router, lacking):
    playground = Playground("capacity", capacity_priority="weight", router_aux_loss_coef=0.3)
    playground.inputs["router"].value = router
    await settled()
    assert playground.setting.router == router and idle(playground) == lacking
    assert_consistent(playground)
    for name in lacking:
        tip = playground.canvas.words["tips"][playground.inputs[name].description]
        assert getattr(playground.setting, name) == TRAINING[name].off and "Off: " in tip
        assert idle_with(router)[name] in playground._idle.value
    with pytest.raises(ValueError, match="noise_std must be off here, since the noise needs a top-k router, got 1.0"):
        playground.set(noise_std=1.0)
    playground.set(router="top-k")
    assert playground.setting == replace(PRESETS["capacity"], capacity_priority="weight", router_aux_loss_coef=0.3)
    assert idle(playground) == ["expert_bias_rate"] and playground.inputs["capacity_factor"].value == 1.25
    playground.choose_preset("noise")  # what has no control stays as it was given
    assert playground.setting == replace(PRESETS["noise"], capacity_priority="weight")


def test_a_change_of_structure_starts_afresh_and_a_knob_does_not():
    playground = Playground()
    for name, value in (STRUCTURE | LIVE).items():
        playground.advance(21)
        old, step = playground.main_run, playground.step
        playground.set(**{name: value})
        assert getattr(playground.setting, name) == value
        assert_consistent(playground)
        if name in STRUCTURE:
            assert playground.step == 0 and playground.marks == []
            assert playground.ghost is (None if name == "task" else old)  # another task is nothing to compare with
            ghosts = [m for m in playground.canvas.panels[LOSS].marks if isinstance(m, Line) and m.ink == -1]
            assert len(ghosts) == (name != "task")
        else:
            assert playground.step == step and playground.main_run is old and playground.marks[-1] == step


@on_a_loop
async def test_a_knob_applies_to_the_next_step_of_all_models():
    playground, reference = Playground(), plane_runs(PRESETS["healthy"])
    playground.inputs["lr"].value = 0.5
    button(playground, "Step").click()  # both are queued, and done in this order
    await settled()
    playground.advance(1)
    for run in reference.values():
        run.knobs.lr = 0.5
        run.step(), run.step()
    assert losses(playground) == {name: [record.loss for record in run.records] for name, run in reference.items()}


def test_the_same_seed_gives_the_same_numbers_drawn_or_not_and_muted_or_not():
    drawn, alone = Playground("noise", seed=1), Playground("noise", seed=1)
    drawn.inputs["mute"].value = "E3"
    for _ in range(4):
        drawn.advance(3)
        drawn.show(True)
        torch.rand(1)
    alone.advance(12)
    assert losses(drawn) == losses(alone)
    assert all(map(torch.equal, drawn.main_run.model.parameters(), alone.main_run.model.parameters()))
    alone.inputs["seed"].value = 2
    assert alone.step == 0
    alone.advance(12)
    assert all(losses(drawn)[name] != losses(alone)[name] for name in losses(alone))


# --- what it shows ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    return Playground(play=150)


def test_the_territory_is_the_first_choice_of_each_place_and_the_heatmap_the_routing_of_the_tokens(trained):
    assert len(territory(Playground()).unique()) >= 6  # most can be seen from the start
    favourites = routing_of(trained, grid(RESOLUTION))[1].router_probs.argmax(dim=-1)
    assert torch.equal(trained.plane.scores.argmax(dim=-1).flatten(), favourites)
    assert (territory(trained) == favourites).float().mean() > 0.99
    logits, routing = routing_of(trained, trained.points)
    tokens, dots = mark(trained, TERRITORY, Points), mark(trained, HEATMAP, Points)
    assert np.array_equal(tokens.expert, routing.router_probs.argmax(dim=-1))
    assert np.array_equal(tokens.look == 0, logits.argmax(dim=-1) == trained.classes)
    assert np.allclose(mark(trained, HEATMAP, Cells).z, routing.router_probs, atol=1e-3)
    served = set(zip(routing.token_idx.tolist(), routing.expert_idx.tolist()))
    assert set(zip(dots.y.tolist(), dots.x.tolist())) == served and len(dots.x) == len(served) == 2 * NUM_TOKENS
    assert torch.equal(trained.classes, trained.classes.sort().values)


def test_the_pictures_read_the_router_without_its_noise():
    playground = Playground("noise", noise_std=3.0)
    favourites = routing_of(playground, grid(RESOLUTION))[1].router_probs.argmax(dim=-1)
    assert (territory(playground) == favourites).float().mean() > 0.99
    playground.advance(1)
    playground.show(True)
    bars = mark(playground, LOAD, Bars)
    assert bars.second.tolist() == pytest.approx(playground.clean_load)
    assert bars.y.tolist() == pytest.approx(playground.main_run.records[-1].load[0]) != pytest.approx(bars.second)


@pytest.mark.parametrize("x_axis", ["steps", "FLOPs", "seconds"])
def test_the_loss_of_all_models_can_be_drawn_against(trained, x_axis):
    trained.inputs["x_axis"].value = x_axis
    flops_per_token = mark(trained, COST, Table).cells[2][0].replace(",", "")
    seconds = sum(record.ms_per_step for record in trained.main_run.records) / 1000
    # backward costs twice as much as forward
    last = {"steps": 150, "FLOPs": 150 * 256 * 3 * int(flops_per_token), "seconds": seconds}
    curves = [m for m in trained.canvas.panels[LOSS].marks if isinstance(m, Line)]
    assert trained.step == 150 and curves[0].x[-1] == pytest.approx(last[x_axis])
    assert [line.name for line in curves] == list(trained.runs)


def test_the_words_tell_of_the_load_of_dropped_assignments_and_of_a_loss_worse_than_guessing(trained):
    mean = torch.tensor([record.load[0] for record in trained.main_run.records[-20:]]).mean(dim=0)
    assert trained.words() == describe_load(mean, 2) == trained.canvas.words["words"]
    assert "% of the assignments are dropped" in Playground("capacity", capacity_factor=0.5, play=3).words()
    playground = Playground(lr=0.5, top_k=1, router_aux_loss_coef=0.0)
    playground.main_run.knobs.lr = 30.0
    playground.advance(60)
    assert "worse than guessing (2.08)" in playground.words()


def test_the_reading_is_the_routing_of_the_selected_token(trained):
    trained.inputs["token"].value = 9
    logits, routing = routing_of(trained, trained.points[9:10])
    scores, best = routing.router_logits[0].sort(descending=True)
    probs, text = routing.router_probs[0][best], trained.canvas.words["reading"]
    assert text.startswith("Token 9 at ") and trained.canvas.words["token"] == 9
    assert ", ".join(f"E{e} {s:+.2f} ({p:.0%})" for e, s, p in zip(best[:4].tolist(), scores, probs)) in text
    weights = (probs[:2] / probs[:2].sum()).tolist()
    assert f"Served by: {weights[0]:.2f} × E{best[0]}, {weights[1]:.2f} × E{best[1]}." in text
    assert (", correct." if logits.argmax() == trained.classes[9] else ", wrong.") in text
    dropping = Playground("capacity", capacity_factor=0.5)
    served = set(dropping.plane.routing.token_idx.tolist())
    dropping.set(token=next(t for t in range(NUM_TOKENS) if t not in served))
    assert "Served by: no expert: it was dropped." in words(dropping)


def test_a_capacity_does_not_always_drop_the_last_classes():
    dropped = torch.zeros(NUM_TOKENS)
    for seed in range(6):
        playground = Playground("capacity", seed=seed)
        for _ in range(60):
            playground.main_run.step()  # the dense twins drop nothing
        served = playground.plane.routing.token_idx
        dropped += torch.tensor([i not in served for i in range(NUM_TOKENS)])
    first, last = dropped[:16].sum(), dropped[16:].sum()
    assert first > 10 and last > 10 and 0.5 < first / last < 2


@on_a_loop
async def test_a_click_on_a_token_selects_it_and_on_anything_else_nothing():
    playground = Playground()
    for token in (0, 17, 31):
        click(playground, "token", token)
        await settled()
        assert playground.selected == playground.inputs["token"].value == playground.canvas.words["token"] == token
        assert mark(playground, TERRITORY, Points).selected == mark(playground, HEATMAP, Cells).selected == token
    for kind, index in (("token", NUM_TOKENS), ("token", 10**400), ("model", 0), ("layer", 0), ("expert", 3), ("?", 1)):
        click(playground, kind, index)
        await settled()
        assert playground.selected == 31 and playground.loop.trouble == ""


@on_a_loop
async def test_muting_says_at_once_what_is_lost_also_while_it_trains(monkeypatch):
    monkeypatch.setattr(live, "READING_SHARE", 1e-9)  # of itself, nothing is read anew
    playground = Playground(play=300, max_steps=10**6)
    await playground.finished()
    busiest = int(np.argmax(playground.main_run.records[-1].load[0]))
    playground.play()
    for muted in (f"E{busiest}", f"E{7 - busiest}", "none", f"E{busiest}"):
        step = playground.step
        playground.inputs["mute"].value = muted
        while playground.step < step + 3:
            await asyncio.sleep(0)
        assert playground._kept["plane"].stamp[-1] == playground.muted
        assert (f" {muted} muted" in words(playground)) == (muted != "none")
    text = playground.canvas.words["reading"]
    before, after = (float(word.rstrip("%")) for word in text.split("accuracy ")[1].split(" on ")[0].split(" → "))
    assert after < before - 3
    playground.set(num_experts=busiest or 1)  # that expert is gone
    await ended(playground)
    assert playground.inputs["mute"].value == "none" and "muted" not in words(playground)
    assert len(playground.inputs["mute"].options) == 1 + (busiest or 1) and playground.loop.trouble == ""


# --- trouble ---------------------------------------------------------------------------------------------


@on_a_loop
async def test_a_last_update_that_only_the_picture_finds_too_large_is_taken_back(monkeypatch):
    monkeypatch.setattr(live, "QUICK", 1000)  # seconds: all panels are drawn at once
    playground = Playground(play=2000)
    weight, run = playground.main_run.model.block.router.weight, playground.main_run
    await until(lambda: playground.step > 3)
    playground.post(lambda: weight.data.fill_(1e38))
    await playground.finished()
    assert "the last step is taken back: lower the learning rate to go on" in words(playground)
    assert playground.step < 2000 and weight.abs().max() < 100
    playground.play(5)
    before = playground.step
    await playground.finished()
    assert playground.step == before + 5 and run.records[-1].loss < 2.5


@pytest.mark.parametrize(
    "change, message",
    [
        ({"top_k": 9}, r"top_k must be between 1 and num_experts \(8\), got 9"),
        ({"num_experts": 1, "top_k": 2}, r"top_k must be between 1 and num_experts \(1\), got 2"),
        ({"num_experts": 0}, "num_experts must be a whole number of at least 1, got 0"),
        ({"d_ff": 0}, "d_ff must be a whole number of at least 1, got 0"),
        ({"lr": float("nan")}, "lr must be a finite number above 0, got nan"),
        ({"capacity_factor": 0}, "capacity_factor must be a finite number above 0, got 0"),
        ({"noise_std": -1}, "noise_std must be a finite number of at least 0, got -1"),
        ({"expert_bias_rate": 0.1}, "expert_bias_rate must be off here, since the bias needs a sigmoid router"),
        ({"router": "hash"}, "router must be one of 'top-k', 'learned noise', 'sigmoid', 'expert choice', got 'hash'"),
        ({"task": "spirals"}, "task must be one of 'blobs', 'voronoi', 'waves', 'checker', 'uneven', got 'spirals'"),
        ({"colour": "red"}, "setting must be one of '.*', got 'colour'"),
        ({"seed": -1}, "seed must be a whole number from 0 to 9999, got -1"),
        ({"seed": "one"}, "seed must be a whole number from 0 to 9999, got 'one'"),
    ],
)
def test_a_bad_setting_is_refused_and_moves_nothing(trained, change, message):
    before, run = shown(trained), trained.main_run
    with pytest.raises(ValueError, match=message):
        trained.set(**{"router_z_loss_coef": 0.1} | change)
    assert shown(trained) == before and trained.main_run is run and trained.setting == PRESETS["healthy"]
    with pytest.raises(ValueError, match=message):
        Playground(**change)


@pytest.mark.parametrize("values", [{"token": 32}, {"token": -1}, {"mute": "E8"}, {"mute": None}, {"x_axis": "hours"}])
def test_what_cannot_be_looked_at_or_made_is_refused(trained, values):
    with pytest.raises(ValueError, match=f"{list(values)[0]} must be .*, got {list(values.values())[0]!r}"):
        trained.set(**values)
    with pytest.raises(ValueError, match="device must be one of 'cpu'.* on this machine, got 'tpu9'"):
        Playground(device="tpu9")


# --- a learner's block -----------------------------------------------------------------------------------


@on_a_loop
async def test_a_block_of_your_own_trains_as_ours_does_and_lacks_controls():
    mine = Playground(block=MyMoE)
    assert idle(mine) == ["router", "noise_std", "capacity_factor", "expert_bias_rate", "mute"]
    assert idle(Playground()) == ["expert_bias_rate"] and mine.inputs["mute"].options == ("none",)
    with pytest.raises(ValueError, match="noise_std must be off here, since the noise needs a top-k router, got 1.0"):
        mine.set(noise_std=1.0)
    assert len(territory(mine).unique()) >= 6  # its router gets the same start
    mine.advance(60)
    assert mine.main_run.records[-1].loss < mine.main_run.records[0].loss - 0.5
    assert [name for name in PRESETS if button(mine, name).disabled] == ["noise", "capacity"]
    mine.choose_preset("noise")
    assert mine.setting == replace(PRESETS["noise"], noise_std=0.0) and mine.step == 0


def a_block(num_experts=None, top_k=None, change=lambda x, y, routing: (y, routing), without=None, listed=False):
    """A class that keeps the contract, but for what is named."""

    class Block(MyMoE):
        def __init__(self, d_model, d_ff, **sizes):
            super().__init__(d_model, d_ff, num_experts or sizes["num_experts"], top_k or sizes["top_k"])
            if without:
                delattr(self, without)
            if listed:
                experts = list(self.experts)
                del self.experts
                self.experts = experts

        def forward(self, x):
            return change(x, *super().forward(x))

    return Block


@pytest.mark.parametrize(
    "block, message",
    [
        (a_block(without="d_ff"), "have the attributes d_model, d_ff, num_experts, top_k and experts, got Block"),
        (a_block(listed=True), "keep its experts in a module such as nn.ModuleList, got a list in Block"),
        (a_block(change=lambda x, y, routing: y), r"return \(y, Routing\), got Tensor from Block"),
        (a_block(change=lambda x, y, routing: (y.sum(dim=-1), routing)), "return a finite y of the shape of x"),
        (a_block(change=lambda x, y, routing: (y.detach(), routing)), "return a finite y of the shape of x, with a gr"),
        (a_block(change=lambda x, y, routing: (y, routing, x.add_(1))[:2]), "leave x as it is, got it changed by"),
        (a_block(num_experts=4), "keep num_experts as given .8., got 4 in Block"),
        (a_block(top_k=1), "keep top_k as given .2., got 1 in Block"),
        (MoE(16, 4, 8, 2), "be a class called with d_model, d_ff, num_experts, top_k, got MoE"),
        ("x", "be a class called with d_model, d_ff, num_experts, top_k, got str"),
    ],
)
def test_a_block_that_breaks_the_contract_is_refused(block, message):
    assert Playground(block=a_block(), play=1).step == 1
    with pytest.raises(ValueError, match=f"block must {message}"):
        Playground(block=block)


def test_every_control_has_a_name_and_says_what_it_does(trained):
    named = [w for w in descendants(trained) if getattr(w, "description", "")]
    assert len(named) == len(trained.inputs) + 4 + len(PRESETS)
    for widget in named:
        assert len(widget.tooltip) > 5 and trained.canvas.words["tips"][widget.description] == widget.tooltip
