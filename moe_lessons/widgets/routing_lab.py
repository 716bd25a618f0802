"""The routing laboratory: a language model of experts that trains live, and which expert serves which bytes."""

import functools
import html
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import ipywidgets as W

from moe_lessons.analysis.load import describe_load
from moe_lessons.analysis.traces import expert_shares
from moe_lessons.errors import check_choice, is_whole
from moe_lessons.knobs import TRAINING, idle_knobs
from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.nn.routers import ROUTERS
from moe_lessons.nn.transformer import make_moe
from moe_lessons.plots.panels._history import RECENT, recent_load
from moe_lessons.tasks import DOMAINS, TextTask
from moe_lessons.training import Run
from moe_lessons.widgets.controls import Boxes, check_seed
from moe_lessons.widgets.lab import Lab, names_of

USUAL_PANELS = ("loss", "layers", "domains", "classes", "text", "writing")
SIZES = ("num_experts", "top_k", "d_ff", "router")  # fields of a `TransformerConfig` that have a control
FIELDS = tuple(field.name for field in fields(TransformerConfig) if field.name not in TRAINING)
KNOBS_AT_FIRST = {name: knob.off for name, knob in TRAINING.items()} | {"lr": 0.005, "router_aux_loss_coef": 0.01}
NAMED_ROUTERS = tuple(name for name in ROUTERS if name != "gaussian noise")  # that is top-k, and the slider for noise


