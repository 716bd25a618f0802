"""The cost of a model: total parameters, active parameters of a token, and FLOPs (multiplies and adds)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from torch import nn

from moe_lessons.nn import SoftMoE, is_moe
from moe_lessons.support.errors import check_count, check_number, check_positive_int, check_top_k


@dataclass(frozen=True)
class ParameterCount:
    """All parameters (`total`), which memory must hold, and those that one token uses (`active`)."""

    total: int
    active: int


def count_parameters(module: nn.Module) -> ParameterCount:
    """Count any module. Of the experts of a mixture (see `nn.is_moe`) a token uses top_k in num_experts, of all else
    everything. A weight that is shared is counted once.

    >>> from moe_lessons.nn import MoE
    >>> count_parameters(MoE(d_model=4, d_ff=16, num_experts=8, top_k=2))
    ParameterCount(total=1568, active=416)
    """
    sizes = {id(parameter): parameter.numel() for parameter in module.parameters()}
    return ParameterCount(sum(sizes.values()), round(used_size(module, sizes, lambda moe: moe.top_k)))


def flops_per_token(module: nn.Module, training: bool = False) -> int:
    """Count the FLOPs of the matrix products for one token: a multiply and an add for each active weight in a matrix;
    with `training` 3 × as many: backward makes two products of the same size, of a weight that is frozen one. All else
    is left out, attention scores too (see `TransformerShape.flops_per_token`). ValueError for a `SoftMoE`, which has no
    cost for each token."""
    if any(isinstance(part, SoftMoE) for part in module.modules()):
        raise ValueError("module must have a cost for each token, got a SoftMoE, whose cost is one for each slot")
    sizes = {}
    for part in module.modules():
        weights = [] if isinstance(part, nn.Embedding) else list(part.parameters(recurse=False))
        stacked = any(weight.ndim == 3 for weight in weights)  # of E experts: then two dimensions are E biases
        for weight in weights:
            if weight.ndim >= (3 if stacked else 2):
                sizes[id(weight)] = weight.numel() * (2 + weight.requires_grad if training else 1)  # products
    return 2 * round(used_size(module, sizes, lambda moe: moe.top_k))


def used_size(module: nn.Module, sizes: Mapping[int, int], experts_used: Callable[[nn.Module], float]) -> float:
    """Sum the sizes of weights, given by their id, of which a mixture uses the share `experts_used`(moe) / E."""
    used = sum(sizes.values())
    for moe in module.modules():
        if is_moe(moe):
            routed = sum(sizes.get(id(weight), 0) for weight in moe.experts.parameters())
            used -= routed * (1 - experts_used(moe) / moe.num_experts)
        elif all(hasattr(moe, name) for name in ("num_experts", "top_k", "router")):
            raise ValueError(f"module must keep its experts in an attribute named experts, got {type(moe).__name__}")
    return used


@dataclass(frozen=True)
class TransformerShape:
    """The sizes of a decoder-only transformer in the style of Mixtral (arXiv:2401.04088, table 1).

    Every layer has attention with grouped key/value heads and one FFN of width d_ff or, where num_experts is above 1, a
    router and num_experts of them. `shared_experts` more serve every token. An FFN has three matrices (SwiGLU). No
    biases; two norms a layer and one at the end.

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

    def __post_init__(self) -> None:
        for field in fields(self)[:8]:  # vocab_size to num_experts
            check_positive_int(field.name, getattr(self, field.name))
        check_top_k(self.top_k, self.num_experts)
        check_count("shared_experts", self.shared_experts)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads ({self.num_heads}), got {self.num_kv_heads}")

    def parameters(self) -> dict[str, ParameterCount]:
        """Say where the parameters are. A dense FFN stands under 'experts': it is one expert, and always used."""
        D, L = self.d_model, self.num_layers
        expert = 3 * L * D * self.d_ff  # one in each layer
        sizes = {
            "embedding": self.vocab_size * D,
            "attention": 2 * L * D * self.head_dim * (self.num_heads + self.num_kv_heads),  # query, output; key, value
            "router": L * D * self.num_experts if self.num_experts > 1 else 0,
            "experts": self.num_experts * expert,
            "shared experts": self.shared_experts * expert,
            "norms": (2 * L + 1) * D,
            "head": 0 if self.tied_embedding else self.vocab_size * D,
        }
        idle = {"experts": (self.num_experts - self.top_k) * expert}
        return {name: ParameterCount(size, size - idle.get(name, 0)) for name, size in sizes.items()}

    @property
    def count(self) -> ParameterCount:
        parts = self.parameters().values()
        return ParameterCount(sum(part.total for part in parts), sum(part.active for part in parts))

    def flops_per_token(self, context_length: int = 0) -> int:
        """Count the FLOPs of one token's forward pass: 2 for each active weight in a matrix, and for each layer, head
        and token of the context 2·head_dim for q·k, and as much for the values."""
        check_number("context_length", context_length)
        parts = self.parameters()
        layers = sum(parts[name].active for name in ("attention", "router", "experts", "shared experts"))
        head = self.vocab_size * self.d_model  # a product even where the weights are those of the embedding
        return 2 * (layers + head) + 4 * self.num_layers * self.num_heads * self.head_dim * context_length


# Published configurations. OLMoE has 65,536 parameters more than its shape (norms of queries and keys), and
# Qwen1.5-MoE 196,608 (biases of the attention, a gate on the shared experts).
MODEL_SHAPES: dict[str, TransformerShape] = {
    "Mixtral 8x7B": TransformerShape(32000, 4096, 32, 32, 8, 128, 14336, num_experts=8, top_k=2),
    "Mistral 7B (dense)": TransformerShape(32000, 4096, 32, 32, 8, 128, 14336),
    "OLMoE 1B-7B": TransformerShape(50304, 2048, 16, 16, 16, 128, 1024, num_experts=64, top_k=8),
    "Qwen1.5-MoE": TransformerShape(151936, 2048, 24, 16, 16, 128, 1408, num_experts=60, top_k=4, shared_experts=4),
}
