"""The 2-D laboratory: a mixture of experts and its two dense twins, trained while you turn the knobs."""

import math
import time
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import ipywidgets as W
import torch
from torch import nn

from moe_lessons.analysis.load import describe_load
from moe_lessons.errors import check_choice, check_device
from moe_lessons.nn import muted
from moe_lessons.plots import TerritoryMap, TokenExpertHeatmap
from moe_lessons.plots.curves import X_AXES
from moe_lessons.tasks import PLANE_TASKS, PRESETS, PlaneSetting, grid
from moe_lessons.tasks.plane import NUM_CLASSES, ONLY_WITH, ROUTER_STARTS
from moe_lessons.training import load_share, plane_runs
from moe_lessons.widgets.controls import check_seed, choice, heading, in_columns, knob_slider, limit, move, seed_box
from moe_lessons.widgets.live import LiveRun
from moe_lessons.widgets.panels import NUM_HELD_OUT, RECENT, LivePanel, num_experts, recent_load

RESOLUTION = 48  # of the territory map, in each direction
NUM_TOKENS = 32  # whose routing is shown
NUM_MORE_POINTS = 512  # on which the load without noise is measured
STRUCTURE = ("task", "num_experts", "top_k", "d_ff", "router_start")  # a change of these needs a new model
LIVE = ("lr", "noise_std", "router_aux_loss_coef", "router_z_loss_coef", "capacity_factor")  # the knobs with a slider
SECONDS_PER_VERDICT = 0.4  # how often the loss of muting an expert is measured anew

PRESET_TIPS = {
    "healthy": "Two of eight experts for each token, a little auxiliary loss: every expert has work",
    "collapse": "One expert for each token, an unsure router, nothing that balances: experts starve",
    "rescued": "The collapsed run goes on with the auxiliary loss: the dead experts come back (else: starts so)",
    "too much balance": "The auxiliary loss so strong that the task suffers",
    "noise": "The collapse with noise on the router: bars with noise, ticks without",
    "capacity": "The collapse with a limit for each expert: what is over it is dropped",
    "k = E": "Every expert works for every token: a dense mixture",
    "one expert": "A single expert: a dense network",
}

TERRITORY = LivePanel(
    lambda view, ax, theme: TerritoryMap(ax, theme, num_experts(view)),
    lambda view, panel: panel.update(view.territory, view.points, view.correct, view.selected),
)
HEATMAP = LivePanel(
    lambda view, ax, theme: TokenExpertHeatmap(ax, theme, NUM_TOKENS, num_experts(view)),
    lambda view, panel: panel.update(
        view.routing.router_probs.cpu(), view.routing.token_idx.cpu(), view.routing.expert_idx.cpu(), view.selected
    ),
)


