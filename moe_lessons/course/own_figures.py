"""The measurements of lessons 05 and 12: the models that they time, and the figures that a learner has not measured."""

from collections.abc import Sequence

from moe_lessons.analysis.quality import width_over_size
from moe_lessons.analysis.speedup import measure_speedups
from moe_lessons.course.interview import busy_ones, lacking, measured
from moe_lessons.nn import LanguageModel, TransformerConfig, dense_name, seeded
from moe_lessons.support import progress


def decoders() -> dict[str, LanguageModel]:
    """Make the models of lesson 04, untrained: an MoE of 16 experts, top-2, and dense models of 1, 2, 4 and 8 times
    its active width."""
    ffns = {"MoE": {"d_ff": 1024, "num_experts": 16, "top_k": 2}}
    ffns |= {dense_name(width): {"d_ff": 2048 * width, "moe_layers": ()} for width in (1, 2, 4, 8)}
    with seeded(0):
        return {
            name: LanguageModel(TransformerConfig(d_model=512, num_layers=2, num_heads=8, num_kv_heads=4, **ffn))
            for name, ffn in ffns.items()
        }


def keep(unit: str, keys: Sequence[str], values: Sequence[float], is_busy: bool = False) -> None:
    """Note figures in the learner's progress. is_busy: whether other programs disturbed their measurement."""
    for key, value in zip(keys, values):
        progress.record("figures", key, value=float(value), unit=unit, is_busy=is_busy)


def measure_missing(*, busy_too: bool = False) -> None:
    """Measure those figures of the answer that the learner's progress lacks, as their lessons do: some seconds.
    busy_too: also those that were measured on a busy machine."""
    width = width_over_size().width[64]  # whose interval is closed
    keep("times", ["05.effective_width"], [width])
    keys = ["04.over_active", "04.over_good"]
    if lacking(*keys) or busy_too and busy_ones(*keys):
        found = measure_speedups(decoders(), (1,))
        speedup = found.frame.set_index("width").speedup
        keep("times", keys, [speedup[1], speedup[4]], found.is_busy)
    narrow, wide = (measured()[key]["value"] for key in keys)
    over = narrow + (wide - narrow) * (width - 1) / (4 - 1)  # a dense step takes longer in proportion to its FFN
    keep("times", ["12.over_matched"], [over], bool(busy_ones(*keys)))
