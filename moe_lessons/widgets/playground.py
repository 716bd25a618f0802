"""The 2-D laboratory: a mixture of experts and its two dense twins, trained while you turn the knobs."""

import time
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
from moe_lessons.tasks.plane import ROUTER_STARTS
from moe_lessons.training import load_share, plane_runs
from moe_lessons.widgets.live import LiveRun
from moe_lessons.widgets.panels import LivePanel, num_experts

RESOLUTION = 48  # of the territory map, in each direction
NUM_TOKENS = 32  # whose routing is shown
NUM_HELD_OUT = 512  # points on which accuracy and the load without noise are measured
STRUCTURE = ("task", "num_experts", "top_k", "d_ff", "router_start")  # a change of these needs a new model
SECONDS_PER_VERDICT = 0.4  # how often the loss of muting an expert is measured anew

TERRITORY = LivePanel(
    lambda view, ax, theme: TerritoryMap(ax, theme, num_experts(view)),
    lambda view, panel: panel.update(view.territory, view.points, view.correct, view.selected),
)
HEATMAP = LivePanel(
    lambda view, ax, theme: TokenExpertHeatmap(ax, theme, NUM_TOKENS, num_experts(view)),
    lambda view, panel: panel.update(
        view.routing.router_probs, view.routing.token_idx, view.routing.expert_idx, view.selected
    ),
)


