"""What lesson 03 says under 'What to notice'. Arithmetic is exact."""

from dataclasses import replace

import pytest
import torch
from everywhere import seeds
from torch.utils.flop_counter import FlopCounterMode

from moe_lessons.analysis.counting import MODEL_SHAPES, TransformerShape, count_parameters
from moe_lessons.analysis.roofline import machines, published_sizes, sizes_of
from moe_lessons.exercises import card_design
from moe_lessons.hub import ConfigCalculator
from moe_lessons.nn import MoE, dense_baseline
from moe_lessons.widgets import ParameterMap

MIXTRAL = MODEL_SHAPES["Mixtral 8x7B"]
MISTRAL = MODEL_SHAPES["Mistral 7B (dense)"]
BASELINE = replace(MIXTRAL, d_ff=2 * MIXTRAL.d_ff, num_experts=1, top_k=1)  # FLOP-matched


@pytest.mark.claim("tokens-together-meet-nearly-all")
def test_tokens_together_meet_nearly_all():
    nearly_all = []
    for seed in seeds(20):
        shown, total = ParameterMap(seed), MIXTRAL.count.total
        assert shown.sizes.active == shown.together[0] == MIXTRAL.count.active
        assert shown.sizes.total == total and round(100 * shown.sizes.active / total) == 28
        assert 0.87 < shown.together[7] / total < 0.94  # the law: .903
        nearly_all.append(shown.together[15] / total)
    assert 0.94 < min(nearly_all) and 0.98 < sum(nearly_all) / 20 <= 1  # .990


@pytest.mark.claim("active-stands-still")
def test_active_stands_still():
    counts = [count_parameters(MoE(64, 256, num_experts=n, top_k=2)) for n in (2, 4, 8, 16, 32, 64)]
    for fewer, more, n in zip(counts, counts[1:], (2, 4, 8, 16, 32)):
        assert more.total == 2 * fewer.total
        assert more.active - fewer.active == n * 64  # the router's new rows
    assert counts[-1].total == 32 * counts[0].total
    assert round(100 * (counts[-1].active / counts[0].active - 1)) == 4


@pytest.mark.claim("mixtral-experts-hold-most")
def test_mixtral_experts_hold_most():
    experts, router = MIXTRAL.parameters()["experts"], MIXTRAL.parameters()["router"]
    assert round(100 * experts.total / MIXTRAL.count.total) == 97
    assert round(100 * router.total / MIXTRAL.count.total, 3) == 0.002


@pytest.mark.claim("mixtral-is-not-56")
def test_mixtral_is_not_56():
    assert replace(MISTRAL, num_experts=8, top_k=2) == MIXTRAL
    outside = MISTRAL.count.total - MISTRAL.parameters()["experts"].total
    assert round(outside / 1e9, 1) == 1.6
    router = MIXTRAL.parameters()["router"].total
    assert 8 * MISTRAL.count.total - MIXTRAL.count.total == 7 * outside - router
    assert router < 0.001 * 7 * outside
    assert round(100 * MIXTRAL.count.active / MIXTRAL.count.total, 1) == 27.6


@pytest.mark.claim("why-more-than-k-of-e")
def test_why_more_than_k_of_e():
    sizes, experts = published_sizes()["DeepSeek-V3"], MIXTRAL.parameters()["experts"]
    (group,) = sizes.groups
    routed, chosen = (group.layers * group.expert * n for n in (256, group.top_k))
    assert {round(100 * part) for part in (routed / sizes.total, experts.total / MIXTRAL.count.total)} == {97}
    assert round(100 * experts.active / MIXTRAL.count.active) == 88 and round(100 * chosen / sizes.active) == 54
    assert round(100 * sizes.active / sizes.total, 1) == 5.6 and group.top_k / group.num_experts == 8 / 256
    assert group.layers == 58 and sum(layer.layers for layer in sizes.cached) == 61  # so three are dense
    D, own = 7168, sizes.active - chosen
    parts = [sizes.shared, 3 * 3 * D * 18432, 2 * 129280 * D]
    assert [round(part / 1e9, 1) for part in (own - sum(parts), *parts)] == [
        11.5,
        2.6,
        1.2,
        1.9,
    ]  # attention with the router, 0.1
    assert sizes.shared == group.layers * group.expert  # one in each layer with experts
    assert round((sizes.active - sizes.looked_up) / 1e9, 1) == 36.6


@pytest.mark.claim("published-shares")
def test_published_shares():
    assert len(published_sizes()) == 16
    for sizes in published_sizes().values():
        assert sizes.groups[0].top_k / sizes.groups[0].num_experts < sizes.active / sizes.total < 0.4


