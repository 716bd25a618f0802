"""A collapse, live: the load of each expert, and the gradient that it gets."""

from collections.abc import Sequence
from typing import Any

import torch

from moe_lessons.analysis.collapse import LEARNS, watched_run
from moe_lessons.analysis.load import describe_load
from moe_lessons.errors import check_choice
from moe_lessons.plots.panels._history import recent_load
from moe_lessons.tasks import PRESETS
from moe_lessons.training import Run, load_share
from moe_lessons.widgets.controls import check_seed
from moe_lessons.widgets.lab import Lab

PANELS_OF_A_COLLAPSE = ("film", "load", "loss", "gradient film", "gradient")


class CollapseLab(Lab):
    """Trains `tasks.PRESETS["collapse"]`, live. Reset starts the same run again.

    panels: names from `PANELS_OF_A_COLLAPSE`. learns: a name of `analysis.collapse.LEARNS`; what does not learn stands
    still. seed: of the task, the model and the data. play, max_steps: see `LiveRun`.

    >>> CollapseLab(learns="router only", seed=3)
    CollapseLab(learns='router only', seed=3)
    """

    title = "A collapse"
    usual_steps, first_x = 300, 60
    START, LIVE, LOOK = ("learns", "seed"), (), ()
    USUAL = {"panels": PANELS_OF_A_COLLAPSE[:3], "learns": "all", "seed": 0}

    def __init__(self, panels: Sequence[str] = USUAL["panels"], *, learns="all", seed=0, play=0, max_steps=usual_steps):
        self._names = (panels,) if isinstance(panels, str) else tuple(panels)
        for panel in self._names or ("none",):
            check_choice("panels", panel, PANELS_OF_A_COLLAPSE)
        super().__init__({"learns": learns, "seed": seed}, self._names, play=play, max_steps=max_steps)

    def stops(self, name: str) -> Any:
        """See `Lab`."""
        return {"learns": tuple(LEARNS)}.get(name)

    def check(self, values: dict[str, Any], given=()) -> dict[str, Any]:
        """See `Lab`."""
        check_choice("learns", values["learns"], LEARNS)
        return super().check(values | {"seed": check_seed(values["seed"])}, given)

    @torch.no_grad()
    def make_runs(self, values: dict[str, Any]) -> dict[str, Run]:
        """See `Lab`. `clean_load` is the load before the first step."""
        run = watched_run(PRESETS["collapse"], values["seed"], values["learns"])
        points, _ = run.task.batch(1024, torch.Generator().manual_seed(values["seed"] + 1_000_002))
        self.clean_load = load_share(run.model(points)[1][0]).tolist()
        return {"MoE": run}

    def words(self) -> str:
        """What the load shows, in words."""
        return describe_load(recent_load(self.main_run) if self.main_run.records else self.clean_load)

    def written(self) -> tuple[list[str], dict[str, Any]]:
        """See `Lab`."""
        return [repr(self._names)] if self._names != self.USUAL["panels"] else [], self.values
