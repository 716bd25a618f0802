"""Say what the wall of facts needs in the page: which graphs there are, what they start from, the books, the panels."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from moe_lessons.analysis.counting import flops_per_token
from moe_lessons.nn import is_moe
from moe_lessons.plots.marks import encode_panel
from moe_lessons.plots.panels._history import LOSS_WINDOW, MOST_PLACES, RECENT, X_AXES
from moe_lessons.tasks import Facts
from moe_lessons.tasks.facts import NUMBER_DIGITS
from moe_lessons.training import Run, facts_runs
from moe_lessons.training.run import lr_scale
from moe_lessons.widgets.canvas import COLORS
from moe_lessons.widgets.live import usual_arguments
from moe_lessons.widgets.small_labs import FACTS_LAB, FactsLab, steps_between
from moe_lessons.widgets.spec import HEADINGS
from web.graphs import NUM_READ, STEP_KNOBS, TrainedFacts, export_facts_reading, export_facts_step
from web.manifest import NOT_MADE, STOPS, describe_control, without_times

WALL_STOPS = {  # what the page has graphs, starts and books for
    "num_experts": (4, 8, 16, 32),
    "num_entries": (200, 400, 800),
    "seed": (0, 1, 2, 3),
    "lr": FACTS_LAB.stops["lr"],
    "x_axis": STOPS["x_axis"],
}
STOP = 300  # steps: of the book at first, that of lesson 05, the MoE has nearly all and dense, 1×, about half or less
EXPORTS = export_facts_step, export_facts_reading
USUAL = usual_arguments(FactsLab)
FEW_STOPS = WALL_STOPS | {"num_experts": (4,), "num_entries": (400, 800), "seed": (0, 1)}


def facts_graph_name(run: Run) -> str:
    """Name the graphs of a run by what they are of: two baselines of one width have the same."""
    ffn = run.model.layers[0].ffn
    size = f"{ffn.num_experts}-{ffn.top_k}" if is_moe(ffn) else f"dense-{ffn.d_ff}"
    return f"facts-{size}"


def start_name(run: Run, num_experts: int) -> str:
    """Name the weights that a run starts from, but for the seed."""
    ffn = run.model.layers[0].ffn
    return f"facts-start-{num_experts}-{'moe' if is_moe(ffn) else ffn.d_ff}"


class Wall:
    """The wall of facts with some stops, for which all is made: names -> what is made of them."""

    def __init__(self, stops: dict[str, tuple]):
        self.stops, (self.experts, self.books, self.seeds, *_) = stops, stops.values()

    def graphs(self) -> dict[str, Run]:
        """Name the graphs, each with a run that it is of."""
        runs = [run for experts in self.experts for run in facts_runs(experts).values()]
        return {facts_graph_name(run): run for run in runs}

    def numbers(self) -> Iterator[tuple[str, np.ndarray]]:
        """Give the largest book of each seed in bytes, of which a smaller one is the beginning; and all weights at
        torch's own start, as bfloat16: the upper half of each float32, rounded."""
        for seed in self.seeds:
            yield f"facts-{seed}.z", Facts(max(self.books), seed).tokens.numpy().astype("u1")
            starts = {}
            for experts in self.experts:
                for run in facts_runs(experts, num_entries=min(self.books), seed=seed).values():
                    weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
                    starts[f"{start_name(run, experts)}-{seed}.z"] = weights.bfloat16().view(torch.int16).numpy()
            yield from starts.items()

    def manifest(self) -> dict[str, Any]:
        """Say what is the same for all sizes, in what JSON can hold."""
        usual = {name: USUAL.get(name, self.stops[name][0]) for name in self.stops}
        usual |= {name: stops[-1] for name, stops in self.stops.items() if usual[name] not in stops}
        return {
            "graphs": list(self.names()),
            "graph_of": ("num_experts", "num_entries"),
            "presets": {"of lesson 05": {"tip": "", "values": usual, "off": ""}},
            "headings": HEADINGS,
            **{group: [name for name in names if name in self.stops] for group, names in FACTS_LAB.groups.items()},
            "controls": {name: describe_control(name, stops) for name, stops in self.stops.items()},
            "knobs": STEP_KNOBS,
            "left_out": {},
            "kept": [],
            "idle": {},
            "axes": X_AXES,
            "colors": COLORS,
            "words": {"title": FACTS_LAB.title, "not_made": NOT_MADE},
            "numbers": {
                "recent": RECENT, "window": LOSS_WINDOW, "places": MOST_PLACES,
                "budget": STOP, "entries": USUAL["num_entries"], "read": NUM_READ, "length": Facts.context + 1,
                "digits": NUMBER_DIGITS,
            },
        }  # fmt: skip

    def sizes(self) -> dict[str, dict[str, Any]]:
        """Say for each size of the models and of the book what it needs: its models, rates, and panels as encoded."""
        return {name: self.size(*size) for name, size in self.names().items()}

    def names(self) -> dict[str, tuple[int, int]]:
        """Name each size: num_experts, num_entries."""
        return {"-".join(map(str, size)): size for size in itertools.product(self.experts, self.books)}

    def size(self, num_experts: int, num_entries: int) -> dict[str, Any]:
        lab = FactsLab(num_experts, num_entries=num_entries)
        main = lab.main_run
        models, flops = [], []
        for name, run in lab.runs.items():
            trained = TrainedFacts(run)
            models.append({
                "name": name, "graph": facts_graph_name(run), "start": start_name(run, num_experts),
                "size": trained.size, "batch": trained.batch_size,
                "knobs": [getattr(run.knobs, knob) for knob in STEP_KNOBS],
            })  # fmt: skip
            flops.append(trained.batch_size * Facts.context * flops_per_token(run.model, training=True))
        panels = {place: encode_panel(panel, place)[0] for place, panel in enumerate(lab.panels())}
        without_times(panels[len(panels) - 1])
        lab.close()
        rates = [lr_scale(step, main.warmup_steps, main.decay_steps) for step in range(1, main.decay_steps + 1)]
        made = {"experts": 0, "models": models, "flops": flops, "panels": panels}  # experts: none is shown
        return made | {"rates": rates, "every": steps_between(num_entries)}
