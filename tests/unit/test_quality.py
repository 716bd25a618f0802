"""The dense model that is as good as a mixture, in made-up results of which the answer is known."""

import json
import math
from functools import partial

import numpy as np
import pytest

from moe_lessons.analysis import effective_width, quality, results
from moe_lessons.support import data as datafiles

WIDTHS = (64, 128, 256, 512)
near = partial(pytest.approx, rel=0.01)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A function that stores the runs of a sweep where they are read."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(datafiles, "FOLDER", tmp_path)

    def write(name: str, *rows: dict) -> None:
        (tmp_path / f"results/{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    return write


def curve(shift: float = 0.0) -> dict[int, list[float]]:
    """Quality 0, 1, 2, 3 of the four widths, from two seeds."""
    return {width: [i - shift, i + shift] for i, width in enumerate(WIDTHS)}


@pytest.mark.parametrize("quality, width", [(0, 64), (1, 128), (0.5, 64 * 2**0.5), (2.25, 256 * 2**0.25), (3, 512)])
def test_on_a_line_over_the_logarithm_it_is_exact(quality, width):
    found = effective_width(curve(), [quality, quality])
    assert (found.width, found.low, found.high) == pytest.approx((width,) * 3)
    assert found.family == (64, 512)


def test_the_interval_is_of_seeds_the_least_width_counts_and_nothing_is_extrapolated():
    found = effective_width(curve(0.25), [1.5 - 0.1, 1.5 + 0.1])
    assert found.width == pytest.approx(64 * 2**1.5)
    assert (found.low, found.high) == pytest.approx((64 * 2**1.35, 64 * 2**1.65))
    family = {64: [0.0], 128: [2.0], 256: [1.0], 512: [3.0]}
    assert effective_width(family, [2.0]).width == 128
    assert effective_width(family, [1.0]).width == pytest.approx(64 * 2**0.5)
    above, below = effective_width(curve(), [4.0] * 2), effective_width(curve(), [-1.0] * 2)
    assert above.width == math.inf and str(above) == "above 512"
    assert below.width == 0 and str(below) == "below 64"
    partly = effective_width(curve(0.5), [2.75] * 2)
    assert partly.high == math.inf and str(partly).endswith("to above 512)")
    assert str(above.times(128)) == "above 4" and above.times(128).width == math.inf


def test_how_all_lengths_ended_and_what_the_best_dense_model_takes(store):
    known = {("dense, 1×", 64): (10, 40), ("dense, 2×", 128): (40, 60), ("MoE, E=4", 66): (50, 80)}  # of 200
    for i, steps in enumerate((100, 200)):
        runs = [
            {"model": model, "seed": seed, "step": [steps // 2, steps], "loss": [2, 1], "known": [0, ends[i] + seed],
             "flops_per_step": flops, "ms_per_step": 1.0, "max_over_mean": None if i else 1.5}
            for (model, flops), ends in known.items() for seed in (2, 1)
        ]  # fmt: skip
        store(f"book_{steps}", {"sweep": f"book_{steps}", "num_entries": 200, "steps": steps}, *runs)
    ends = results.load_ends("book")
    assert len(ends) == 12 and ends.known.max() == 41 and ends.width.isna().sum() == 4
    assert ends.max_over_mean.dtype == float and ends.max_over_mean.isna().sum() == 6
    assert results.last_of("book_100", "known")["dense, 2×"].tolist() == [41, 42]  # of seeds 1 and 2
    times = quality.times_the_cost(ends, "MoE, E=4", 100)  # it knows 25.5 and 26 %: more than all after 100 steps, and
    assert (times.low, times.width, times.high) == near((12_800 * 2**0.5 / 6600,) * 3)  # half-way between those of 200
    assert quality.times_as_wide(ends, "MoE, E=4", 200).width == math.inf
    ends.loc[ends.model == "MoE, E=4", "known"] = 5.75  # after 100 steps as much as the narrowest, and after 200 less
    assert quality.times_the_cost(ends, "MoE, E=4", 200).width == pytest.approx(6400 / 13_200)
    with pytest.raises(ValueError, match="name must be that of a stored sweep of several lengths.*got 'boo'"):
        results.load_ends("boo")


def test_the_width_of_equal_quality_over_the_steps(store):
    """Losses on lines over the logarithms of width and step: what must be found is known exactly."""
    steps = [100, 200, 400]

    def run(model, width, better=0.0, seed=1):
        loss = [5 - 0.1 * np.log2(width) - 0.2 * np.log2(step) - better * np.log2(step / 50) for step in steps]
        costs = {"flops_per_step": width, "ms_per_step": 1.0}
        return {"model": model, "seed": seed, "step": steps, "loss": [loss + 0.01 * seed for loss in loss], **costs}

    rows = [run(f"dense, {width}×", 128 * width, seed=seed) for width in (1, 2, 4, 8) for seed in (1, 2)]
    rows += [run("MoE, E=16", 128, better=0.0999, seed=seed) for seed in (1, 2)]  # doubles
    rows += [run("MoE, E=4", 128), run("MoE, E=8", 64), run("MoE, E=8", 64, seed=2)]
    store("prose", {"sweep": "prose", "steps": 400}, *rows)
    found = quality.width_over_steps("prose", "MoE, E=16")
    assert found.step.tolist() == steps and found.width.tolist() == near([2, 4, 8])
    assert found.low.tolist() == near([2, 4, 8]) and found.high.tolist() == near([2, 4, 8])
    assert quality.quality_matched_width("prose", 16).width == near(8)
    assert str(quality.quality_matched_width("prose", 8)) == "below 1"
    for argument, task, num_experts in (("num_experts", "prose", 5), ("task", "text", 16)):
        with pytest.raises(ValueError, match=f"^{argument} must be one of"):
            quality.quality_matched_width(task, num_experts)
