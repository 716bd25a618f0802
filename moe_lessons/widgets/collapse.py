"""A collapse, live: the load of each expert, and the gradient that it gets."""

from collections.abc import Collection, Sequence

import ipywidgets as W
import numpy as np
import torch

from moe_lessons.analysis.collapse import LEARNS, watched_run
from moe_lessons.analysis.load import describe_load
from moe_lessons.errors import check_choice
from moe_lessons.plots.collapse import EarlyFilm, GradientBars, GradientFilm
from moe_lessons.tasks import PRESETS
from moe_lessons.training import load_share
from moe_lessons.widgets.controls import check_seed, choice, heading, in_columns, seed_box
from moe_lessons.widgets.live import LiveRun
from moe_lessons.widgets.panels import PANELS, RECENT, LivePanel, num_experts, of_a_layer, recent_load, sample

USUAL_PANELS = ("film", "load", "loss")


def recent_gradient(view) -> np.ndarray:
    """(E,): each expert's share of the gradient norms, over the last steps; zeros where there were none."""
    gradients = view.main_run.expert_gradients[-RECENT:] or [np.zeros(num_experts(view))]
    total = np.sum(gradients, axis=0)  # (E,)
    return total / max(total.sum(), 1e-30)


def _refresh_gradient_film(view, panel: GradientFilm) -> None:
    gradients = view.main_run.expert_gradients
    at = [i for i in sample(len(gradients)) if gradients[i].sum() > 0]  # none where the experts stand still
    panel.update(np.array(at) + 1, [gradients[i] / gradients[i].sum() for i in at], view.marks)


def _refresh_gradient(view, panel: GradientBars) -> None:
    load = recent_load(view.main_run) if view.main_run.records else view.clean_load
    panel.update(recent_gradient(view), clean=load)


COLLAPSE_PANELS = {
    "film": LivePanel(
        of_a_layer(lambda view, ax, theme: EarlyFilm(ax, theme, num_experts(view))), PANELS["film"].refresh
    ),
    "load": PANELS["load"],
    "loss": PANELS["loss"],
    "gradient film": LivePanel(
        lambda view, ax, theme: GradientFilm(ax, theme, num_experts(view)), _refresh_gradient_film
    ),
    "gradient": LivePanel(lambda view, ax, theme: GradientBars(ax, theme, num_experts(view)), _refresh_gradient),
}


class CollapseLab(LiveRun):
    """Trains `tasks.PRESETS["collapse"]`, live. Reset starts the same run again.

    panels: names from `COLLAPSE_PANELS`. learns: a name of `analysis.collapse.LEARNS`; what does not learn stands
    still. seed: of the task, the model and the data. play, max_steps: see `LiveRun`.

    >>> CollapseLab(learns="router only", seed=3)
    CollapseLab(learns='router only', seed=3)
    """

    title = "A collapse"
    can_reset, usual_steps = True, 300

    def __init__(
        self,
        panels: Sequence[str] = USUAL_PANELS,
        *,
        learns: str = "all",
        seed: int = 0,
        play: int = 0,
        max_steps: int = usual_steps,
    ):
        panels = (panels,) if isinstance(panels, str) else tuple(panels)
        for panel in panels or ("none",):
            check_choice("panels", panel, COLLAPSE_PANELS)
        self.seed, self.learns = check_seed(seed), check_choice("learns", learns, LEARNS)
        run = self._fresh()
        super().__init__({"MoE": run}, [COLLAPSE_PANELS[name] for name in panels], play=play, max_steps=max_steps)
        self._panel_names = tuple(panels)

    @torch.no_grad()
    def _fresh(self):
        """A new run; `clean_load` is its load before the first step."""
        run = watched_run(PRESETS["collapse"], self.seed, self.learns)
        points, _ = run.task.batch(1024, torch.Generator().manual_seed(self.seed + 1_000_002))
        self.clean_load = load_share(run.model(points)[1][0]).tolist()
        return run

    def controls(self) -> list[W.Widget]:
        """What learns, and the seed. Both start afresh."""
        self._inputs = {
            "learns": choice("Learns", tuple(LEARNS), "What does not learn stands still at its random start"),
            "seed": seed_box("Of the task, the model and the data"),
        }
        for name, widget in self._inputs.items():
            widget.value = getattr(self, name)
            widget.observe(lambda change, name=name: self.mark(name), "value")
        in_columns(list(self._inputs.values()), label_width=60)
        return [heading("Starts afresh"), *self._inputs.values()]

    def apply(self, changed: Collection[str]) -> None:
        """Start afresh as the controls say; the old run stays behind the loss as a ghost."""
        self.learns, self.seed = self._inputs["learns"].value, self._inputs["seed"].value
        old = self.main_run
        self.runs = {"MoE": self._fresh()}
        if len(old.records) > RECENT:
            self.ghost = old
        self._trouble = ""
        self.restart_budget()
        self.rebuild_figure()

    def words(self) -> str:
        """What the load shows, in words."""
        return describe_load(recent_load(self.main_run) if self.main_run.records else self.clean_load)

    def __repr__(self) -> str:
        panels = [repr(self._panel_names)] if self._panel_names != USUAL_PANELS else []
        named = [f"learns={self.learns!r}"] if self.learns != "all" else []
        named += [f"seed={self.seed}"] if self.seed else []
        return f"CollapseLab({', '.join(panels + named + self._arguments)})"
