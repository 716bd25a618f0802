"""Random actions on a laboratory: whatever is moved, pressed and trained, its runs are as the same steps under the same
knobs leave them without a laboratory. RANDOM_ACTIONS=500 tries so many sequences of each."""

import os
import random
import threading

import ipywidgets as W
import pytest
from live_tools import LABS, assert_consistent, button, click, losses, on_a_loop, settled

from moe_lessons.training import TrainingDiverged, step_together
from moe_lessons.training.knobs import KNOBS

NAMES = ["Playground", "RoutingLab", "CollapseLab", "FactsLab"]  # in a BalancingLab tiles train in turn


class Oracle:
    """What is asked of a laboratory, and runs that train under it. like: another one, which makes the runs."""

    def __init__(self, like):
        self.like, self.values = like, like.state.values
        self.start()

    def start(self) -> None:
        self.runs, self.changes = self.like.make_runs(self.values), set()
        self.turn()

    def turn(self) -> None:
        knobs = [(run, n) for run in self.runs.values() for n in self.like.spec.live if n == "lr" or run.num_experts]
        before, idle = [getattr(run.knobs, n) for run, n in knobs], self.like.idle(self.values)
        for run, name in knobs:
            setattr(run.knobs, name, KNOBS[name].off if name in idle else self.values[name])
        if before != [getattr(run.knobs, n) for run, n in knobs]:
            self.changes |= {len(self.runs["MoE"].records)} - {0}

    def ask(self, **asked) -> None:
        before, self.values = self.values, self.values | asked
        if "num_experts" in asked:
            self.values["top_k"] = min(self.values["top_k"], asked["num_experts"])
        is_other = any(self.values[name] != before[name] for name in self.like.spec.structural)
        self.start() if is_other else self.turn()

    def train(self, steps: int) -> None:
        try:
            for _ in range(steps):
                step_together(self.runs.values())
        except TrainingDiverged:  # and a step is taken back
            self.changes = {min(change, len(self.runs["MoE"].records)) for change in self.changes} - {0}


async def act(lab, oracle: Oracle, chance: random.Random) -> None:
    controls = {n: w for n, w in lab.inputs.items() if isinstance(w, W.Dropdown | W.SelectionSlider | W.IntSlider)}
    name = chance.choice([name for name in controls if not controls[name].disabled])
    stops = getattr(control := controls[name], "options", None) or range(control.min, control.max + 1)
    value = chance.choice([stop[-1] if isinstance(stop, tuple) else stop for stop in stops][:4])
    asked, steps = {name: None if (name, value) == ("capacity_factor", 0) else value}, chance.randint(1, 3)
    kind = chance.choice(["move", "move", "take back", "set", "refused", "Restart", "Step", "play", "diverge"])
    if kind in ("move", "take back", "Restart"):
        if kind == "Restart":
            button(lab, kind).click(), oracle.start()
        else:
            page = threading.Thread(target=setattr, args=(control, "value", value))
            page.start(), page.join()
            click(lab, "take back", 0) if kind == "take back" else oracle.ask(**{name: asked[name]})
        await settled()
        lab.pause()  # what started afresh trains on
        await settled()
        oracle.train(lab.step - len(oracle.runs["MoE"].records))
    elif kind == "set":
        lab.set(**asked), oracle.ask(**asked)
    elif kind == "refused":
        with pytest.raises(ValueError):
            lab.set(**asked | {"seed": -1})
    elif kind == "Step":
        button(lab, kind).click(), oracle.train(1)
    else:
        if kind == "diverge" and "lr" in controls:
            lab.set(lr=1e15), oracle.ask(lr=1e15)
        lab.play(steps), oracle.train(steps)
        await lab.finished()
    await settled()


@pytest.mark.parametrize("seed", range(int(os.environ.get("RANDOM_ACTIONS", 3))))
@pytest.mark.parametrize("name", NAMES)
@on_a_loop
async def test_random_actions_leave_what_the_same_steps_leave_without_a_laboratory(name, seed):
    chance, lab, oracle = random.Random(f"{name} {seed}"), LABS[name](), Oracle(LABS[name]())
    for _ in range(12):
        await act(lab, oracle, chance)
        assert lab.state.values == oracle.values and losses(lab) == losses(oracle)
        assert set(lab.state.changes) == oracle.changes
        assert_consistent(lab)
