"""The routing laboratory: a language model of experts that trains live, and which expert serves which bytes."""

import functools
import html
from dataclasses import fields, replace
from typing import Any

import ipywidgets as W
from torch import nn

from moe_lessons.analysis.traces import expert_shares
from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.nn.routing import ROUTERS
from moe_lessons.nn.transformer import make_moe
from moe_lessons.plots.theme import percent
from moe_lessons.support.errors import check_choice
from moe_lessons.tasks import DOMAINS, TextTask
from moe_lessons.training import Run
from moe_lessons.training.knobs import KNOBS, idle_knobs
from moe_lessons.widgets.controls import CheckBoxes
from moe_lessons.widgets.laboratory import Lab, names_of
from moe_lessons.widgets.spec import Spec

USUAL_PANELS = ("loss", "layers", "domains", "classes", "text", "writing")
MODEL_CONTROLS = ("num_experts", "top_k", "d_ff", "router")  # fields of a `TransformerConfig` that have a control
CONFIG_FIELDS = {f.name: getattr(TransformerConfig(), f.name) for f in fields(TransformerConfig) if f.name not in KNOBS}
KNOBS_AT_FIRST = {name: knob.off for name, knob in KNOBS.items()} | {"lr": 0.005, "router_aux_loss_coef": 0.01}
corpus = functools.cache(TextTask)  # the text of some domains
NAMED_ROUTERS = tuple(name for name in ROUTERS if name != "gaussian noise")  # that is top-k, and the slider for noise
ROUTING_LAB = Spec(
    title="Routing laboratory",
    settings=CONFIG_FIELDS | KNOBS_AT_FIRST,
    structural=("domains", *MODEL_CONTROLS, "seed"),
    live=tuple(KNOBS),
    display=("layer", "x_axis"),
    stops={"num_experts": (1, 2, 4, 8, 16, 32), "d_ff": (8, 16, 32, 64, 128)},
    clicks=("layer", "layer"),
    same=("domains",),
)


class RoutingLab(Lab):
    """Train a language model of experts on bytes, live, and show which expert serves which.

    task: names of `tasks.DOMAINS`, all of them by default, or a `TextTask`, such as one from a file of your own.
    config: the sizes of the model; layer: the MoE layer that panels show. batch_size: see `Run`.
    settings: fields of `nn.TransformerConfig`, and knobs. panels, play, max_steps: see `LiveRun`.
    device: see `Playground`.

    >>> RoutingLab(("code", "json"), panels=("layers",), num_layers=2, router="sigmoid", lr=0.01)
    RoutingLab(('code', 'json'), panels=('layers',), num_layers=2, router='sigmoid', lr=0.01)
    """

    def __init__(
        self, task=DOMAINS, config: TransformerConfig | None = None, panels=USUAL_PANELS, *, layer: int = 0,
        seed: int = 0, batch_size: int = 32, play: int = 0, max_steps: int = 600, device: str = "cpu",
        **settings: Any,
    ):  # fmt: skip
        config = config or TransformerConfig()
        if config.capacity_factor:  # it is a knob here
            settings = {"capacity_factor": config.capacity_factor} | settings
        self._config = replace(config, capacity_factor=None, **{n: settings[n] for n in CONFIG_FIELDS if n in settings})
        layers = self._config.moe_layers
        self._num_layers = self._config.num_layers if layers is None else len(layers)  # with experts
        if self._num_layers == 0:
            raise ValueError("moe_layers must name at least one layer, got none")
        self._routers: dict[Any, None] = dict.fromkeys(NAMED_ROUTERS)  # and your own, once you have named it
        self._text = task if hasattr(task, "held_out") else None  # of your own: it stays what it is
        spec = ROUTING_LAB if self._text is None else replace(ROUTING_LAB, structural=ROUTING_LAB.structural[1:])
        values = {n: getattr(self._config, n) for n in CONFIG_FIELDS}
        values |= {"domains": task, "seed": seed, "layer": layer, "batch_size": batch_size}
        values["device"] = device
        values["panels"] = panels
        super().__init__(spec, values, panels, settings, play=play, max_steps=max_steps, columns=2)

    def arguments(self) -> dict[str, Any]:
        """See `LiveRun`: the task stands in the values as its domains."""
        usual = super().arguments()
        first = {name: usual[name] for name in ("panels", "play", "max_steps", *ROUTING_LAB.settings)}
        return {"domains": tuple(DOMAINS)} | first | usual

    def stops(self, name: str, values: dict[str, Any]) -> Any:
        if name == "router":
            self._routers[values["router"]] = None
            return tuple((getattr(router, "__name__", router), router) for router in self._routers)
        return range(self._num_layers) if name == "layer" else super().stops(name, values)

    def idle(self, values: dict[str, Any]) -> dict[str, str]:
        one_layer = {"layer": "there is one layer with experts"} if self._num_layers == 1 else {}
        return idle_of(self._sized(values)) | one_layer

    def check(self, values: dict[str, Any], given=()) -> dict[str, Any]:
        if self._text is None:
            values = values | {"domains": names_of(values["domains"], "domains", DOMAINS)}
        router = values["router"]
        if not (isinstance(router, type) and issubclass(router, nn.Module)):
            check_choice("router", router, NAMED_ROUTERS)
        return super().check(values, given)

    def make_runs(self, values: dict[str, Any]) -> dict[str, Run]:
        text = self._text or corpus(values["domains"])
        with seeded(values["seed"]):
            model = LanguageModel(self._sized(values)).to(values["device"])
        return {"MoE": Run(model, text, batch_size=values["batch_size"], seed=values["seed"])}

    def rows(self) -> list[W.Widget]:
        if self._text is None:
            self.inputs["domains"] = CheckBoxes("domains", DOMAINS)
            return [self.inputs["domains"]]
        names = html.escape(", ".join(self.main_run.task.domains))
        return [W.Box([W.HTML(f"Text: {names}")]).add_class("moe-bar")]

    def _sized(self, values: dict[str, Any]) -> TransformerConfig:
        return replace(self._config, **{name: values[name] for name in MODEL_CONTROLS})

    @property
    def clean_load(self) -> list[float]:
        """See `LiveRun`: of the sequences that are traced."""
        return expert_shares(self.traced, "layer").loc[self.state.layer].tolist()

    def lines(self) -> dict[str, Any]:
        return super().lines() | self.lines_of_load()

    def words(self) -> str:
        return f"Layer {self.state.layer}: {super().words()}" if self._num_layers > 1 else super().words()

    def reading(self) -> str:
        layer = self.state.layer
        shares = self.read(f"shares {layer}", lambda: expert_shares(self.traced, "domain", layer))
        most = [f"{name} → {share.idxmax()} ({percent(share.max())})" for name, share in shares.iterrows()]
        return f"Where most of each domain goes: {', '.join(most)}."


@functools.cache
def idle_of(config: TransformerConfig) -> dict[str, str]:
    """The knobs that do nothing with the router of a configuration, and why."""
    with seeded(0):
        return idle_knobs(make_moe(config, 0))
