"""The 2-D laboratory: a mixture of experts and its two dense baselines, trained while you turn the knobs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import ipywidgets as W
from torch import nn

from moe_lessons.nn import MoE, muted
from moe_lessons.plots.marks import CLASSES, Panel
from moe_lessons.plots.panels._history import LOAD_WINDOW
from moe_lessons.plots.panels.block import as_digits
from moe_lessons.plots.theme import as_weight
from moe_lessons.support.errors import check_choice
from moe_lessons.tasks import PLANE_TASKS
from moe_lessons.tasks.plane import read_points
from moe_lessons.training import PRESETS, PlaneSetting, Run, plane_runs
from moe_lessons.training.as_pytorch import as_pytorch
from moe_lessons.training.knobs import KNOBS, idle_knobs, idle_with
from moe_lessons.training.settings import NUM_CLASSES, PLANE_ROUTERS, ROUTER_STARTS
from moe_lessons.widgets.controls import TIPS, control
from moe_lessons.widgets.laboratory import AFRESH, AFRESH_SIGN, FEW_PACE, Lab, names_of
from moe_lessons.widgets.plane_readings import route
from moe_lessons.widgets.spec import Spec

NUM_HELD_OUT = 256  # points on which the loss of muting an expert is measured

FRONT = {"territory": 6, "route": 6, "answer": 12, "loss": 12}  # what is shown at first: panel -> its width
FRONT_CONTROLS = "num_experts", "top_k", "noise_std", "router_aux_loss_coef"
PLANE_PANELS = (*FRONT, "heatmap", "load", "film", "cost")
FRONT_TOKEN = 23  # with seed 0 its probabilities are apart: one sees which experts are chosen, and both count
PACE = 25  # steps a second of its first training with all panels: one sees how it learns
# what the buttons of these names set: without an auxiliary loss some experts die, a strong one revives them
COLLAPSE, RESCUE = {"router_aux_loss_coef": 0.0}, {"router_aux_loss_coef": 1.0}
PRESET_LABELS = {"collapse": "top-1 collapse", "rescued": "top-1 rescue"}  # the buttons Collapse and Rescue set others
PLAYGROUND = Spec(
    title="MoE playground",
    settings=asdict(PlaneSetting()),
    structural=("task", "num_experts", "top_k", "d_ff", "router", "router_start", "seed", "points"),
    live=tuple(KNOBS),
    display=("token", "mute", "pen", "classes", "x_axis"),
    stops={"task": tuple(PLANE_TASKS), "router": tuple(PLANE_ROUTERS), "router_start": tuple(ROUTER_STARTS)},
    clicks=("token", "token"),
)


class Playground(Lab):
    """Train a mixture of experts and its two dense baselines on points in the plane, live, with all controls.

    preset: a name from `training.PRESETS`. settings: fields of `training.PlaneSetting` that replace the preset's, also
    `points` of your own, which 'Draw points' draws in the territory.
    block: your own mixture of experts (a class; see `training.plane_model` for what it must have).
    Without panels and controls of your own it begins with what explains most; 'More' shows the rest. Until a control or
    button is touched, such a one trains what `play` asks for at 25 steps a second, another at 40, and again where one
    starts it.
    controls: which there are, by name; with fewer than all there are no buttons of presets.
    panels, play, max_steps: see `LiveRun`. seed: of the task, the models, the data and the noise.
    device: "cpu", "cuda", "cuda:1", or "auto": a GPU where there is one.

    >>> Playground("collapse", seed=3, lr=0.05)
    Playground('collapse', seed=3, lr=0.05)
    """

    def __init__(
        self, preset: str = "healthy", *, block: Callable[..., nn.Module] | None = None, seed: int = 0,
        panels=PLANE_PANELS, controls: Sequence[str] | None = None, play: int = 0, max_steps: int = 1500,
        device: str = "cpu", **settings: Any,
    ):  # fmt: skip
        spec, setting = PLAYGROUND, asdict(PRESETS[check_choice("preset", preset, PRESETS)])
        if controls is not None:
            controls = names_of(controls, "control", sum(spec.groups.values(), ())) if controls else ()
            chosen = {group: tuple(n for n in names if n in controls) for group, names in spec.groups.items()}
            spec = replace(spec, **chosen)
        self.block = block
        self._block_idle: dict[str, str] = {}  # of a block of your own, once it is made: what it has no use for
        values = {"preset": preset, "block": block, "seed": seed, "panels": panels, "controls": controls}
        self.is_front = controls is None and panels == PLANE_PANELS
        self.pace = PACE if self.is_front else FEW_PACE
        values |= {"device": device, "token": FRONT_TOKEN if self.is_front else 0, "mute": "none", "classes": "shown"}
        values |= setting | {"pen": "off"}
        self._rest: list[W.Widget] = []  # that only 'More' shows
        self._front_buttons: list[tuple[W.Button, Callable[[], bool]]] = []  # and whether each of them is lit
        self._past: list[str] = []  # points before each that were drawn
        columns = None if self.is_front else 3
        super().__init__(spec, values, panels, settings, play=play, max_steps=max_steps, columns=columns)

    def arguments(self) -> dict[str, Any]:
        """See `LiveRun`: the name of the preset is always written, and what differs from it."""
        return super().arguments() | {"preset": None} | asdict(PRESETS[self.state.values["preset"]])

    def stops(self, name: str, values: dict[str, Any]) -> Any:
        if name == "mute":
            return ("none", *(f"E{e}" for e in range(values["num_experts"]) if "mute" not in self._block_idle))
        return super().stops(name, values)

    def idle(self, values: dict[str, Any]) -> dict[str, str]:
        drawn = {"task": TIPS["own"]["idle"]} if values["points"] else {}
        if self.block is None:
            return drawn | idle_with(check_choice("router", values["router"], PLANE_ROUTERS))
        return drawn | self._block_idle | {"router": "the block has a router of its own"}

    def check(self, values: dict[str, Any], given=()) -> dict[str, Any]:
        self.setting_of(values)  # refuses bad sizes
        if "mute" not in given and values["mute"] not in self.stops("mute", values):
            values = values | {"mute": "none"}  # that expert is gone
        return super().check(values, given)

    def setting_of(self, values: dict[str, Any]) -> PlaneSetting:
        values = self.in_force(values)
        return PlaneSetting(**{field.name: values[field.name] for field in fields(PlaneSetting)})

    @property
    def setting(self) -> PlaneSetting:
        """Return what is in force now."""
        return self.setting_of(self.state.values)

    def make_runs(self, values: dict[str, Any]) -> dict[str, Run]:
        runs = plane_runs(self.setting_of(values), values["seed"], self.block, values["device"])
        if self.block is not None:
            model = runs["MoE"].model
            self._block_idle = idle_knobs(model)
            if getattr(getattr(model.block, "router", None), "weight", None) is None:
                self._block_idle |= {"router_start": "the block has no router.weight"}
            if not isinstance(model.block, MoE):
                self._block_idle |= {"mute": "only our experts can be muted"}
        return runs

    def _draw(self, function: Callable[[Any], Panel]) -> Panel:
        panel = super()._draw(function)
        if self.is_front:
            name = function.__name__
            caption = panel.caption or TIPS["captions"].get(name, "")
            panel = replace(panel, width=FRONT.get(name, panel.width), caption=caption)
        return panel

    def bar(self) -> list[W.Widget]:
        title, play, *steps, restart = super().bar()
        copy = self.button("Copy as PyTorch", TIPS["code"], lambda: self.canvas.copy(self.as_pytorch(), "moe_plane.py"))
        if not self.is_front:
            return [title, play, *steps, restart, copy]
        healthy = self.preset_button("healthy", "Healthy", TIPS["presets"]["healthy"], icon=AFRESH)
        collapse = self.button("Collapse", TIPS["front"]["Collapse"], self.collapse, icon=AFRESH)
        rescue = self.button("Rescue", TIPS["front"]["Rescue"], self.rescue)
        self._front_buttons = [
            (healthy, lambda: self.is_at("healthy")),
            (collapse, lambda: COLLAPSE.items() <= self.state.values.items()),
            (rescue, lambda: bool(self.state.names) and RESCUE.items() <= self.state.values.items()),
        ]
        self._more = W.ToggleButton(description="More", tooltip=TIPS["front"]["More"])
        self._more.observe(lambda _: self.post(self._show_rest), "value")
        self._rest += [collapse, rescue, *steps]  # they would answer what the first lesson asks
        return [title, play, healthy, restart, self._more, copy, collapse, rescue, *steps]

    def as_pytorch(self) -> str:
        """Write the mixture that is shown as a program of PyTorch alone: see `training.as_pytorch`."""
        if self.block is not None:
            raise ValueError(f"block must be none where a program is asked for, got your own {self.block.__name__}")
        return as_pytorch(self.setting, self.state.values["seed"])

    def rows(self) -> list[W.Widget]:
        """A button for each preset, where all controls are there, but for those whose knobs would be idle; and a row to
        draw points."""
        self._preset_buttons = {}
        if self.state.values["controls"] is not None:
            return []
        for name, setting in list(PRESETS.items())[self.is_front :]:  # healthy has a button above
            idle = [KNOBS[n] for n in self.idle(asdict(setting)) if n in KNOBS]
            # a loss without use does no harm
            if all(getattr(setting, knob.name) == knob.off for knob in idle if knob.auxiliary_loss is None):
                label = PRESET_LABELS.get(name, name)
                self._preset_buttons[name] = self.preset_button(name, label, TIPS["presets"][name])
        self.applied()
        presets = W.HTML(f"{AFRESH_SIGN} Presets:"), *self._preset_buttons.values()
        self.inputs["pen"] = control("pen")
        actions = {"Undo points": self._undo_points, "Clear points": self._clear_points}
        drawing = self.inputs["pen"], *(self.button(n, TIPS["own"][n], action) for n, action in actions.items())
        made = [W.Box(row).add_class("moe-bar") for row in (presets, drawing)]
        self._rest += [self.inputs["pen"], *made]
        return made

    def controls(self) -> list[W.Widget]:
        made = super().controls()
        if self.is_front:
            self._rest += [widget for name, widget in self.inputs.items() if name not in FRONT_CONTROLS]
            self._rest += [self.headings["display"], self._idle]
            self._all_functions = self.functions
            self._show_rest()
        return made

    def show_more(self, is_more: bool = True) -> None:
        """Show all panels and controls, as the button 'More' does, or only those that explain most."""
        self._more.value = is_more
        self.loop.now(self._show_rest)

    def _show_rest(self) -> None:
        self.functions = self._all_functions[: None if self._more.value else len(FRONT)]
        for widget in self._rest:
            widget.layout.display = None if self._more.value else "none"

    def collapse(self) -> None:
        """Start afresh without an auxiliary loss, and train."""
        self.loop.now(lambda: self.apply(COLLAPSE, restart=True))
        self.play_as_at_first()

    def preset_button(self, preset: str, text: str, tip: str, **style: str) -> W.Button:
        """A button that chooses a preset, and trains."""

        def train() -> None:
            self.choose_preset(preset)
            self.play_as_at_first()

        return self.button(text, tip, train, **style)

    def rescue(self) -> None:
        """Go on with a strong auxiliary loss, which revives dead experts."""

        def rescue() -> None:
            self.state.names[self.step] = TIPS["front"]["rescued" if self.dead else "nothing"]
            self.apply(RESCUE)

        self.loop.now(rescue)
        self.play_as_at_first()

    def body(self) -> W.Widget:
        body = super().body()
        self.canvas.on_draw = lambda points: self.post(lambda: self._learn(self.state.values["points"] + points))
        return body

    def _learn(self, points: str) -> None:
        before = self.state.values["points"]
        self.apply_by_hand({"points": points})
        self._past.append(before)

    def _undo_points(self) -> None:
        if not self._past:
            raise ValueError(TIPS["own"]["nothing"])
        self.apply_by_hand({"points": self._past.pop()})

    def _clear_points(self) -> None:
        if self.state.values["points"]:
            self._learn("")

    def is_at(self, preset: str) -> bool:
        """Return whether all that a preset sets is as it says."""
        return replace(self.setting, points="") == PRESETS[preset]

    def applied(self) -> None:
        for name, button in self._preset_buttons.items():
            button.button_style = "info" if self.is_at(name) else ""
        for button, is_lit in self._front_buttons:
            button.button_style = "info" if is_lit() else ""

    def choose_preset(self, name: str) -> None:
        """Set all controls to a preset and start afresh; points of your own stay. 'rescued' goes on with a collapsed
        run, if that is here."""
        setting = asdict(PRESETS[check_choice("preset", name, PRESETS)])

        def choose() -> None:
            goes_on = name == "rescued" and self.step > 0 and self.is_at("collapse")
            controlled = {n: value for n, value in setting.items() if n in self.inputs and n != "points"}
            self.apply(controlled | {"preset": name}, restart=not goes_on)

        self.loop.now(choose)

    def reading_depends_on(self) -> tuple:
        return *super().reading_depends_on(), self.state.muted

    def words(self) -> str:
        losses = [record.loss for record in self.main_run.records[-LOAD_WINDOW:]]
        guessing = math.log(NUM_CLASSES)
        is_worse = self.step > LOAD_WINDOW and sum(losses) > 1.1 * guessing * len(losses)
        worse = TIPS["reading"]["worse"].format(guessing=f"{guessing:.2f}") * is_worse
        return super().words() + worse + self._words_of_points()

    def lines(self) -> dict[str, Any]:
        """See `LiveRun`; and for the line of the step what a new start has."""
        values = self.state.values
        E = values["num_experts"]
        sizes = f"{E} expert{'s' * (E > 1)}, top-{values['top_k']}"
        return super().lines() | self.lines_of_load() | {"sizes": sizes}

    def _words_of_points(self) -> str:
        said = TIPS["reading"]
        points, classes = read_points(self.state.values["points"])
        if not len(points):
            return "" if self.state.pen is None else said["draw"]
        return said["own"].format(points=len(points)) + said["one class"] * (len(classes.unique()) == 1)

    def reading(self) -> str:
        plane, i = self.plane, self.state.token
        (x, y), routing = plane.points[i].tolist(), plane.routing
        logits, probs = routing.router_logits[i].tolist(), routing.router_probs[i].tolist()
        best = sorted(range(len(probs)), key=probs.__getitem__, reverse=True)[:4]
        read = ", ".join(f"E{e} {logits[e]:+.2f} ({100 * probs[e]:.0f} %)" for e in best).replace("-", "−")
        mine = routing.token_idx == i
        chosen = zip(routing.weight[mine].tolist(), routing.expert_idx[mine].tolist())
        served = ", ".join(f"{as_weight(w)} × E{expert}" for w, expert in chosen) or TIPS["reading"]["dropped"]
        verdict = "correct" if plane.correct[i] else "wrong"
        place = {"x": as_digits(x), "y": as_digits(y)}
        facts = place | {"label": CLASSES[plane.classes[i]], "verdict": verdict, "read": read, "served": served}
        text = TIPS["reading"]["token" if self.state.values["controls"] is None else "few"].format(token=i, **facts)
        if (expert := self.state.muted) is not None:
            with_it, without = (f"{100 * accuracy:.1f} %" for accuracy in self.read("muted", self._read_muted))
            facts = {"expert": expert, "with_it": with_it, "without": without, "points": NUM_HELD_OUT}
            text += TIPS["reading"]["muted"].format(**facts)
        return text

    def _read_muted(self) -> list[float]:
        """The accuracy with the expert and without it."""
        model, (points, classes) = self.main_run.model, self.main_run.held_out(NUM_HELD_OUT)
        both = route(model, points)[0], route(muted(model, model.block, self.state.muted), points)[0]
        return [(logits.argmax(dim=-1) == classes).float().mean().item() for logits in both]
