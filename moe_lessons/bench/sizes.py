"""At which sizes the benchmark measures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moe_lessons.nn import TransformerConfig

PASSES = FORWARD, TRAINING = "forward", "forward + backward"


@dataclass(frozen=True)
class Size:
    """The sizes of one MoE layer, and how many tokens it gets."""

    num_experts: int  # E
    top_k: int  # K
    num_tokens: int  # T
    d_model: int  # D
    d_ff: int  # F

    def __str__(self) -> str:
        return f"E={self.num_experts} K={self.top_k} T={self.num_tokens} D={self.d_model} F={self.d_ff}"


@dataclass(frozen=True)
class Reading:
    """A language model that is trained on batches of B sequences of T tokens."""

    config: TransformerConfig
    num_sequences: int = 32  # B
    num_tokens: int = 64  # T
    hugging_face: bool = True  # whether it is compared with Hugging Face's

    def __str__(self) -> str:
        return f"training step, {name_of(self.config)} B={self.num_sequences} T={self.num_tokens}"


@dataclass(frozen=True)
class Writing:
    """A language model that continues one sequence by N tokens."""

    config: TransformerConfig
    new_tokens: int  # N
    hugging_face: bool = True

    def __str__(self) -> str:
        return f"{self.new_tokens} tokens one by one, {name_of(self.config)}"


def name_of(config: TransformerConfig) -> str:
    c = config
    return f"L={c.num_layers} D={c.d_model} F={c.d_ff} E={c.num_experts} K={c.top_k}"


@dataclass(frozen=True)
class Plan:
    """What a run of the benchmark measures. A line is a pass and sizes of which only one number grows."""

    layers: tuple[Size, ...]  # every way, both passes
    decoding: tuple[Size, ...]  # every way, forward
    lines: tuple[tuple[str, tuple[Size, ...]], ...]  # every dispatch: which is the fastest, which does 'auto' take?
    grid: tuple[tuple[str, tuple[Size, ...]], ...]  # 'auto' against Hugging Face
    growth: tuple[Size, ...]  # 'auto' with more and more experts, both passes
    memory: tuple[Size, ...]  # every way, both kinds of forward
    language: tuple[Reading | Writing, ...]  # a whole model beside its dense twins and Hugging Face's
    seconds: float  # for each comparison, as far as the fewest rounds allow


def line(size: Size, **grows: Sequence[int]) -> tuple[Size, ...]:
    """Copies of `size` in which one number, or several together, grow: line(size, num_tokens=(1, 4, 16))."""
    return tuple(replace(size, **dict(zip(grows, values))) for values in zip(*grows.values()))


COARSE = Size(8, 2, 2048, 256, 512)  # few large experts, as in Mixtral
FINE = Size(64, 8, 2048, 256, 128)  # many small ones, as in OLMoE
PLAYGROUND = Size(8, 2, 256, 16, 4)
SMALL_MODEL = TransformerConfig(d_model=64, d_ff=64)
WIDE_MODEL = TransformerConfig(d_model=128, d_ff=128)
LARGE_MODEL = TransformerConfig(d_model=512, d_ff=1024, num_layers=4, num_heads=8)  # its experts fit into no cache
WIDTHS = {"d_model": (4, 8, 16, 32, 64), "d_ff": (8, 16, 32, 64, 128)}

FULL = Plan(
    layers=(
        Size(8, 1, 256, 16, 8),  # a step of the playground: 'collapse'
        PLAYGROUND,  # 'healthy'
        Size(8, 2, 2048, 64, 128),
        COARSE,
        Size(64, 2, 2048, 128, 128),
        FINE,
    ),
    decoding=line(COARSE, num_tokens=(1, 4, 16)) + line(FINE, num_tokens=(1, 4, 16)),
    lines=(
        (TRAINING, line(Size(8, 2, 256, 4, 8), **WIDTHS)),
        (TRAINING, line(Size(32, 2, 1024, 4, 8), **WIDTHS)),
        (TRAINING, line(Size(8, 2, 1024, 64, 64), num_experts=(4, 8, 16, 32, 64))),
        (FORWARD, line(FINE, num_tokens=(1, 4, 16, 64, 256))),
    ),
    grid=tuple(
        (which, line(Size(num_experts, 2, 64, 256, 128), num_tokens=(64, 256, 1024, 4096)))
        for which, several in ((FORWARD, (8, 32, 128)), (TRAINING, (8, 64)))
        for num_experts in several
    ),
    growth=line(COARSE, num_experts=(8, 16, 32, 64)),
    memory=(COARSE, FINE),
    language=(
        Reading(SMALL_MODEL),
        Reading(WIDE_MODEL),
        Writing(SMALL_MODEL, new_tokens=48),
        Writing(LARGE_MODEL, new_tokens=12),
        Writing(replace(LARGE_MODEL, num_experts=16), new_tokens=12, hugging_face=False),
    ),
    seconds=0.8,
)
QUICK = Plan(
    layers=(PLAYGROUND, replace(COARSE, num_tokens=512)),
    decoding=line(COARSE, num_tokens=(1,)),
    lines=((TRAINING, line(Size(8, 2, 256, 4, 8), **WIDTHS)),),
    grid=((FORWARD, line(Size(8, 2, 64, 256, 128), num_tokens=(64, 1024))),),
    growth=line(Size(8, 2, 1024, 128, 256), num_experts=(8, 16, 32, 64)),
    memory=(COARSE,),
    language=(Reading(SMALL_MODEL, num_sequences=8), Writing(SMALL_MODEL, new_tokens=12)),
    seconds=0.3,
)