class RoutingLab(Lab):
    """Trains a language model of experts on bytes, live, and shows which expert serves which.

    task: names of `tasks.DOMAINS`, all of them by default, or a `TextTask`, such as one from a file of your own.
    config: the sizes of the model; panels: as in `LiveRun`; layer: the MoE layer that they show.
    seed: of the model, the data and the noise. threads, batch_size: see `Run`. play, max_steps: see `LiveRun`.
    settings: any field of `nn.TransformerConfig`, and any knob of `training.Knobs`.

    >>> RoutingLab(("code", "json"), panels=("layers",), num_layers=2, router="sigmoid", lr=0.01)
    RoutingLab(('code', 'json'), panels=('layers',), num_layers=2, router='sigmoid', lr=0.01)
    """

    title, usual_steps = "Routing laboratory", 600
    START, LOOK = ("domains", *SIZES, "seed"), ("layer", "x_axis")
    USUAL = {name: getattr(TransformerConfig(), name) for name in FIELDS}
    USUAL |= KNOBS_AT_FIRST | {"layer": 0, "seed": 0, "threads": 2, "batch_size": 32}

    def __init__(
        self, task=None, config: TransformerConfig | None = None, panels=USUAL_PANELS, *, layer=0, seed=0, threads=2,
        batch_size=32, play=0, max_steps=usual_steps, **settings: Any,
    ):  # fmt: skip
        for name in settings:
            check_choice("setting", name, (*FIELDS, *TRAINING))
        if config is not None and not isinstance(config, TransformerConfig):
            raise ValueError(f"config must be a TransformerConfig, got {type(config).__name__}")
        config = config or TransformerConfig()
        self._config = replace(config, capacity_factor=None, **{n: settings[n] for n in FIELDS if n in settings})
        if len(self._moe_layers()) == 0:
            raise ValueError("moe_layers must name at least one layer, got none")
        self._own_task = task if hasattr(task, "held_out") else None
        domains = DOMAINS if task is None else self._own_task.domains if self._own_task else task
        self._text = self._own_task
        self.START = self.START if self._own_task is None else self.START[1:]  # its domains are what they are
        capacity = {"capacity_factor": config.capacity_factor} if config.capacity_factor else {}
        values = {n: getattr(self._config, n) for n in FIELDS} | KNOBS_AT_FIRST | capacity | settings
        values |= {"domains": domains, "seed": seed, "layer": layer, "threads": threads, "batch_size": batch_size}
        self._names = (panels,) if isinstance(panels, str) else panels
        given = [*settings, *capacity]
        super().__init__(values, panels, given=given, play=play, max_steps=max_steps, columns=2)

    # --- the specification ---

    def stops(self, name: str) -> Any:
        """See `Lab`."""
        if name == "router":
            named = self.values["router"] in NAMED_ROUTERS
            routers = NAMED_ROUTERS if named else (*NAMED_ROUTERS, self.values["router"])
            self._routers = dict.fromkeys((*getattr(self, "_routers", ()), *routers))  # one of your own stays
            return tuple((getattr(router, "__name__", router), router) for router in self._routers)
        own = {"num_experts": (1, 2, 4, 8, 16, 32), "d_ff": (8, 16, 32, 64, 128)}
        own["layer"] = range(len(self._moe_layers()))
        return own.get(name) or super().stops(name)

    def idle(self, values: dict[str, Any]) -> dict[str, str]:
        """See `Lab`."""
        if isinstance(values["router"], str):
            check_choice("router", values["router"], NAMED_ROUTERS)
        one_layer = {"layer": "there is one layer with experts"} if len(self._moe_layers()) == 1 else {}
        return idle_of(self._sized(values)) | one_layer

    def check(self, values: dict[str, Any], given=()) -> dict[str, Any]:
        """See `Lab`."""
        if self._own_task is None:
            values = values | {"domains": names_of(values["domains"], "domains", DOMAINS)}
        last = len(self._moe_layers()) - 1
        if not is_whole(values["layer"], 0, last):
            layer = f"a number among the layers with experts, got {values['layer']!r}"
            raise ValueError(f"layer must be from 0 to {last}, {layer}")
        self._sized(values)  # refuses bad sizes
        return super().check(values | {"seed": check_seed(values["seed"])}, given)

    def make_runs(self, values: dict[str, Any]) -> dict[str, Run]:
        """See `Lab`."""
        if self._text is None or values["domains"] != tuple(self._text.domains):
            self._text = TextTask(values["domains"], *([] if self._text is None else [self._text.context]))
        with seeded(values["seed"]):
            model = LanguageModel(self._sized(values))
        options = {name: values[name] for name in ("batch_size", "seed", "threads", "lr")}
        run = Run(model, self._text, **options)
        for name, value in self.in_force(values).items():
            setattr(run.knobs, name, value)
        return {"MoE": run}

    def comparable(self, values: dict[str, Any]) -> bool:
        """See `Lab`."""
        return values["domains"] == self.values["domains"]

    def written(self) -> tuple[list[str], dict[str, Any]]:
        """See `Lab`."""
        domains = [] if self.values["domains"] == tuple(DOMAINS) else [repr(self.values["domains"])]
        positional = domains if self._own_task is None else [repr(self._own_task)]
        positional += [f"panels={self._names!r}"] if self._names != USUAL_PANELS else []
        return positional, self.values | self.in_force()

    def extra_rows(self) -> list[W.Widget]:
        """The domains: a box for each, or the names of those of a task of your own."""
        if self._own_task is not None:
            return [W.Box([W.HTML(html.escape(f"Text: {', '.join(self._own_task.domains)}"))]).add_class("moe-bar")]
        self.inputs["domains"] = Boxes("domains", DOMAINS)
        return [self.inputs["domains"]]

    # --- what is seen ---

    def _moe_layers(self) -> Sequence[int]:
        layers = self._config.moe_layers
        return range(self._config.num_layers) if layers is None else layers

    def _sized(self, values: dict[str, Any]) -> TransformerConfig:
        return replace(self._config, **{name: values[name] for name in SIZES})

    @property
    def layer(self) -> int:
        """The MoE layer that is shown."""
        return self.values["layer"]

    def words(self) -> str:
        """What the load of the layer shows, in words."""
        recent = self.main_run.records[-RECENT:]
        if recent:
            load, dropped = recent_load(self.main_run, self.layer), sum(r.dropped_share for r in recent) / len(recent)
        else:
            load, dropped = expert_shares(self.traced, "layer").loc[self.layer].tolist(), 0.0
        where = f"Layer {self.layer}: " if len(self._moe_layers()) > 1 else ""
        return where + describe_load(load, self.values["top_k"], dropped)

    def reading(self) -> str:
        """The expert that each domain goes to most."""
        shares = expert_shares(self.traced, "domain", self.layer)
        most = [f"{name} → {share.idxmax()} ({share.max():.0%})" for name, share in shares.iterrows()]
        return f"Where most of each domain goes: {', '.join(most)}."

    def picked(self, kind: str, index: int) -> None:
        """Show the layer whose row was clicked."""
        if kind == "layer" and index < len(self._moe_layers()):
            self._apply(self.check(self.values | {"layer": index}), ())


@functools.cache
def idle_of(config: TransformerConfig) -> dict[str, str]:
    """The knobs that do nothing with the router of a configuration, and why."""
    with seeded(0):
        return idle_knobs(make_moe(config, 0))
