"""Remedies against a collapse, one or several together: what each trains with, and how it is read."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from moe_lessons.support.errors import check_choice
from moe_lessons.training import REMEDIES, PlaneSetting, SeedBand, remedy_setting
from moe_lessons.training.knobs import TRAINING
from moe_lessons.training.run import is_dead

NUM_POINTS = 512  # held out, for each seed: what a reading is taken on
RECENT = 20  # steps over which what a step shows is averaged

# the remedies with a strength to turn, and the knob that it is
STRENGTHS = {name: knob for name, fields in REMEDIES.items() for knob in fields if knob in TRAINING}


class Reading(NamedTuple):
    """Says what a band shows at a step on held-out points, without noise: a value for each seed (S,)."""

    step: int
    dead: np.ndarray
    max_over_mean: np.ndarray  # the load of the busiest expert over the mean load: 1 is even
    accuracy: np.ndarray


@dataclass
class Tile:
    """Is a remedy, or several together, and the band that trains with it."""

    setting: PlaneSetting
    band: SeedBand
    marks: list[int] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    turned: bool = False  # whether a knob was turned since the last reading
    clean: np.ndarray | None = None  # (S, E) load shares of the last reading

    @property
    def step(self) -> int:
        return len(self.band.records)

    @property
    def is_noisy(self) -> bool:
        """Tell whether the router's decisions are disturbed in training."""
        disturbing = (getattr(self.setting, name) for name, knob in TRAINING.items() if knob.disturbs)
        return self.setting.router == "learned noise" or any(disturbing)

    def read(self) -> None:
        """Take a reading, unless the last one still holds."""
        if self.readings and self.readings[-1].step == self.step:
            if not self.turned:
                return
            self.readings.pop()
        self.turned, read = False, self.band.evaluate(NUM_POINTS)
        self.clean = read["loads"]
        dead = is_dead(self.clean * self.setting.top_k).sum(axis=1)
        max_over_mean = self.clean.max(axis=1) * self.clean.shape[1]
        self.readings.append(Reading(self.step, dead, max_over_mean, read["accuracies"]))

    def recent(self, name: str) -> float:
        """Give the mean over the last steps and all seeds of something in the band's records."""
        return float(np.mean([getattr(record, name) for record in self.band.records[-RECENT:]]))


def tile_setting(name: str, base: PlaneSetting, values: dict[str, Any]) -> PlaneSetting:
    """Make what a tile trains with: its remedies (joined by ' + ') on `base`, as strong as `values` say, or as a remedy
    itself does: 'auxiliary loss 0.3'. ValueError if they clash."""
    parts = [split_strength(part) for part in name.split(" + ")]
    remedies = [check_choice("remedy", remedy, REMEDIES) for remedy, _ in parts]
    own = {STRENGTHS[remedy]: strength for remedy, strength in parts if remedy in STRENGTHS}
    own = {knob: values[knob] if strength is None else strength for knob, strength in own.items()}
    if len(set(remedies)) < len(remedies) or ("nothing" in remedies and len(remedies) > 1):
        raise ValueError(f"remedies in one tile must be different ones, got {name!r}")
    try:
        remedy_setting(*remedies)
    except ValueError as error:
        raise ValueError(f"{' and '.join(remedies)} do not go together: {error}") from None
    return remedy_setting(*remedies, base=base, **own)


def split_strength(part: str) -> tuple[str, float | None]:
    """Split 'jitter 0.2' into ('jitter', 0.2), and 'jitter' into ('jitter', None)."""
    remedy, _, number = part.rpartition(" ")
    try:
        return (remedy, float(number)) if remedy in STRENGTHS else (part, None)
    except ValueError:
        return part, None
