"""The effective dense width: on a known curve it is the known width; outside the family it is said to be outside."""

import math

import numpy as np
import pytest

from moe_lessons.analysis import effective_width

WIDTHS = (64, 128, 256, 512)


def curve(shift: float = 0.0) -> dict[int, list[float]]:
    """Quality 0, 1, 2, 3 of the four widths, from two seeds."""
    return {width: [i - shift, i + shift] for i, width in enumerate(WIDTHS)}


@pytest.mark.parametrize("quality, width", [(0, 64), (1, 128), (0.5, 64 * 2**0.5), (2.25, 256 * 2**0.25), (3, 512)])
def test_on_a_line_over_the_logarithm_it_is_exact(quality, width):
    found = effective_width(curve(), [quality, quality])
    assert (found.width, found.low, found.high) == pytest.approx((width,) * 3)
    assert found.family == (64, 512)


def test_the_interval_has_each_seed_against_its_own_dense_models():
    found = effective_width(curve(0.25), [1.5 - 0.1, 1.5 + 0.1])
    assert found.width == pytest.approx(64 * 2**1.5)
    assert (found.low, found.high) == pytest.approx((64 * 2**1.35, 64 * 2**1.65))


def test_where_a_wider_model_is_worse_by_chance_the_least_width_that_is_as_good_counts():
    family = {64: [0.0], 128: [2.0], 256: [1.0], 512: [3.0]}
    assert effective_width(family, [2.0]).width == 128
    assert effective_width(family, [1.0]).width == pytest.approx(64 * 2**0.5)
    assert effective_width(family, [2.5]).width == pytest.approx(256 * 2**0.5)


def test_outside_the_family_nothing_is_extrapolated():
    above, below = effective_width(curve(), [4.0] * 2), effective_width(curve(), [-1.0] * 2)
    assert above.width == math.inf and str(above) == "above 512"
    assert below.width == 0 and str(below) == "below 64"
    partly = effective_width(curve(0.5), [2.75] * 2)
    assert partly.high == math.inf and str(partly).endswith("to above 512)")
    assert str(above.times(128)) == "above 4" and above.times(128).width == math.inf


@pytest.mark.parametrize(
    "family, mixture, message",
    [
        ({64: [1.0]}, [1.0], "family must have two widths or more"),
        ({64: [1.0], 128: [1.0, 2.0]}, [1.0], "with as many seeds as the mixture, got .1, 1, 2."),
        ({64: [1.0], 128: [2.0]}, [], "as many seeds"),
        ({64: [1.0], 128: [np.nan]}, [1.0], "must have finite qualities"),
    ],
)
def test_bad_input_is_refused(family, mixture, message):
    with pytest.raises(ValueError, match=message):
        effective_width(family, mixture)
