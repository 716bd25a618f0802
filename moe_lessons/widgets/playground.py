"""The 2-D laboratory: a mixture of experts and its two dense twins, trained while you turn the knobs."""

import math
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from typing import Any, NamedTuple

import ipywidgets as W
import torch
from torch import Tensor, nn

from moe_lessons.analysis.load import describe_load
from moe_lessons.errors import check_choice, check_device, is_whole
from moe_lessons.knobs import idle_knobs, idle_with
from moe_lessons.nn import Routing, muted, torch_threads
from moe_lessons.plots.panels._history import RECENT, recent_load
from moe_lessons.tasks import PLANE_TASKS, PRESETS, PlaneSetting, grid
from moe_lessons.tasks.plane import NUM_CLASSES, ROUTER_STARTS, ROUTERS
from moe_lessons.training import Run, load_share, plane_runs
from moe_lessons.widgets.controls import check_seed
from moe_lessons.widgets.lab import Lab

RESOLUTION = 25  # points of the grid on which the router is read, in each direction: borders are exact in between
NUM_TOKENS = 32  # whose routing is shown
NUM_MORE_POINTS = 512  # on which the load without noise is measured
NUM_HELD_OUT = 256  # points on which the loss of muting an expert is measured

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
FIELDS = tuple(field.name for field in fields(PlaneSetting))


class Plane(NamedTuple):
    """What the router and the model make of the plane, without noise: see `plots.panels.territory` and `heatmap`."""

    points: Tensor  # (T, 2): the tokens that are shown
    scores: Tensor  # (R, R, E): log-probabilities of the router on a `tasks.grid`
    routing: Routing  # of the tokens
    correct: Tensor  # (T,): whether the model gives a token its class


