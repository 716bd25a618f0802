"""The equally good dense model: how wide a dense FFN must be to reach the quality of a mixture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EffectiveWidth:
    """Says the `width` of the dense FFN that is as good as a mixture, and the lowest and highest that one seed gives.

    It is `inf` for a mixture better than the widest dense model of the `family`, 0 for one worse than the narrowest.
    """

    width: float
    low: float
    high: float
    family: tuple[int, int]

    def times(self, width: float) -> "EffectiveWidth":
        """Say it in multiples of `width`: of K·F, what the idle experts are worth."""
        narrow, wide = self.family
        return EffectiveWidth(self.width / width, self.low / width, self.high / width, (narrow / width, wide / width))

    def __str__(self) -> str:
        """Say it as '490 (430 to 560)', or 'above 512' where nothing in the family is as good, or both in one."""
        if self.low == self.high:  # both outside, on the same side
            return self._say(self.width)
        return f"{self._say(self.width)} ({self._say(self.low)} to {self._say(self.high)})"

    def _say(self, width: float) -> str:
        if 0 < width < math.inf:
            return f"{width:.3g}"
        return f"above {self.family[1]:.3g}" if width else f"below {self.family[0]:.3g}"


def effective_width(family: Mapping[int, Sequence[float]], mixture: Sequence[float]) -> EffectiveWidth:
    """Find the width at which the dense models of a family are as good as a mixture.

    family: for each width of the dense FFN the quality that its seeds reached; mixture: its quality with the same
    seeds. More is better. The means of the seeds are joined by straight lines over the logarithm of the width (with
    their running maximum); the width is where the mean of the mixture lies on them. The interval has what each seed
    gives by itself.

    >>> print(effective_width({64: [0.1, 0.12], 128: [0.3, 0.32], 256: [0.7, 0.72]}, [0.5, 0.56]))
    187 (181 to 194)
    >>> print(effective_width({64: [0.1, 0.12], 128: [0.3, 0.32]}, [0.5, 0.6]))
    above 128
    """
    widths = sorted(family)
    counts = [len(mixture), *(len(family[width]) for width in widths)]
    if len(widths) < 2 or len(set(counts)) > 1 or not counts[0]:
        raise ValueError(f"family must have two widths or more, with as many seeds as the mixture, got {counts}")
    curves, reached = np.array([family[width] for width in widths], float), np.asarray(mixture, float)  # (W, S), (S,)
    if not (np.isfinite(curves).all() and np.isfinite(reached).all()):
        raise ValueError("family and mixture must have finite qualities, got others: leave out the runs that diverged")
    of_seeds = [_width_at(widths, curve, quality) for curve, quality in zip(curves.T, reached)]
    width = _width_at(widths, curves.mean(axis=1), reached.mean())
    return EffectiveWidth(width, min(*of_seeds, width), max(*of_seeds, width), (widths[0], widths[-1]))


def _width_at(widths: Sequence[int], curve: np.ndarray, quality: float) -> float:
    """Find the least width at which a curve (W,), made monotone, reaches this quality."""
    curve = np.maximum.accumulate(curve)
    i = int(np.searchsorted(curve, quality))  # the first that is as good
    if i in (0, len(curve)):
        return math.inf if i else float(widths[0]) * (quality == curve[0])
    share = (quality - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(widths[i - 1] ** (1 - share) * widths[i] ** share)
