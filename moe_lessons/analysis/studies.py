"""The studies of the stored sweeps (data/results): small language models by their names, and what they learn."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from moe_lessons.nn import SAME_ACTIVE, SAME_TOTAL, LanguageModel, TransformerConfig, dense_baseline
from moe_lessons.nn.seeding import seeded
from moe_lessons.tasks import Facts, TextTask
from moe_lessons.training import settings


@dataclass(frozen=True)
class Study:
    """A task, and the models that learn it."""

    task: dict  # the arguments of a `TextTask`, but for its context, or of `Facts`
    sizes: dict  # of a `TransformerConfig`; d_ff (F) is that of one expert
    num_experts: int = 8  # of the mixture that the dense baselines and the variants are of
    variants: Mapping[str, dict] = field(default_factory=dict)  # other mixtures, by what is not as in `sizes`

    @cached_property
    def text(self) -> TextTask:
        return TextTask(**self.task, context=self.sizes["max_positions"])

    def make_task(self, seed: int) -> TextTask | Facts:
        """Make what is learned: one text for all seeds, but for each seed its own facts."""
        return Facts(**self.task, seed=seed) if "num_entries" in self.task else self.text

    def make_model(self, name: str, seed: int = 0) -> LanguageModel:
        """Make a model by its name: a dense baseline, 'MoE, E=8', 'dense, F=96' or one of the variants."""
        kind, _, number = name.partition("=")
        own = {"num_experts": int(number or self.num_experts)} | self.variants.get(name, {})
        if kind == "dense, F":
            own = {"d_ff": int(number), "moe_layers": ()}
        with seeded(seed):
            model = LanguageModel(TransformerConfig(**self.sizes | own))
        match = {SAME_ACTIVE: "flops", SAME_TOTAL: "params"}.get(name)
        return dense_baseline(model, match, seed) if match else model


TEXT = Study(
    {"domains": ["english", "code", "json", "greek"]},  # not those in which chance decides much
    {"d_model": 64, "num_layers": 2, "d_ff": 32, "top_k": 2, "max_positions": 64},
)
FACTS_SIZES = ("d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff", "top_k", "max_positions", "vocab_size")
FACTS = Study({"num_entries": 2000}, {n: getattr(settings.FACTS_CONFIG, n) for n in FACTS_SIZES}, num_experts=16)
LARGE_BOOK = replace(FACTS, task={"num_entries": 8000})  # more than the smallest model can hold
# Text that comes with Python, for the pair of models of the course: 16 experts, 2 of them for a token
REAL_SIZES = {"d_model": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "d_ff": 64, "top_k": 2}
CONTROLS = {"frozen router": {"router": "frozen"}, "hash routing": {"router": "hash"}, "no auxiliary loss": {}}
SOURCE, PROSE = (
    Study({"domains": [text]}, REAL_SIZES | {"max_positions": 64}, num_experts=16, variants=CONTROLS)
    for text in ("source", "prose")
)
