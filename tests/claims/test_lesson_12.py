"""What lesson 12 says under 'What to notice'. Its other statements are those of the lessons that it names."""

import pytest

from moe_lessons.analysis import bytes_per_step, effective_width
from moe_lessons.analysis.results import last_of
from moe_lessons.nn import dense_twin
from moe_lessons.training import facts_model

SIZES = {"d_model": 768, "d_ff": 768, "num_heads": 8, "num_kv_heads": 8, "max_positions": 16}


def memory(model) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.claim("the-answer-in-one-picture")
def test_memory_like_the_large_one_and_reads_like_the_small_one():
    last = last_of("facts", "known")
    family = {int(name.partition("=")[2]): list(last[name]) for name in last if name.startswith("dense, F")}
    family = {64: list(last["equal-active twin"])} | family | {512: list(last["equal-total twin"])}
    mixture = list(last["MoE, E=16"])
    times = effective_width(dict(sorted(family.items())), mixture).times(64)
    moe = facts_model(**SIZES)
    active, total = dense_twin(moe, "active"), dense_twin(moe, "total")
    assert memory(moe) == pytest.approx(memory(total), rel=0.02) and memory(moe) > 4 * memory(active)
    assert bytes_per_step(moe) == pytest.approx(bytes_per_step(active), rel=0.02)
    for width in (times.low, times.width, times.high):  # with every seed
        good = facts_model(**SIZES | {"moe_layers": (), "d_ff": round(2 * 768 * width)})
        assert 1.5 * bytes_per_step(moe) < bytes_per_step(good) < 0.9 * bytes_per_step(total)
    for seed, knows in enumerate(mixture):
        assert 2 * list(last["equal-active twin"])[seed] < knows < list(last["equal-total twin"])[seed]
