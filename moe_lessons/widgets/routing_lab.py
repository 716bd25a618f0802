"""The routing laboratory: a language model of experts that trains live, and which expert serves which bytes."""

import functools
import html
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, replace
from typing import Any

import ipywidgets as W

from moe_lessons.analysis.load import describe_load
from moe_lessons.analysis.traces import expert_shares
from moe_lessons.errors import check_choice, check_number, is_whole
from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.nn.transformer import ROUTERS, make_moe
from moe_lessons.plots import LiveFigure, Theme
from moe_lessons.plots.curves import X_AXES
from moe_lessons.tasks import DOMAINS, TextTask
from moe_lessons.training import Knobs, Run
from moe_lessons.widgets.controls import (
    check_seed,
    choice,
    heading,
    in_columns,
    knob_slider,
    limit,
    move,
    seed_box,
    stops,
)
from moe_lessons.widgets.figure_image import static_mode
from moe_lessons.widgets.live import LiveRun
from moe_lessons.widgets.panels import PANELS, RECENT, LivePanel, recent_load, traced

USUAL_PANELS = ("loss", "layers", "domains", "classes", "text", "writing")
SIZES = ("num_experts", "top_k", "d_ff", "router")  # fields of a `TransformerConfig` that have a control
START = ("domains", *SIZES, "seed")  # a change of these needs a new model
LIVE: dict[str, float | None] = {  # the knobs with a slider, and where it stands at first
    "lr": 0.005,
    "router_aux_loss_coef": 0.01,
    "noise_std": 0.0,
    "capacity_factor": None,
    "router_z_loss_coef": 0.0,
    "expert_bias_rate": 0.0,
}
NAMED_ROUTERS = tuple(name for name in ROUTERS if name != "gaussian noise")  # that is top-k, and the slider for noise
NEEDS = {
    "noise_std": "the noise needs a top-k router",
    "expert_bias_rate": "the bias needs a sigmoid router",
}
USELESS = {  # routers on which some knobs act, and yet change nothing
    "expert choice": {
        "router_aux_loss_coef": "where experts choose, their load is even without a loss",
        "capacity_factor": "where experts choose, none is ever too full",
    },
    "hash": dict.fromkeys(("router_aux_loss_coef", "router_z_loss_coef"), "a hash learns nothing, so no loss moves it"),
}


@functools.cache
def why_off(config: TransformerConfig) -> dict[str, str]:
    """The knobs that do nothing with the router of a configuration, and why."""
    with seeded(0):
        knobs = Knobs(make_moe(config, 0), lr=1.0)
    has = {"noise_std": knobs.has_noise, "expert_bias_rate": knobs.has_expert_bias}
    missing = {name: reason for name, reason in NEEDS.items() if not has[name]}
    return missing | (USELESS.get(config.router, {}) if isinstance(config.router, str) else {})