class Playground(LiveRun):
    """Trains a mixture of experts and its two dense twins on points in the plane, live, with all controls.

    preset: a name from `tasks.PRESETS`. settings: any field of `tasks.PlaneSetting`, which then replaces the preset's.
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
        self.setting, self.seed = replace(PRESETS[preset], **settings), seed
        self.selected, self._muted, self._verdict = 0, None, (0.0, "")
        self._changed: set[str] = set()
        self._grid = grid(RESOLUTION)
        panels = (TERRITORY, HEATMAP, "load", "film", "loss", "cost")
        runs = plane_runs(self.setting, seed, block, self.device)
        self._draw_points(runs)
        super().__init__(runs, panels, play=play, max_steps=max_steps)

    # --- what the panels show -------------------------------------------------------------------------------

    def _draw_points(self, runs) -> None:
        """The tokens that are shown, sorted by class, and the held-out points."""
        task = next(iter(runs.values())).task
        points, classes = task.batch(NUM_TOKENS, torch.Generator().manual_seed(self.seed + 1_000_001))
        order = classes.argsort(stable=True)
        self.points, self.classes = points[order], classes[order]
        self._held_out = task.batch(NUM_HELD_OUT, torch.Generator().manual_seed(self.seed + 1_000_002))

    @torch.no_grad()
    def look(self) -> None:
        """Read the router without noise: over the plane, on the tokens that are shown, and on held-out points."""
        model = self.main_run.model.eval()
        _, (everywhere,) = self._forward(self._grid)
        favourite = everywhere.router_probs.argmax(dim=-1)
        self.territory = favourite.view(RESOLUTION, RESOLUTION).cpu()
        _, (held_out,) = self._forward(self._held_out[0])
        self.clean_load = load_share(held_out).tolist()
        if self._muted is None:
            logits, (self.routing,) = self._forward(self.points)
        else:
            with muted(model.block.experts, self._muted):
                logits, (self.routing,) = self._forward(self.points)
        self.correct = logits.argmax(dim=-1).cpu() == self.classes
        model.train()

    def _forward(self, points):
        return self.main_run.model(points.to(self.main_run.device))

    def words(self) -> str:
        """What the load shows, in words."""
        records = self.main_run.records
        load, dropped = (records[-1].load[0], records[-1].dropped_share) if records else (self.clean_load, 0.0)
        return describe_load(load, self.setting.top_k, dropped)

    def reading(self) -> str:
        """The routing of the selected token and, where an expert is muted, what is lost."""
        i, (x, y) = self.selected, self.points[self.selected].tolist()
        probs = self.routing.router_probs[i]
        best = ", ".join(f"E{e} {probs[e]:.2f}" for e in probs.argsort(descending=True)[:4].tolist())
        mine = self.routing.token_idx == i
        chosen = zip(self.routing.expert_idx[mine].tolist(), self.routing.weight[mine].tolist(), strict=True)
        served = ", ".join(f"{weight:.2f} × E{expert}" for expert, weight in chosen) or "nobody: it was dropped"
        verdict = "named right" if self.correct[i] else "named wrong"
        token = f"<b>Token {i}</b> at ({x:.2f}, {y:.2f}), class {self.classes[i]}, {verdict}."
        return f"{token} Router probabilities: {best}. Served by: {served}.{self._what_is_lost()}"

    @torch.no_grad()
    def _what_is_lost(self) -> str:
        if self._muted is None:
            return ""
        measured, text = self._verdict
        if time.monotonic() - measured > SECONDS_PER_VERDICT or not self.running:
            model, (x, y) = self.main_run.model.eval(), self._held_out
            with_it = (self._forward(x)[0].argmax(dim=-1).cpu() == y).float().mean()
            with muted(model.block.experts, self._muted):
                without = (self._forward(x)[0].argmax(dim=-1).cpu() == y).float().mean()
            model.train()
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
        for name in PRESETS:
            button = W.Button(description=name, tooltip=f"Set the controls to the preset '{name}' and start afresh")
            button.on_click(lambda _, name=name: self.post(lambda: self.choose_preset(name)))
            buttons.append(button)
        bar = W.Box([W.HTML("Presets:"), *buttons])
        bar.add_class("moe-bar")
        return [bar]

    def controls(self) -> list[W.Widget]:
        """Structure, knobs, and what to look at."""
        setting, knobs = self.setting, self.main_run.knobs
        self._inputs: dict[str, W.Widget] = {
            "task": _choice("Task", PLANE_TASKS, "What is learned: which points belong to which class"),
            "num_experts": W.IntSlider(min=1, max=16, description="Experts E", tooltip="How many experts there are"),
            "top_k": W.IntSlider(
                min=1, max=setting.num_experts, description="Top-k", tooltip="How many experts work for each token"
            ),
            "d_ff": W.IntSlider(
                min=2, max=32, step=2, description="Width F", tooltip="Hidden units of each expert (d_ff)"
            ),
            "router_start": _choice(
                "Router start",
                tuple(ROUTER_STARTS),
                "Spread: even territories, sure decisions. Soft spread: even, unsure. Random: torch's own start",
            ),
            "lr": _stops(
                "Learning rate", (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5), "Of Adam, for all three models"
            ),
            "noise_std": W.FloatSlider(
                min=0,
                max=3,
                step=0.05,
                description="Noise",
                tooltip="Standard deviation of the Gaussian noise on the router's logits, in training only",
                disabled=self.block is not None and not knobs.has_noise,
            ),
            "router_aux_loss_coef": _stops(
                "Auxiliary loss",
                (0.0, 0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0),
                "What the load-balancing loss is multiplied by before it is added",
            ),
            "router_z_loss_coef": _stops(
                "z-loss",
                (0.0, 0.0001, 0.001, 0.01, 0.1, 1.0),
                "What the router z-loss is multiplied by before it is added",
            ),
            "capacity_factor": _stops(
                "Capacity",
                (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0),
                "Places of each expert, in multiples of its even share; assignments beyond them are dropped",
            ),
        }
        self._inputs["capacity_factor"].disabled = not knobs.has_capacity
        for name, value in asdict(setting).items():
            _move(self._inputs[name], value)
            self._inputs[name].observe(lambda change, name=name: self._mark(name), "value")
        self._inputs["num_experts"].observe(self._limit_top_k, "value")
        self._seed = W.BoundedIntText(
            value=self.seed, min=0, max=9999, description="Seed", tooltip="Of the task, the models, data and noise"
        )
        self._seed.observe(lambda change: self._mark("seed"), "value")
        self._token = W.IntSlider(
            min=0, max=NUM_TOKENS - 1, description="Token", tooltip="Whose routing is read below; or click a point"
        )
        self._token.observe(lambda change: self.post(self._select), "value")
        self._mute = _choice("Mute", self._mutable(), "Switch one expert off, to see what is lost without it")
        self._mute.observe(lambda change: self.post(self._choose_muted), "value")
        self._x_axis = _choice("Loss against", tuple(X_AXES), "The horizontal axis of the loss curves")
        self._x_axis.observe(lambda change: self.post(self._choose_x_axis), "value")
        structure = [*(self._inputs[name] for name in STRUCTURE), self._seed]
        live = [widget for name, widget in self._inputs.items() if name not in STRUCTURE]
        look = [self._token, self._mute, self._x_axis]
        for widget in (*structure, *live, *look):
            widget.style.description_width = "88px"
            widget.layout.width = "auto"
        return [
            _heading("Structure · starts afresh"), *structure,
            _heading("Live · applies to the next step"), *live,
            _heading("Look · changes nothing"), *look,
        ]  # fmt: skip

    def _limit_top_k(self, change) -> None:
        self._inputs["top_k"].max = change["new"]  # the slider moves its value along: k never exceeds E

    def _mutable(self) -> tuple[str, ...]:
        can_mute = hasattr(self.main_run.model.block.experts, "down_proj")
        return ("none", *(f"E{e}" for e in range(self.setting.num_experts if can_mute else 0)))

    def _mark(self, name: str) -> None:
        """A control has moved: have its value applied. Its value is read then, so that only the last one counts."""
        self.post(lambda: self._changed.add(name))

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
        """Set all controls to a preset and start afresh."""
        self.preset = check_choice("preset", name, PRESETS)
        self._move_controls(PRESETS[name])
        self._changed |= {"seed"}

    def set(self, **settings: Any) -> None:
        """Move controls, as if by hand: any field of `tasks.PlaneSetting`. A bad value moves none."""
        for name in settings:
            check_choice("setting", name, self._inputs)
        self._move_controls(replace(self.setting, **settings))
        self._do_actions()
        if not self.running:
            self.show_frame()

    def _move_controls(self, setting: PlaneSetting) -> None:
        fields = asdict(setting)
        self._inputs["num_experts"].value = fields["num_experts"]  # first: it limits top_k
        for name, value in fields.items():
            widget = self._inputs[name]
            if not widget.disabled:
                _move(widget, value)

    def reset(self) -> None:
        """Start afresh with the same settings."""
        self._changed |= {"seed"}

    def settle(self) -> None:
        """Apply the controls that have moved: a new start for structure, else the knobs."""
        changed, self._changed = self._changed, set()
        if not changed:
            return
        values = {name: widget.value for name, widget in self._inputs.items()}
        values["top_k"] = min(values["top_k"], values["num_experts"])
        values["capacity_factor"] = values["capacity_factor"] or None  # its slider says 0 for 'off'
        self.setting = PlaneSetting(**values)
        if changed & {*STRUCTURE, "seed"}:
            self._start_afresh()
        knobs = self.main_run.knobs
        for run in self.runs.values():
            run.knobs.lr = self.setting.lr
        for name in ("noise_std", "router_aux_loss_coef", "router_z_loss_coef", "capacity_factor"):
            setattr(knobs, name, getattr(self.setting, name))

    def _start_afresh(self) -> None:
        old = self.main_run
        self.seed = self._seed.value
        self.runs = plane_runs(self.setting, self.seed, self.block, self.device)
        self._draw_points(self.runs)
        if len(old.records) > 20:
            self.ghost = old
        self._trouble = ""
        self._mute.options = self._mutable()
        self.restart_budget()
        self.rebuild_figure()

    def __repr__(self) -> str:
        preset, arguments = PRESETS[self.preset], [repr(self.preset)]
        if self.block is not None:
            arguments.append(f"block={self.block.__name__}")
        if self.seed:
            arguments.append(f"seed={self.seed}")
        if self.device.type != "cpu":
            arguments.append(f"device={str(self.device)!r}")
        if self._constructor:
            arguments.append(self._constructor)
        for name, value in asdict(self.setting).items():
            if value != getattr(preset, name):
                arguments.append(f"{name}={value!r}")
        return f"Playground({', '.join(arguments)})"


def _heading(text: str) -> W.HTML:
    return W.HTML(f'<div class="moe-group">{text}</div>')


def _choice(description: str, options: tuple[str, ...], tooltip: str) -> W.Dropdown:
    return W.Dropdown(options=options, description=description, tooltip=tooltip)


def _stops(description: str, stops: tuple[float, ...], tooltip: str) -> W.SelectionSlider:
    """A slider over chosen numbers, written as plain decimals; 0 reads 'off'."""
    return W.SelectionSlider(options=_named(stops), description=description, tooltip=tooltip)


def _named(stops: tuple[float, ...]) -> list[tuple[str, float]]:
    return [("off" if stop == 0 else f"{stop:g}", stop) for stop in stops]


def _move(widget: W.Widget, value: Any) -> None:
    """Move a control to a value; a slider over chosen numbers gets it as a new one if it has to. None is 'off'."""
    if isinstance(widget, W.SelectionSlider):
        value, stops = value or 0.0, [stop for _, stop in widget.options]
        if value not in stops:
            widget.options = _named(tuple(sorted({*stops, value})))
    widget.value = value
