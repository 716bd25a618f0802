"""The planner against what was published of mixtures on many devices."""

from dataclasses import fields

import pandas as pd

from moe_lessons.analysis.counting import TransformerShape
from moe_lessons.analysis.planner import Layout, Plan, plan
from moe_lessons.analysis.roofline import ExpertGroup, ModelSizes
from moe_lessons.support.data import data_path


def _older(d_model: int, layers: int, num_experts: int, top_k: int, expert: int, rest: int) -> tuple[ModelSizes, int]:
    """`layers` of experts, each of so many weights, and `rest` weights that every token uses."""
    group = ExpertGroup(num_experts, top_k, num_experts * expert, expert, expert, True, layers)
    return ModelSizes(layers * group.size + rest, (group,), layers * top_k * expert + rest, 0, cached=()), d_model


def _gshard(num_experts: int, layers: int) -> tuple[ModelSizes, int]:
    """Half encoder, half decoder; every other FFN a mixture; D 1024, F 8192, 16 heads of 128, 32,000 words of English.

    arXiv:2006.16668, section 4.3 and appendix A.2. A token is one of the source with one of the target.
    """
    ffn, attention = 2 * 1024 * 8192, 4 * 1024 * 16 * 128  # a decoder's layer attends twice
    return _older(1024, layers // 2, num_experts, 2, ffn, layers // 2 * (ffn + 3 * attention) + 1024 * 32000)


MODELS = {  # that `published_models` lacks
    "Mixtral 8x22B": TransformerShape(32000, 6144, 56, 48, 8, 128, 16384, num_experts=8, top_k=2),
    "Mixtral 8x22B G8T8": TransformerShape(32000, 6144, 56, 48, 8, 128, 2048, num_experts=64, top_k=8),
    "Qwen2-57B-A14B": TransformerShape(151936, 3584, 28, 28, 4, 128, 2560, num_experts=64, top_k=8, shared_experts=8),
    "GShard 600B": _gshard(2048, 36),
    "GShard 200B": _gshard(2048, 12),
    "GShard 150B": _gshard(512, 36),
    "GShard 37B": _gshard(128, 36),
    # arXiv:2112.06905, section 4 and table 4: 64 layers, half with experts, half with a gated FFN; 128 heads of 128
    "GLaM": _older(8192, 32, 64, 2, 2**29, 32 * 3 * 2**28 + 64 * 4 * 8192 * 16384 + 256000 * 8192),
    # arXiv:2101.03961, table 9: 124 GFLOPs for 512 + 114 tokens; 6 layers with experts for each
    "Switch-Base-128": _older(768, 6, 128, 1, 3 * 768 * 2048, 99_041_534 - 6 * 3 * 768 * 2048),
}

QUANTITIES = {
    "device hours": lambda made, amount: amount / made.tokens_per_second * made.devices / 3600,  # amount: tokens
    "seconds of a step": lambda made, _: made.seconds,
    "seconds of an exchange": lambda made, amount: made.exchange / amount,  # amount: layers
    "tokens a second and device": lambda made, _: made.tokens_per_second / made.devices,
    "FLOP/s of a device": lambda made, _: made.flops / made.seconds,
    "bytes of weights and gradients": lambda made, _: made.weights + made.gradients,
    "bytes of optimizer state": lambda made, _: made.optimizer,
    "bytes of activations": lambda made, _: made.activations,
}


def published_systems() -> pd.DataFrame:
    """What was published of mixtures on many devices, with their layouts; data/README.md has the columns."""
    return pd.read_csv(data_path("published_systems.csv")).fillna({"reason": ""}).convert_dtypes()


def plan_published(row: pd.Series) -> Plan:
    """The plan for a row of `published_systems`; what the row leaves empty is as `plan` has it."""
    given = {f.name: row[f.name] for f in fields(Layout) if f.name in row and pd.notna(row[f.name])}
    return plan(MODELS.get(row.model, row.model), **given)


def check_published() -> pd.DataFrame:
    """The planner against published figures: planned, published, the error in % and, where it is large, the reason.

    Nothing is fitted: one `UTILISATION`, and the links' published rates, for all.
    """
    table = published_systems()
    planned = [QUANTITIES[row.quantity](plan_published(row), row.amount) for _, row in table.iterrows()]
    table = table[["system", "quantity", "published", "reason", "seen", "source"]]
    table.insert(3, "planned", planned)
    table.insert(4, "error_percent", 100 * (table.planned / table.published.astype(float) - 1))
    return table
