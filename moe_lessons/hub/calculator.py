"""The calculator of costs with a box for the configuration of a model (extra: hf)."""

from pathlib import Path
from typing import Any

import ipywidgets as W

from moe_lessons.hub.published import count_config
from moe_lessons.plots.marks import Panel
from moe_lessons.support.files import read_config
from moe_lessons.widgets.calculators import SLIDERS, CostCalculator


class ConfigCalculator(CostCalculator):
    """A `CostCalculator` that also counts a model from its config.json, by its own class of Hugging Face transformers.

    model: the path of such a file or of its folder, too. The other arguments are those of `CostCalculator`."""

    SOURCES = (*CostCalculator.SOURCES, "config_file")
    problem = ""  # with the file in the box, in a sentence

    def begin(self, model: Any) -> None:
        self.notes = [W.Label().add_class("moe-trouble")]
        if isinstance(model, str | Path) and (str(model).endswith(".json") or Path(model).is_dir()):
            self.inputs["config_file"].value = str(model)
            self._count(str(model))
            if self.problem:
                raise ValueError(self.problem)
        else:
            super().begin(model)

    def moved(self, name: str) -> None:
        path = self.inputs["config_file"].value
        if name == "config_file" and path:
            self.show("Counting …")  # it may take seconds
            self._count(path)
        else:
            super().moved(name)

    def _count(self, path: str) -> None:
        try:
            counted = count_config(read_config(path))
        except (ValueError, ImportError) as error:
            self.problem = str(error)
        else:
            self.inputs["published"].value = SLIDERS
            self.take_sizes(counted.class_name, counted.sizes, path)

    def take_sizes(self, name, sizes, source, is_slid=False) -> None:
        super().take_sizes(name, sizes, source, is_slid)
        self.problem = ""
        if source != self.inputs["config_file"].value:
            self.inputs["config_file"].value = ""

    def show(self, words: str | None = None) -> None:
        self.notes[0].value = self.problem
        super().show(words or "There are no figures of this file." * bool(self.problem))

    def panels(self) -> list[Panel]:
        return [] if self.problem else super().panels()

    def sentence(self) -> str:
        return self.problem or super().sentence()