class RoutingLab(LiveRun):
    """Trains a language model of experts on bytes, live, and shows which expert serves which.

    task: names of `tasks.DOMAINS`, all of them by default, or a `TextTask`, such as one from a file of your own.
    config: the sizes of the model; panels: as in `LiveRun`; layer: the MoE layer that they show.
    seed: of the model, the data and the noise. threads, batch_size: see `Run`. play, max_steps: see `LiveRun`.
    settings: fields of a `TransformerConfig`, which then replace those of `config`, and the knobs lr, noise_std,
        router_aux_loss_coef, router_z_loss_coef, capacity_factor and expert_bias_rate.

    >>> RoutingLab(("english", "code"), num_layers=1, num_experts=4, lr=0.01)
    RoutingLab(('english', 'code'), num_layers=1, num_experts=4, lr=0.01)
    """

    title = "Routing laboratory"
    can_reset, usual_steps = True, 600

    def __init__(
        self,
        task: TextTask | Sequence[str] | None = None,
        config: TransformerConfig | None = None,
        *,
        panels: Sequence[str | LivePanel] = USUAL_PANELS,
        layer: int = 0,
        seed: int = 0,
        threads: int = 2,
        batch_size: int = 32,
        play: int = 0,
        max_steps: int = usual_steps,
        **settings: Any,
    ):
        config_fields = [field.name for field in fields(TransformerConfig)]
        for name in settings:
            check_choice("setting", name, dict.fromkeys([*config_fields, *LIVE]))
        if config is not None and not isinstance(config, TransformerConfig):
            raise ValueError(f"config must be a TransformerConfig, got {type(config).__name__}")
        config = config or TransformerConfig()
        settings = ({"capacity_factor": config.capacity_factor} if config.capacity_factor else {}) | settings
        sizes = {name: settings.pop(name) for name in config_fields if name in settings and name not in LIVE}
        self._config = replace(config, **sizes, capacity_factor=None)
        self._own_task = task if hasattr(task, "held_out") else None
        domains = DOMAINS if task is None else self._own_task.domains if self._own_task else _names(task)
        self._threads, self._batch_size = threads, batch_size
        self._boxes: dict[str, W.Checkbox] = {}  # by domain; none where the task is your own
        values = {"domains": domains, "seed": seed} | {name: getattr(self._config, name) for name in SIZES} | LIVE
        self.values: dict[str, Any] = self._checked(values | settings, settings)  # what is asked for, by control
        if len(self._moe_layers()) == 0:
            raise ValueError("moe_layers must name at least one layer, got none")
        self.layer = self._check_layer(layer)
        self._text = self._own_task or TextTask(domains)
        super().__init__({"MoE": self._make_run(self.values)}, panels, play=play, max_steps=max_steps)
        self._panel_names = (panels,) if isinstance(panels, str) else tuple(panels)

    def _moe_layers(self) -> Sequence[int]:
        layers = self._config.moe_layers
        return range(self._config.num_layers) if layers is None else layers

    def _check_layer(self, layer: int) -> int:
        """A number among the layers with experts, or ValueError."""
        last = len(self._moe_layers()) - 1
        if not is_whole(layer, 0, last):
            raise ValueError(f"layer must be from 0 to {last}, a number among the layers with experts, got {layer!r}")
        return int(layer)

    def _checked(self, values: dict[str, Any], given: Collection[str] = ()) -> dict[str, Any]:
        """The values of the controls, or ValueError. `given`: those that must apply, where the others may be idle."""
        if self._own_task is None:
            for domain in values["domains"] or ("none",):
                check_choice("domains", domain, DOMAINS)
        elif tuple(values["domains"]) != tuple(self._own_task.domains):
            raise ValueError(f"domains must stay {self._own_task.domains}, those of your task, got {values['domains']}")
        if isinstance(values["router"], str):
            check_choice("router", values["router"], NAMED_ROUTERS)
        idle = why_off(self._sized(values))  # refuses bad sizes
        capacity = values["capacity_factor"]
        checked = {
            "capacity_factor": None if capacity is None else check_number("capacity_factor", capacity, above=True)
        }
        for name in LIVE:
            if name != "capacity_factor":
                checked[name] = check_number(name, values[name], above=name == "lr")
            if name in given and name in idle and checked[name]:
                raise ValueError(f"{name} must be off here, since {idle[name]}, got {values[name]!r}")
        return values | checked | {"domains": tuple(values["domains"]), "seed": check_seed(values["seed"])}

    def _sized(self, values: dict[str, Any]) -> TransformerConfig:
        return replace(self._config, **{name: values[name] for name in SIZES})

    def _make_run(self, values: dict[str, Any]) -> Run:
        if values["domains"] != tuple(self._text.domains):
            self._text = TextTask(values["domains"], self._text.context)
        with seeded(values["seed"]):
            model = LanguageModel(self._sized(values))
        options = {"batch_size": self._batch_size, "seed": values["seed"], "threads": self._threads}
        run = Run(model, self._text, lr=values["lr"], **options)
        self._turn_knobs(run, values)
        return run

    def _turn_knobs(self, run: Run, values: dict[str, Any]) -> None:
        for name, value in self._in_force(values).items():
            setattr(run.knobs, name, value)

    def _in_force(self, values: dict[str, Any]) -> dict[str, float | None]:
        """The knobs, each as it is asked for or, where the router has no use for it, off."""
        idle = why_off(self._sized(values))
        off = {"capacity_factor": None}
        return {name: off.get(name, 0.0) if name in idle else values[name] for name in LIVE}

    # --- what is seen ---------------------------------------------------------------------------------------

    def words(self) -> str:
        """What the load of the layer shows, in words."""
        recent = self.main_run.records[-RECENT:]
        if recent:
            load, dropped = recent_load(self.main_run, self.layer), sum(r.dropped_share for r in recent) / len(recent)
        else:
            load, dropped = expert_shares(traced(self), "layer").loc[self.layer].tolist(), 0.0
        where = f"Layer {self.layer}: " if len(self._moe_layers()) > 1 else ""
        return where + describe_load(load, self.values["top_k"], dropped)

    def reading(self) -> str:
        """The expert that each domain goes to most."""
        shares = expert_shares(traced(self), "domain", self.layer)
        most = [f"{html.escape(name)} → {share.idxmax()} ({share.max():.0%})" for name, share in shares.iterrows()]
        return f"Where most of each domain goes: {', '.join(most)}."

    def figure_depends_on(self) -> tuple:
        """Also the experts and the domains."""
        return *super().figure_depends_on(), self.values["num_experts"], self.values["domains"]

    def arrange(self, makers: list[Callable], theme: Theme) -> LiveFigure:
        """Two panels in a row: text wants width."""
        width, lines = 650 if self._narrow else 780, 2 if static_mode() else 0
        return LiveFigure(makers, min(2, len(makers)), theme, width, 250, caption_lines=lines)

    def clicked(self, x: float, y: float) -> None:
        """Show the layer whose row was clicked."""
        place = self._figure.panel_at(x, y)
        if place is not None and self.panels[place[0]] is PANELS["layers"]:
            self._layer.value = round(place[2])

    # --- controls -------------------------------------------------------------------------------------------

    def extra_rows(self) -> list[W.Widget]:
        """The domains: a box for each, or the names of those of a task of your own."""
        for name in DOMAINS if self._own_task is None else ():
            box = W.Checkbox(name in self.values["domains"], description=name, indent=False)
            box.tooltip, box.layout.width = f"Train on {name} too; a change starts afresh", "auto"
            box.observe(lambda change: self.mark("domains"), "value")
            self._boxes[name] = box
        named = [] if self._boxes else [W.HTML(html.escape(", ".join(self._own_task.domains)))]
        bar = W.Box([W.HTML("Text:"), *named, *self._boxes.values()])
        bar.add_class("moe-bar")
        return [bar]

    def controls(self) -> list[W.Widget]:
        """What starts afresh, the knobs, and what to look at."""
        router = self.values["router"]
        routers = NAMED_ROUTERS if router in NAMED_ROUTERS else (*NAMED_ROUTERS, router)
        start = {
            "num_experts": stops("Experts E", (1, 2, 4, 8, 16, 32), "How many experts each layer has"),
            "top_k": W.IntSlider(
                min=1, max=self.values["num_experts"], description="Top-k", tooltip="How many experts work for a token"
            ),
            "d_ff": stops("F (units)", (8, 16, 32, 64, 128), "Width of each expert, d_ff: its hidden units"),
            "router": choice("Router", routers, "How the experts of a token are chosen"),
            "seed": seed_box("Of the model, the data and the noise"),
        }
        start["router"].options = [(getattr(router, "__name__", router), router) for router in routers]
        live = {name: knob_slider(name) for name in LIVE}
        self._inputs: dict[str, W.Widget] = start | live
        self._tooltips = {name: widget.tooltip for name, widget in live.items()}
        self._idle = W.HTML()
        self._show(self.values)
        limit(start["top_k"], start["num_experts"])
        for name, widget in self._inputs.items():
            widget.observe(lambda change, name=name: self.mark(name), "value")
        last = len(self._moe_layers()) - 1
        self._layer = W.IntSlider(
            self.layer, 0, last, description="Layer", tooltip="Which of the layers with experts is shown"
        )
        self._layer.disabled = last == 0
        self._layer.observe(lambda change: self.mark("layer"), "value")
        self._x_axis = choice("Loss against", tuple(X_AXES), "The horizontal axis of the loss curve")
        self._x_axis.observe(lambda change: self.mark("x axis"), "value")
        look = [self._layer, self._x_axis]
        in_columns([*self._inputs.values(), *look])
        return [
            heading("Structure · starts afresh"), *start.values(),
            heading("Live · applies to the next step"), *live.values(), self._idle,
            heading("Look · changes nothing"), *look,
        ]  # fmt: skip

    def _show(self, values: dict[str, Any]) -> None:
        """Have the controls show these values; knobs that the router has no use for stand at 'off' and say why."""
        idle = why_off(self._sized(values))
        for name in LIVE:
            self._inputs[name].disabled = name in idle
            self._inputs[name].tooltip = self._tooltips[name] + (f". Off: {idle[name]}" if name in idle else "")
        for name, widget in self._inputs.items():  # the experts come before the top-k that they limit
            move(widget, (values | self._in_force(values))[name])
        for name, box in self._boxes.items():
            box.value = name in values["domains"]
        reasons = "; ".join(dict.fromkeys(idle.values()))
        self._idle.value = f'<div class="moe-idle">Off: {reasons}.</div>' if idle else ""
        tips = {self._inputs[name].description: self._inputs[name].tooltip for name in LIVE}
        self._front_end.tips = self._front_end.tips | tips

    def _asked(self) -> dict[str, Any]:
        """What the controls say; of one that is off, what was asked for before."""
        values = {name: self.values[name] if w.disabled else w.value for name, w in self._inputs.items()}
        values["top_k"] = min(values["top_k"], values["num_experts"])
        values["capacity_factor"] = values["capacity_factor"] or None  # its slider says 0 for 'off'
        domains = tuple(name for name, box in self._boxes.items() if box.value)
        return values | {"domains": domains if self._boxes else self.values["domains"]}

    # --- applying them --------------------------------------------------------------------------------------

    def set(self, **values: Any) -> None:
        """Move controls, as if by hand: the layer, the domains, the seed, the knobs, and what starts afresh.

        A bad value moves none. Fewer experts lower top_k, unless it is given too.
        """
        layer = self._check_layer(values.pop("layer", self.layer))
        for name in values:
            check_choice("setting", name, self.values)
        if isinstance(values.get("num_experts"), int):
            values.setdefault("top_k", min(self.values["top_k"], max(values["num_experts"], 1)))
        if "domains" in values:
            values["domains"] = _names(values["domains"])
        given, values = tuple(values), self._checked(self.values | values, values)
        idle = why_off(self._sized(values))
        self.values |= {name: values[name] for name in given if name in idle}  # no control can say it: it is off
        with self.moving_controls():
            self._show(values)
            self._layer.value = layer

    def apply(self, changed: Collection[str]) -> None:
        """A new start for what is of the structure, else the knobs; what is refused moves the controls back."""
        self.layer, self.x_axis = self._layer.value, self._x_axis.value
        if "layer" in changed:
            self.want_text()
        try:
            values = self._checked(self._asked())
            afresh = "afresh" in changed or any(values[name] != self.values[name] for name in START)
            run = self._make_run(values) if afresh else self.main_run
        except Exception:
            self._show(self.values)
            raise
        old, before, self.values = self.main_run, self.values, values
        if afresh:
            self._start_afresh(run, old, values["domains"] == before["domains"])
        elif values != before:
            self._turn_knobs(run, values)
            self.marks += [self.step] if self.step not in (0, *self.marks[-1:]) else []
        if values["router"] != before["router"]:
            self._show(values)
        if values != before:
            self._trouble = ""
        self.rebuild_figure()

    def _start_afresh(self, run: Run, old: Run, same_text: bool) -> None:
        if not same_text:
            self.ghost = None  # not to be compared
        elif len(old.records) > RECENT:
            self.ghost = old
        self.runs, self.marks, self._trouble = {"MoE": run}, [], ""
        self.restart_budget()

    def __repr__(self) -> str:
        values, arguments = self.values, []
        if self._own_task is not None:
            arguments.append(repr(self._own_task))
        elif values["domains"] != DOMAINS:
            arguments.append(repr(values["domains"]))
        if self._panel_names != USUAL_PANELS:
            arguments.append(f"panels={self._panel_names!r}")
        usual = {"layer": 0, "seed": 0, "threads": 2, "batch_size": 32}
        now = {"layer": self.layer, "seed": values["seed"], "threads": self._threads, "batch_size": self._batch_size}
        config, plain = self._sized(values), TransformerConfig()
        for field in fields(TransformerConfig):
            if field.name not in LIVE:
                now[field.name], usual[field.name] = getattr(config, field.name), getattr(plain, field.name)
        now, usual = now | self._in_force(values), usual | self._in_force(values | LIVE)
        changed = [f"{name}={_name(value)}" for name, value in now.items() if value != usual[name]]
        return f"RoutingLab({', '.join([*arguments, *self._arguments, *changed])})"


def _names(domains: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several, as a tuple; ValueError for what is no name."""
    names = (domains,) if isinstance(domains, str) else tuple(domains) if isinstance(domains, Sequence) else (domains,)
    for name in names or ("none",):
        check_choice("domains", name, DOMAINS)
    return tuple(dict.fromkeys(names))


def _name(value: Any) -> str:
    """A value as it is written in a call: a class or function of a learner by its name."""
    return getattr(value, "__name__", repr(value))
