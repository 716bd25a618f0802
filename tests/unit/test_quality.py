"""The dense model that is as good as a mixture, in made-up losses of which the answer is known."""

import json
import math
from functools import partial

import numpy as np
import pytest

from moe_lessons.analysis import effective_width, quality
from moe_lessons.support import data as datafiles

WIDTHS = (1, 2, 4, 8)
near = partial(pytest.approx, rel=0.01)


def losses(*shifts: float) -> dict[int, list[float]]:
    """Losses 3, 2, 1, 0 of the four widths, from seeds that are shifted."""
    return {width: [3 - i + shift for shift in shifts] for i, width in enumerate(WIDTHS)}


@pytest.mark.parametrize("goal, width", [(2, 2), (2.5, 2**0.5), (0.75, 2**2.25), (0, 8)])
def test_on_a_line_over_the_logarithm_it_is_exact(goal, width):
    found = effective_width(losses(0, 0), [goal, goal])
    assert (found.width, found.low, found.high) == near((width,) * 3)


def test_seeds_are_paired_and_the_interval_is_of_their_differences():
    shifts = np.array([-1.0, 0.0, 1.0, 2.0])  # what a seed does to all models alike changes nothing
    noise = np.array([-0.1, 0.1, 0.05, -0.05])
    found, half = effective_width(losses(*shifts), 1.5 + shifts + noise), 3.182 * np.std(noise, ddof=1) / 2
    assert found.width == near(2**1.5) and (found.low, found.high) == near((2 ** (1.5 - half), 2 ** (1.5 + half)))


def test_beyond_the_trained_widths_nothing_is_extrapolated_and_the_least_width_counts():
    above, below = effective_width(losses(0, 0.1), [-1, -0.9]), effective_width(losses(0, 0.1), [4, 4.1])
    assert (above.width, below.width) == (math.inf, 0) and (str(above), str(below)) == ("above 8", "below 1")
    partly = effective_width(losses(0, 0, 0), [0.1, 0.2, 0.6])
    assert partly.high == math.inf and str(partly) == f"{2**2.7:.2g} ({partly.low:.2g} to above 8)"
    dip = {1: [3.0, 3.0], 2: [1.0, 1.0], 4: [2.0, 2.0], 8: [0.0, 0.0]}
    assert effective_width(dip, [1.0, 1.0]).width == near(2)


@pytest.mark.parametrize("bad", [[], [1.0], [1.0, 1.0, 1.0], [1.0, math.nan]])
def test_seeds_that_do_not_belong_together_are_refused(bad):
    with pytest.raises(ValueError, match="^dense (must have two widths|and mixture must have finite)"):
        effective_width(losses(0, 0), bad)


def test_the_width_over_the_size_of_the_stored_sweeps(tmp_path, monkeypatch):
    """Only seeds that all models have, and only their last losses."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(datafiles, "FOLDER", tmp_path)
    monkeypatch.setattr(quality, "SIZES", (64, 128, 256))
    costs = {"flops_per_step": 1, "ms_per_step": 1.0}
    for d_model, moe in ((64, 2.0), (128, 1.5), (256, -1.0)):
        kinds = {"MoE": moe} | {f"dense, {width}×": 3.0 - i for i, width in enumerate(WIDTHS)}
        rows = [{"model": name, "seed": seed, "step": [5, 9], "loss": [9.0, loss + seed], **costs}
                for name, loss in kinds.items() for seed in (2, 1, 3) if (name, seed) != ("MoE", 3)]  # fmt: skip
        lines = map(json.dumps, [{"steps": 9}, *rows])
        (tmp_path / f"results/size_{d_model}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    found = quality.width_over_size()
    assert found.width.tolist() == near([2, 2**1.5, math.inf]) and found.said.iloc[2] == "above 8"


def test_the_lead_by_the_clock_is_read_between_two_readings(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(datafiles, "FOLDER", tmp_path)
    kinds = {"MoE": (11.0, 1.0), "dense, 1×": (6.0, 3.0)}  # ms of a step, and nats at the end
    rows = [{"model": name, "seed": seed, "step": [1000, 4000], "loss": [5, end - seed], "ms_per_step": ms + seed}
            for name, (ms, end) in kinds.items() for seed in (0, 1, -1)]  # fmt: skip
    (tmp_path / "results/race.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"steps": 4000}, *rows]))
    race = quality.race_by_clock()
    assert race[race.model == "MoE"].seconds.unique().tolist() == [10, 40]
    mean, half = quality.lead_by_clock(race, [10, 20], "dense, 1×")
    assert mean.tolist() == near([4 - 5, 3 - 3]) and half[0] == near(2.484 * 1 / 2, rel=1e-3)


def test_published_pairs_are_of_equal_quality_by_their_own_words():
    pairs = quality.published_pairs()
    assert pairs.width["DeepSeekMoE 16B"] == near(183.5 / 74.4)  # TFLOP for 4K tokens, in their table
    assert pairs.width["Ling-mini-beta"] > 7 and pairs.source.str.startswith("arXiv:").all()
