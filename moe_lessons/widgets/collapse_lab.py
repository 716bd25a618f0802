"""A collapse, live: the load of each expert, and the gradient that it gets."""

from collections.abc import Sequence
from typing import Any

from moe_lessons.analysis.collapse import LEARNS, watched_run
from moe_lessons.training import PRESETS, Run
from moe_lessons.widgets.laboratory import Lab, names_of
from moe_lessons.widgets.plane import clean_load

PANELS_OF_A_COLLAPSE = ("film", "load", "loss", "gradient film", "gradient")


class CollapseLab(Lab):
    """Trains `training.PRESETS["collapse"]`, live. Reset starts the same run again.

    panels: names from `PANELS_OF_A_COLLAPSE`. learns: a name of `analysis.collapse.LEARNS`; what does not learn stands
    still. seed: of the task, the model and the data. play, max_steps: see `LiveRun`.

    >>> CollapseLab(learns="router only", seed=3)
    CollapseLab(learns='router only', seed=3)
    """

    title, first_x = "A collapse", 25
    START, LIVE, LOOK, STOPS = ("learns", "seed"), (), (), {"learns": tuple(LEARNS)}
    USUAL = {"panels": PANELS_OF_A_COLLAPSE[:3], "play": 0, "max_steps": 300, "learns": "all", "seed": 0}

    def __init__(self, panels: Sequence[str] = USUAL["panels"], *, learns="all", seed=0, play=0, max_steps=300):
        panels = names_of(panels, "panels", PANELS_OF_A_COLLAPSE)
        super().__init__({"learns": learns, "seed": seed}, panels, play=play, max_steps=max_steps)

    def make_runs(self, values: dict[str, Any]) -> dict[str, Run]:
        """See `Lab`. `clean_load` is the load before the first step."""
        run = watched_run(PRESETS["collapse"], values["seed"], values["learns"])
        self.clean_load = clean_load(run, 1024)
        return {"MoE": run}
