"""What a model costs: parameters in memory, parameters at work for a token, and FLOPs.

A FLOP is a floating-point operation: a multiply or an add.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

import pandas as pd
from torch import nn

from moe_lessons.datafiles import data_path
from moe_lessons.errors import check_choice, check_count, check_number, check_positive_int, check_top_k
from moe_lessons.nn import SoftMoE


@dataclass(frozen=True)
class ParameterCount:
    """`total`: all parameters, what memory must hold. `active`: those that one token uses."""

    total: int
    active: int

    def __add__(self, other: "ParameterCount") -> "ParameterCount":
        return ParameterCount(self.total + other.total, self.active + other.active)


# --- counting a module -----------------------------------------------------------------------------------


def count_parameters(module: nn.Module) -> ParameterCount:
    """Count any module: an `MoE`, a model that contains some, or a learner's class that works as `MoE` does.

    A mixture is known by its attributes `num_experts`, `top_k` and `experts`. Of its experts a token uses
    top_k in num_experts; of everything else, the router included, all. A weight that is shared is counted
    once. Raises ValueError for a mixture that does not keep its experts in `experts`.

    >>> from moe_lessons.nn import MoE
    >>> count_parameters(MoE(d_model=4, d_ff=16, num_experts=8, top_k=2))
    ParameterCount(total=1568, active=416)
    """
    return _count(module, module.parameters())


def flops_per_token(module: nn.Module, training: bool = False) -> int:
    """FLOPs of the matrix products for one token: a multiply and an add for each active weight in a matrix.

    With `training`, forward and backward: 3 × the forward, since the backward makes two products of the
    same size, one for the gradient of the weight and one for that of the input. The experts run as by
    dispatch 'loop', each on its own tokens, and no token is dropped.

    Left out: activations, norms, softmax, top-k, biases, the embedding look-up (no product), attention
    scores (no weights: see `TransformerShape.flops_per_token`), and the optimizer. Counted though not
    always computed: the gradient of the input of the first layer, and the noise weight of a router in
    eval mode. Raises ValueError for a `SoftMoE`, whose experts work on slots: what a token costs depends on
    how many tokens share them.
    """
    if any(isinstance(part, SoftMoE) for part in module.modules()):
        raise ValueError("module must have a cost for each token, got a SoftMoE, whose cost is one for each slot")
    return (6 if training else 2) * _count(module, _matrices(module)).active


def _count(module: nn.Module, parameters: Iterable[nn.Parameter]) -> ParameterCount:
    sizes = {id(parameter): parameter.numel() for parameter in parameters}
    idle = 0
    for moe in filter(_is_mixture, module.modules()):
        routed = sum(sizes.get(id(parameter), 0) for parameter in moe.experts.parameters())
        idle += routed * (moe.num_experts - moe.top_k) // moe.num_experts
    total = sum(sizes.values())
    return ParameterCount(total, total - idle)


def _is_mixture(module: nn.Module) -> bool:
    if not (hasattr(module, "num_experts") and hasattr(module, "top_k")):
        return False
    if hasattr(module, "router") and not hasattr(module, "experts"):
        name = type(module).__name__
        raise ValueError(f"module must keep its experts in an attribute named experts, got {name} without one")
    return hasattr(module, "experts")  # a router alone has num_experts and top_k too


def _matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """The weights that take part in a matrix product: not biases, not scales of a norm, not embeddings."""
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            continue
        own = list(part.parameters(recurse=False))
        stacked = any(parameter.ndim == 3 for parameter in own)  # then a matrix of two dimensions is E biases
        yield from (parameter for parameter in own if parameter.ndim >= (3 if stacked else 2))


# --- counting from a configuration -----------------------------------------------------------------------


@dataclass(frozen=True)
class TransformerShape:
    """The sizes of a decoder-only transformer in the style of Mixtral (arXiv:2401.04088, table 1).

    Every layer has attention with grouped key/value heads and a feed-forward block: one FFN where
    num_experts is 1, else a router and num_experts FFNs of width d_ff, of which a token uses top_k.
    `shared_experts` more FFNs of the same width serve every token. No biases; two norms a layer and one
    at the end, each a vector of scales.

    gated: three matrices for each FFN (SwiGLU: gate, up, down) instead of two.
    tied_embedding: the head uses the weights of the embedding.

    Raises ValueError for a size below 1 and for sizes that do not fit each other.

    >>> TransformerShape(32000, 4096, 32, 32, 8, 128, 14336, num_experts=8, top_k=2).count
    ParameterCount(total=46702792704, active=12879925248)
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    num_experts: int = 1
    top_k: int = 1
    shared_experts: int = 0
    tied_embedding: bool = False
    gated: bool = True

    def __post_init__(self) -> None:
        for field in fields(self)[:8]:  # vocab_size to num_experts
            check_positive_int(field.name, getattr(self, field.name))
        check_top_k(self.top_k, self.num_experts)
        check_count("shared_experts", self.shared_experts)
        if self.num_heads % self.num_kv_heads:
            heads = f"num_heads ({self.num_heads})"
            raise ValueError(f"num_kv_heads must divide {heads}, got {self.num_kv_heads}")

    @property
    def expert_parameters(self) -> int:
        """The parameters of one FFN: 3·D·F with SwiGLU, 2·D·F without."""
        return (3 if self.gated else 2) * self.d_model * self.d_ff

    def parameters(self) -> dict[str, ParameterCount]:
        """Where the parameters are. A dense FFN stands under 'experts': it is one expert, and always used."""
        D, L = self.d_model, self.num_layers
        vocabulary = self.vocab_size * D
        heads = 2 * self.num_heads + 2 * self.num_kv_heads  # query and output, key and value
        attention = L * D * self.head_dim * heads
        router = L * D * self.num_experts if self.num_experts > 1 else 0
        expert = L * self.expert_parameters  # one expert in each layer
        shared = self.shared_experts * expert
        norms = (2 * L + 1) * D
        head = 0 if self.tied_embedding else vocabulary
        return {
            "embedding": ParameterCount(vocabulary, vocabulary),
            "attention": ParameterCount(attention, attention),
            "router": ParameterCount(router, router),
            "experts": ParameterCount(self.num_experts * expert, self.top_k * expert),
            "shared experts": ParameterCount(shared, shared),
            "norms": ParameterCount(norms, norms),
            "head": ParameterCount(head, head),
        }

    @property
    def count(self) -> ParameterCount:
        """All parts together."""
        return sum(self.parameters().values(), ParameterCount(0, 0))

    def flops_per_token(self, context_length: int = 0) -> int:
        """FLOPs of one token's forward pass with attention over `context_length` tokens.

        2 for each active weight in a matrix: all but the norms and, as a look-up is no product, the
        embedding. Then, for each layer, head and token of the context, 2·head_dim for the score q·k and
        as much for adding up the values. A context_length of 0 leaves the second part out.
        """
        check_number("context_length", context_length)
        parts = self.parameters()
        head = self.vocab_size * self.d_model  # a product even where the weights are those of the embedding
        layers = sum(parts[name].active for name in ("attention", "router", "experts", "shared experts"))
        return 2 * (layers + head) + 4 * self.num_layers * self.num_heads * self.head_dim * context_length

    def dense_twin(self, match: str = "active") -> "TransformerShape":
        """The same model with dense FFNs as wide as the experts that a token uses, or as all ('total')."""
        used = check_choice("match", match, ("active", "total")) == "active"
        width = ((self.top_k if used else self.num_experts) + self.shared_experts) * self.d_ff
        return replace(self, d_ff=width, num_experts=1, top_k=1, shared_experts=0)

    def memory_gb(self, bytes_per_parameter: float = 2) -> float:
        """Gigabytes (10⁹ bytes) for all parameters and nothing else; 2 bytes for each is bfloat16."""
        return self.count.total * check_number("bytes_per_parameter", bytes_per_parameter, above=True) / 1e9

    def kv_bytes(self, context_length: int, bytes_per_number: float = 2) -> float:
        """Bytes of the keys and values of one sequence: 2·num_kv_heads·head_dim numbers for each layer and token."""
        check_number("context_length", context_length)
        numbers = 2 * self.num_layers * self.num_kv_heads * self.head_dim * context_length
        return numbers * check_number("bytes_per_number", bytes_per_number, above=True)


# Published configurations. OLMoE has 65,536 parameters more than its shape (norms of queries and keys), and
# Qwen1.5-MoE 196,608 (biases of the attention, a gate on the shared experts).
MODEL_SHAPES: dict[str, TransformerShape] = {
    "Mixtral 8x7B": TransformerShape(32000, 4096, 32, 32, 8, 128, 14336, num_experts=8, top_k=2),
    "Mistral 7B (dense)": TransformerShape(32000, 4096, 32, 32, 8, 128, 14336),
    "OLMoE 1B-7B": TransformerShape(50304, 2048, 16, 16, 16, 128, 1024, num_experts=64, top_k=8),
    "Qwen1.5-MoE": TransformerShape(151936, 2048, 24, 16, 16, 128, 1408, num_experts=60, top_k=4, shared_experts=4),
}


# --- published models ------------------------------------------------------------------------------------


def published_models() -> pd.DataFrame:
    """Published mixtures of experts, largest total first; data/README.md says what is counted and how."""
    frame = pd.read_csv(data_path("published_models.csv")).fillna({"note": ""})
    return frame.sort_values("total_params", ascending=False, ignore_index=True)