@pytest.mark.claim("two-flops-for-an-active-parameter")
def test_two_flops_for_an_active_parameter():
    moe = MoE(64, 256, num_experts=8, top_k=2, dispatch="loop")
    for model in (moe, dense_baseline(moe, "flops"), dense_baseline(moe, "params")):
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(32, 64))
        assert counter.get_total_flops() == 32 * 2 * count_parameters(model).active
    matched = count_parameters(dense_baseline(moe, "flops")).active
    assert round(100 * (count_parameters(moe).active / matched - 1), 1) == 0.5
    rule, flops = 2 * MIXTRAL.count.active, MIXTRAL.flops_per_token
    assert round(100 * (1 - flops() / rule)) == 1
    embedding_and_norms = MIXTRAL.parameters()["embedding"].total + MIXTRAL.parameters()["norms"].total
    assert rule - flops() == 2 * embedding_and_norms
    assert MIXTRAL.parameters()["norms"].total < 0.01 * embedding_and_norms
    assert 0 < flops(4096) / flops() - 1 < 0.1
    assert flops(32768) / flops() - 1 == pytest.approx(2 / 3, abs=0.02)


@pytest.mark.claim("memory-follows-the-total")
def test_memory_follows_the_total():
    for seed in seeds(5):
        torch.manual_seed(seed)
        _, routing = MoE(64, 256, num_experts=8, top_k=2)(torch.randn(256, 64))
        assert routing.tokens_per_expert.min() >= 5  # none is idle, with room to spare
    assert [round(size * MIXTRAL.count.total / 1e9) for size in (2, 0.5)] == [93, 23]  # in 16 and 4 bits
    assert round(2 * BASELINE.count.total / 1e9) == 26
    assert BASELINE.flops_per_token() == pytest.approx(MIXTRAL.flops_per_token(), rel=0.001)


@pytest.mark.claim("the-cache-is-the-same")
def test_the_cache_is_the_same():
    assert round(2 * sizes_of(MIXTRAL).cache(32768) / 1e9, 1) == 4.3  # GB, 2 bytes a number
    assert sizes_of(BASELINE).cached == sizes_of(MIXTRAL).cached
    assert 2 * sizes_of(MIXTRAL).cache(1) == 131_072


@pytest.mark.claim("calculator-two-tries")
def test_calculator_two_tries():
    num_experts, top_k, d_ff = card_design.answer()
    start = TransformerShape(32000, 2048, 24, 16, 4, 128, d_ff, num_experts, top_k)
    calculator = ConfigCalculator(start, context_length=32768, machine="NVIDIA RTX 4090")
    assert machines().memory_bytes["NVIDIA RTX 4090"] == 24e9
    assert rows_of(calculator, "fits into 24").split()[0] == "yes"
    before = numbers_of(calculator)
    calculator.inputs["top_k"].value = 2 * top_k
    after = numbers_of(calculator)
    for row in ("active parameters", "FLOPs per token", "weights loaded"):
        assert after[row] > 1.2 * before[row], row
    assert after["total parameters"] == before["total parameters"] and after["weights in"] == before["weights in"]

    calculator.inputs["top_k"].value = top_k
    calculator.inputs["weights"].value = "4-bit"
    after = numbers_of(calculator)
    for row in ("weights in", "weights loaded"):
        assert after[row] == pytest.approx(before[row] / 4, rel=0.01), row
    for row in ("total parameters", "active parameters", "FLOPs per token"):
        assert after[row] == before[row]


@pytest.mark.claim("attention-is-over-half")
@pytest.mark.parametrize("design", [(8, 2, 8192), (8, 2, 8704), (32, 8, 2176), (64, 14, 1088), (4, 1, 16384)])
def test_attention_is_over_half(design):
    num_experts, top_k, d_ff = design
    shape = TransformerShape(32000, 2048, 24, 16, 4, 128, d_ff, num_experts, top_k)
    assert card_design.check(lambda: design).status == "right"
    assert 2.5e9 <= shape.count.active <= 3e9
    assert shape.flops_per_token(32768) > 2 * shape.flops_per_token()


def numbers_of(calculator: ConfigCalculator) -> dict[str, float]:
    """The first column: the model, in billions."""
    rows = ("total parameters", "active parameters", "FLOPs per token", "weights in", "weights loaded")
    return {row: float(rows_of(calculator, row).split()[0]) for row in rows}


def rows_of(calculator: ConfigCalculator, name: str) -> str:
    """The cells of a row of the table: the model, its baselines."""
    table = calculator.table()
    (cells,) = [cells for row, cells in zip(table.rows, table.cells) if row.startswith(name)]
    return " ".join(cells)