class Playground(Lab):
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
    START = ("task", "num_experts", "top_k", "d_ff", "router", "router_start", "seed")
    LOOK = ("token", "mute", "x_axis")

    def __init__(
        self, preset="healthy", *, block: type[nn.Module] | None = None, seed=0, device=None, play=0, max_steps=1500,
        **settings: Any,
    ):  # fmt: skip
        check_choice("preset", preset, PRESETS)
        for name in settings:
            check_choice("setting", name, FIELDS)
        self.preset, self.block, self.device = preset, block, check_device(device or "cpu")
        self._block_idle: dict[str, str] = {}  # of a block of your own, once it is made: what it has no use for
        values = asdict(PRESETS[preset]) | settings | {"seed": seed, "token": 0, "mute": "none"}
        panels = ("territory", "heatmap", "load", "film", "loss", "cost")
        super().__init__(values, panels, given=settings, play=play, max_steps=max_steps)

    # --- the specification ---

    def stops(self, name: str) -> Any:
        """See `Lab`."""
        can_mute = hasattr(self.main_run.model.block.experts, "down_proj")
        names = {"task": PLANE_TASKS, "router": tuple(ROUTERS), "router_start": tuple(ROUTER_STARTS)}
        names["mute"] = ("none", *(f"E{e}" for e in range(self.values["num_experts"] if can_mute else 0)))
        return names.get(name) or super().stops(name)

    def idle(self, values: dict[str, Any]) -> dict[str, str]:
        """See `Lab`."""
        check_choice("router", values["router"], ROUTERS)
        if self.block is None:
            return idle_with(values["router"])
        return self._block_idle | {"router": "the block has a router of its own"}

    def check(self, values: dict[str, Any], given=()) -> dict[str, Any]:
        """See `Lab`."""
        check_seed(values["seed"])
        if not is_whole(values["token"], 0, NUM_TOKENS - 1):
            raise ValueError(f"token must be a whole number from 0 to {NUM_TOKENS - 1}, got {values['token']!r}")
        experts = values["num_experts"] if is_whole(values["num_experts"], 1) else 0
        mutable = ["none", *(f"E{e}" for e in range(experts))]
        if values["mute"] not in mutable and values["mute"] == getattr(self, "values", {}).get("mute"):
            values = values | {"mute": "none"}  # that expert is gone
        check_choice("mute", values["mute"], mutable)
        values = super().check(values, given)
        self.setting_of(values)  # refuses what is left
        return values

    def setting_of(self, values: dict[str, Any]) -> PlaneSetting:
        """What is in force, as a `PlaneSetting`."""
        return PlaneSetting(**{name: (values | self.in_force(values))[name] for name in FIELDS})

    @property
    def setting(self) -> PlaneSetting:
        """What is in force now."""
        return self.setting_of(self.values)

    def make_runs(self, values: dict[str, Any]) -> dict[str, Run]:
        """See `Lab`."""
        runs = plane_runs(self.setting_of(values), values["seed"], self.block, self.device)
        if self.block is not None and not self._block_idle:
            self._block_idle = idle_of_block(runs["MoE"].model)
        self._draw_points(runs, values["seed"])
        return runs

    def turn(self, values: dict[str, Any], before: dict[str, Any]) -> None:
        """See `Lab`."""
        self.main_run.knobs.take(self.setting_of(values))
        for run in self.runs.values():
            run.knobs.lr = values["lr"]

    def comparable(self, values: dict[str, Any]) -> bool:
        """See `Lab`."""
        return values["task"] == self.values["task"]

    def looked(self, before: dict[str, Any]) -> None:
        """See `Lab`."""
        for name, button in self._preset_buttons.items():
            button.button_style = "info" if self.setting == PRESETS[name] else ""

    def written(self) -> tuple[list[str], dict[str, Any]]:
        """See `Lab`."""
        positional = [repr(self.preset)] + ([f"block={self.block.__name__}"] if self.block is not None else [])
        positional += [f"seed={self.values['seed']}"] if self.values["seed"] else []
        positional += [f"device={str(self.device)!r}"] if self.device.type != "cpu" else []
        return positional, self.values | self.in_force()

    @property
    def USUAL(self) -> dict[str, Any]:
        """See `Lab`: the fields of the preset."""
        return asdict(PRESETS[self.preset])

    # --- presets ---

    def extra_rows(self) -> list[W.Widget]:
        """A button for each preset."""
        self._preset_buttons = {}
        for name, setting in PRESETS.items():
            button = self._preset_buttons[name] = W.Button(description=name, tooltip=PRESET_TIPS[name])
            idle = self.idle(asdict(setting))
            button.disabled = any(n in idle and getattr(setting, n) for n in ("noise_std", "capacity_factor"))
            button.on_click(lambda _, name=name: self.post(lambda: self._choose(name)))
        self.looked({})
        return [W.Box([W.HTML("Presets:"), *self._preset_buttons.values()]).add_class("moe-bar")]

    def choose_preset(self, name: str) -> None:
        """Set all controls to a preset and start afresh. 'rescued' goes on with a collapsed run, if that is here."""
        self.now(lambda: self._choose(name))

    def _choose(self, name: str) -> None:
        collapsed = self.step > 0 and self.setting == PRESETS["collapse"]
        self.preset = check_choice("preset", name, PRESETS)
        controlled = {n: value for n, value in asdict(PRESETS[name]).items() if n in self.inputs}
        values = self.check(self.values | controlled)
        self._apply(values, () if name == "rescued" and collapsed else ("afresh",))

    # --- what the panels show ---

    @property
    def selected(self) -> int:
        """The token whose routing is read."""
        return self.values["token"]

    @property
    def muted(self) -> int | None:
        """The expert that is switched off where the router and the tokens are read."""
        return None if self.values["mute"] == "none" else int(self.values["mute"][1:])

    def stamp(self) -> tuple:
        """See `LiveRun`."""
        return *super().stamp(), self.muted

    def _draw_points(self, runs: dict[str, Run], seed: int) -> None:
        """The tokens that are shown, sorted by class, and more points to measure the load without noise on."""
        task = runs["MoE"].task
        points, classes = task.batch(NUM_TOKENS, torch.Generator().manual_seed(seed + 1_000_001))
        self._order = classes.argsort(stable=True)
        self.points, self.classes = points[self._order], classes[self._order]
        self._more_points, _ = task.batch(NUM_MORE_POINTS, torch.Generator().manual_seed(seed + 1_000_002))
        self._places = torch.cat([points, grid(RESOLUTION)])

    @property
    def plane(self) -> Plane:
        """The router without noise, over the plane and on the tokens that are shown."""
        return self.read("plane", self._read_plane)

    @torch.no_grad()
    @torch_threads(1)  # a second thread only waits
    def _read_plane(self) -> Plane:
        model, device = self.main_run.model.eval(), self.main_run.device
        try:
            router = getattr(model.block, "router", None)
            if isinstance(router, nn.Module) and self.block is None:  # the router alone, without the experts' work
                grid_probs = router(model.embed(self._places[NUM_TOKENS:].to(device) * model.input_scale)).router_probs
            else:
                grid_probs = model(self._places[NUM_TOKENS:].to(device))[1][0].router_probs
            with nullcontext() if self.muted is None else muted(model.block.experts, self.muted):
                # in the order of their drawing, or a capacity would always drop the last classes
                logits, (routing,) = model(self._places[:NUM_TOKENS].to(device))
        finally:
            model.train()
        order = self._order.to(routing.token_idx.device)
        routing = replace(
            routing,
            router_logits=routing.router_logits[order],
            router_probs=routing.router_probs[order],
            token_idx=order.argsort()[routing.token_idx],
        )
        correct = logits.argmax(dim=-1)[order].cpu() == self.classes
        scores = grid_probs.clamp_min(1e-30).log().view(RESOLUTION, RESOLUTION, -1).cpu()
        return Plane(self.points, scores, routing, correct)

    @property
    def clean_load(self) -> list[float]:
        """The load on many points, without noise."""
        return self.read("clean load", self._read_clean_load)

    @torch.no_grad()
    @torch_threads(1)
    def _read_clean_load(self) -> list[float]:
        model = self.main_run.model.eval()
        try:
            return load_share(model(self._more_points.to(self.main_run.device))[1][0]).tolist()
        finally:
            model.train()

    def words(self) -> str:
        """What the load shows, in words."""
        recent, top_k = self.main_run.records[-RECENT:], self.values["top_k"]
        if not recent:
            return describe_load(self.clean_load, top_k)
        dropped = sum(record.dropped_share for record in recent) / len(recent)
        words, guessing = describe_load(recent_load(self.main_run), top_k, dropped), math.log(NUM_CLASSES)
        if sum(record.loss for record in recent) / len(recent) > 1.1 * guessing and self.step > RECENT:
            words += f" The loss is worse than guessing ({guessing:.2f}): try a lower learning rate."
        return words

    def reading(self) -> str:
        """The routing of the selected token and, where an expert is muted, what is lost."""
        plane, i, (x, y) = self.plane, self.selected, self.points[self.selected].tolist()
        logits, probs = plane.routing.router_logits[i], plane.routing.router_probs[i]
        best = probs.argsort(descending=True)[:4].tolist()
        read = ", ".join(f"E{e} {logits[e]:+.2f} ({probs[e]:.0%})" for e in best)
        mine = plane.routing.token_idx == i
        chosen = zip(plane.routing.expert_idx[mine].tolist(), plane.routing.weight[mine].tolist(), strict=True)
        served = ", ".join(f"{weight:.2f} × E{expert}" for expert, weight in chosen) or "no expert: it was dropped"
        verdict = "correct" if plane.correct[i] else "wrong"
        token = f"Token {i} at ({x:.2f}, {y:.2f}), class {self.classes[i]}, {verdict}."
        return f"{token} Router logits (probabilities): {read}. Served by: {served}.{self._what_is_lost()}"

    def _what_is_lost(self) -> str:
        if self.muted is None:
            return ""
        with_it, without = self.read("muted", self._read_muted)
        text = f"accuracy {with_it:.1%} → {without:.1%} on {NUM_HELD_OUT} held-out points"
        return f" E{self.muted} muted: {text}. Training goes on with it."

    def _read_muted(self) -> tuple[float, float]:
        with_it = self.main_run.evaluate(NUM_HELD_OUT)["accuracy"]
        with muted(self.main_run.model.block.experts, self.muted):
            return with_it, self.main_run.evaluate(NUM_HELD_OUT)["accuracy"]

    def lines(self) -> dict[str, Any]:
        """See `LiveRun`."""
        return super().lines() | {"token": self.selected}

    def picked(self, kind: str, index: int) -> None:
        """Select the token that was clicked."""
        if kind == "token" and index < NUM_TOKENS:
            self._apply(self.check(self.values | {"token": index}), ())


def idle_of_block(model: nn.Module) -> dict[str, str]:
    """What a block of your own has no use for, and why."""
    idle, block = idle_knobs(model), model.block
    if getattr(getattr(block, "router", None), "weight", None) is None:
        idle["router_start"] = "the block has no router.weight"
    return idle if hasattr(block.experts, "down_proj") else idle | {"mute": "only our experts can be muted"}