class Playground(LiveRun):
    """Trains a mixture of experts and its two dense twins on points in the plane, live, with all controls.

    preset: a name from `tasks.PRESETS`. settings: any field of `tasks.PlaneSetting`, which then replaces the preset's;
    one that has no control stays as it is given here.
    block: your own mixture of experts (a class; see `tasks.plane_model` for what it must have).
    seed: of the task, the models, the data and the noise. device: where it trains.
    play, max_steps: see `LiveRun`.

    >>> Playground("collapse", seed=3, lr=0.05)
    Playground('collapse', seed=3, lr=0.05)
    """

    title = "MoE playground"
    can_reset = True

    def __init__(
        self,
        preset: str = "healthy",
        *,
        block: type[nn.Module] | None = None,
        seed: int = 0,
        device=None,
        play: int = 0,
        max_steps: int = 1500,
        **settings: Any,
    ):
        check_choice("preset", preset, PRESETS)
        fields = asdict(PRESETS[preset])
        for name in settings:
            check_choice("setting", name, fields)
        self.preset, self.block, self.device = preset, block, check_device(device or "cpu")
        self.setting, self.seed = replace(PRESETS[preset], **settings), check_seed(seed)
        self.selected, self._muted, self._verdict = 0, None, (0.0, "")
        self._grid = grid(RESOLUTION)
        panels = (TERRITORY, HEATMAP, "load", "film", "loss", "cost")
        runs = plane_runs(self.setting, seed, block, self.device)
        self._draw_points(runs)
        super().__init__(runs, panels, play=play, max_steps=max_steps)

    # --- what the panels show -------------------------------------------------------------------------------

    def _draw_points(self, runs) -> None:
        """The tokens that are shown, sorted by class, and more points to measure the load without noise on."""
        task = next(iter(runs.values())).task
        points, classes = task.batch(NUM_TOKENS, torch.Generator().manual_seed(self.seed + 1_000_001))
        self._order = classes.argsort(stable=True)
        self.points, self.classes = points[self._order], classes[self._order]
        self._more_points, _ = task.batch(NUM_MORE_POINTS, torch.Generator().manual_seed(self.seed + 1_000_002))

    @torch.no_grad()
    def look(self) -> None:
        """Read the router without noise: over the plane, on many points, and on the tokens that are shown."""
        model = self.main_run.model.eval()
        _, (everywhere,) = self._forward(self._grid)
        favourite = everywhere.router_probs.argmax(dim=-1)
        self.territory = favourite.view(RESOLUTION, RESOLUTION).cpu()
        if self.main_run.knobs.is_noisy or not self.main_run.records:  # else the load of training is clean too
            _, (on_many,) = self._forward(self._more_points)
            self.clean_load = load_share(on_many).tolist()
        place = self._order.argsort()  # of each token, as it was drawn, among the sorted ones
        with self._with_mute():  # tokens arrive unsorted, or a capacity would always drop the last classes
            logits, (routing,) = self._forward(self.points[place])
        order = self._order.to(routing.token_idx.device)
        self.routing = replace(
            routing,
            router_logits=routing.router_logits[order],
            router_probs=routing.router_probs[order],
            token_idx=order.argsort()[routing.token_idx],
        )
        self.correct = logits.argmax(dim=-1)[order].cpu() == self.classes
        model.train()

    def _forward(self, points):
        return self.main_run.model(points.to(self.main_run.device))

    def _with_mute(self):
        return nullcontext() if self._muted is None else muted(self.main_run.model.block.experts, self._muted)

    def words(self) -> str:
        """What the load shows, in words."""
        recent = self.main_run.records[-RECENT:]
        if not recent:
            return describe_load(self.clean_load, self.setting.top_k)
        dropped = sum(record.dropped_share for record in recent) / len(recent)
        words = describe_load(recent_load(self.main_run), self.setting.top_k, dropped)
        guessing = math.log(NUM_CLASSES)
        if sum(record.loss for record in recent) / len(recent) > 1.1 * guessing and self.step > RECENT:
            words += f" The loss is worse than guessing ({guessing:.2f}): try a lower learning rate."
        return words

    def reading(self) -> str:
        """The routing of the selected token and, where an expert is muted, what is lost."""
        i, (x, y) = self.selected, self.points[self.selected].tolist()
        scores, probs = self.routing.router_logits[i], self.routing.router_probs[i]
        best = probs.argsort(descending=True)[:4].tolist()
        read = ", ".join(f"E{e} {scores[e]:+.2f} ({probs[e]:.0%})" for e in best)
        mine = self.routing.token_idx == i
        chosen = zip(self.routing.expert_idx[mine].tolist(), self.routing.weight[mine].tolist(), strict=True)
        served = ", ".join(f"{weight:.2f} × E{expert}" for expert, weight in chosen) or "nobody: it was dropped"
        verdict = "named right" if self.correct[i] else "named wrong"
        token = f"<b>Token {i}</b> at ({x:.2f}, {y:.2f}), class {self.classes[i]}, {verdict}."
        return f"{token} Router scores (probabilities): {read}. Served by: {served}.{self._what_is_lost()}"

    def _what_is_lost(self) -> str:
        if self._muted is None:
            return ""
        measured, text = self._verdict
        if time.monotonic() - measured > SECONDS_PER_VERDICT or not self.running:
            with_it = self.main_run.evaluate(NUM_HELD_OUT)["accuracy"]
            with self._with_mute():
                without = self.main_run.evaluate(NUM_HELD_OUT)["accuracy"]
            text = f"accuracy {with_it:.1%} → {without:.1%} on {NUM_HELD_OUT} held-out points"
            self._verdict = (time.monotonic(), text)
        return f"<br><b>E{self._muted} muted</b>: {text}. Training goes on with it."

    def clicked(self, x: float, y: float) -> None:
        """Select the token under the mouse: a point of the territory, or a row of the heatmap."""
        place = self._figure.panel_at(x, y)
        if place is None:
            return
        panel, data_x, data_y = place
        if self.panels[panel] is TERRITORY:
            self._token.value = int((self.points - torch.tensor([data_x, data_y])).square().sum(dim=1).argmin())
        elif self.panels[panel] is HEATMAP:
            self._token.value = min(max(round(data_y), 0), NUM_TOKENS - 1)

    # --- controls -------------------------------------------------------------------------------------------

    def extra_rows(self) -> list[W.Widget]:
        """A button for each preset."""
        buttons = []
        for name, setting in PRESETS.items():
            button = W.Button(description=name, tooltip=PRESET_TIPS[name])
            button.disabled = any(getattr(setting, lacking) for lacking in self._lacking())
            button.on_click(lambda _, name=name: self.post(lambda: self.choose_preset(name)))
            buttons.append(button)
        self._preset_buttons = dict(zip(PRESETS, buttons, strict=True))
        self._show_preset()
        bar = W.Box([W.HTML("Presets:"), *buttons])
        bar.add_class("moe-bar")
        return [bar]

    def controls(self) -> list[W.Widget]:
        """Structure, knobs, and what to look at."""
        setting = self.setting
        self._inputs: dict[str, W.Widget] = {
            "task": choice("Task", PLANE_TASKS, "What is learned: which points belong to which class"),
            "num_experts": W.IntSlider(min=1, max=16, description="Experts E", tooltip="How many experts there are"),
            "top_k": W.IntSlider(
                min=1, max=setting.num_experts, description="Top-k", tooltip="How many experts work for each token"
            ),
            "d_ff": W.IntSlider(
                min=2, max=32, step=2, description="F (units)", tooltip="Width of each expert, d_ff: its hidden units"
            ),
            "router_start": choice(
                "Router start",
                tuple(ROUTER_STARTS),
                "Spread: even territories, sure decisions. Soft spread: even, unsure. Random: torch's own start",
            ),
            **{name: knob_slider(name) for name in LIVE},
        }
        for name in self._lacking():
            self._inputs[name].disabled = True
        router = getattr(self.main_run.model.block, "router", None)
        self._inputs["router_start"].disabled = getattr(router, "weight", None) is None
        for name, widget in self._inputs.items():
            move(widget, getattr(setting, name))
            widget.observe(lambda change, name=name: self.mark(name), "value")
        limit(self._inputs["top_k"], self._inputs["num_experts"])  # k never exceeds E
        self._seed = seed_box("Of the task, the models, data and noise")
        self._seed.value = self.seed
        self._seed.observe(lambda change: self.mark("seed"), "value")
        self._token = W.IntSlider(
            min=0, max=NUM_TOKENS - 1, description="Token", tooltip="Whose routing is read below; or click a point"
        )
        self._token.observe(lambda change: self.post(self._select), "value")
        self._mute = choice("Mute", self._mutable(), "Switch one expert off, to see what is lost without it")
        self._mute.disabled = len(self._mutable()) == 1
        self._mute.observe(lambda change: self.post(self._choose_muted), "value")
        self._x_axis = choice("Loss against", tuple(X_AXES), "The horizontal axis of the loss curves")
        self._x_axis.observe(lambda change: self.post(self._choose_x_axis), "value")
        structure = [*(self._inputs[name] for name in STRUCTURE), self._seed]
        live = [self._inputs[name] for name in LIVE]
        look = [self._token, self._mute, self._x_axis]
        in_columns([*structure, *live, *look])
        return [
            heading("Structure · starts afresh"), *structure,
            heading("Live · applies to the next step"), *live,
            heading("Look · changes nothing"), *look,
        ]  # fmt: skip

    def _lacking(self) -> list[str]:
        """The controls that the block or its router has nothing for."""
        knobs = self.main_run.knobs
        has = {"noise_std": knobs.has_noise, "capacity_factor": knobs.has_capacity}
        return [name for name in has if not has[name] or self.setting.router not in ONLY_WITH[name]]

    def _mutable(self) -> tuple[str, ...]:
        can_mute = hasattr(self.main_run.model.block.experts, "down_proj")
        return ("none", *(f"E{e}" for e in range(self.setting.num_experts if can_mute else 0)))

    def _select(self) -> None:
        self.selected = self._token.value

    def _choose_muted(self) -> None:
        self._muted = None if self._mute.value in (None, "none") else int(self._mute.value[1:])
        self._verdict = (0.0, "")

    def _choose_x_axis(self) -> None:
        self.x_axis = self._x_axis.value
        self.rebuild_figure()

    # --- applying them --------------------------------------------------------------------------------------

    def choose_preset(self, name: str) -> None:
        """Set all controls to a preset and start afresh. 'rescued' goes on with a collapsed run, if that is here."""
        collapsed = self.step > 0 and self.setting == PRESETS["collapse"]
        self.preset = check_choice("preset", name, PRESETS)
        self._move_controls(PRESETS[name])
        if not (name == "rescued" and collapsed):
            self.reset()

    def _show_preset(self) -> None:
        for name, button in self._preset_buttons.items():
            button.button_style = "info" if self.setting == PRESETS[name] else ""

    def set(self, **settings: Any) -> None:
        """Move controls, as if by hand: any field of `tasks.PlaneSetting`. A bad value moves none.

        As by hand, fewer experts lower top_k, unless it is given too.
        """
        if isinstance(settings.get("num_experts"), int) and settings["num_experts"] >= 1:
            settings.setdefault("top_k", min(self.setting.top_k, settings["num_experts"]))
        for name, value in settings.items():
            check_choice("setting", name, self._inputs)
            now = getattr(self.setting, name)
            if self._inputs[name].disabled and value != now:
                raise ValueError(f"{name} must stay {now} where the block has nothing to set, got {value!r}")
        setting = replace(self.setting, **settings)
        with self.moving_controls():
            self._move_controls(setting)

    def _move_controls(self, setting: PlaneSetting) -> None:
        move(self._inputs["num_experts"], setting.num_experts)  # first: it limits top_k
        for name, widget in self._inputs.items():
            if not widget.disabled:
                move(widget, getattr(setting, name))

    def apply(self, changed: Collection[str]) -> None:
        """A new start for structure, else the knobs."""
        values = {name: widget.value for name, widget in self._inputs.items()}
        values["top_k"] = min(values["top_k"], values["num_experts"])
        values["capacity_factor"] = values["capacity_factor"] or None  # its slider says 0 for 'off'
        setting = replace(self.setting, **values)
        moved = [name for name in STRUCTURE if getattr(setting, name) != getattr(self.setting, name)]
        if moved or "afresh" in changed or self._seed.value != self.seed:
            try:
                self._start_afresh(setting)
            except Exception:  # a learner's block cannot be made like this: what was there stays
                self._move_controls(self.setting)
                self._seed.value = self.seed
                raise
        elif setting != self.setting and self.step > 0:
            self.marks.append(self.step)
        self.setting = setting
        self._show_preset()
        for run in self.runs.values():
            run.knobs.lr = self.setting.lr
        self.main_run.knobs.take(self.setting)

    def _start_afresh(self, setting: PlaneSetting) -> None:
        old, runs = self.main_run, plane_runs(setting, self._seed.value, self.block, self.device)
        self.runs, self.setting, self.seed = runs, setting, self._seed.value
        self._draw_points(self.runs)
        if old.task.name != runs["MoE"].task.name:
            self.ghost = None  # another task: not to be compared
        elif len(old.records) > RECENT:
            self.ghost = old
        self._trouble, self.marks = "", []
        self.restart_budget()
        self.rebuild_figure()
        self._mute.options = self._mutable()  # back to 'none' where their number changes
        self._choose_muted()

    def figure_depends_on(self) -> tuple:
        """Also the number of experts."""
        return *super().figure_depends_on(), self.setting.num_experts

    def __repr__(self) -> str:
        preset, arguments = PRESETS[self.preset], [repr(self.preset)]
        if self.block is not None:
            arguments.append(f"block={self.block.__name__}")
        if self.seed:
            arguments.append(f"seed={self.seed}")
        if self.device.type != "cpu":
            arguments.append(f"device={str(self.device)!r}")
        arguments += self._arguments
        for name, value in asdict(self.setting).items():
            if value != getattr(preset, name):
                arguments.append(f"{name}={value!r}")
        return f"Playground({', '.join(arguments)})"
