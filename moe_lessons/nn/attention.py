"""Attention with rotary positions, grouped heads and a cache: how a token learns of those before it.

Beside the letters of the package: B sequences of T tokens; H heads for queries, G for keys and values, each of h
numbers; S tokens that are looked at, those in the cache included."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_lessons.support.errors import check_positive_int


class Attention(nn.Module):
    """Each token looks at itself and those before it: softmax(q·kᵀ / √h)·v in each head (arXiv:1706.03762, eq. 1).

    The H heads of the queries are in G groups; each group shares one head of keys and values (arXiv:2305.13245). One
    matrix, `qkv_proj` ((H + 2G)·h, D) with h = D / H, makes queries, keys and values: in this order, head by head.

    Shapes: x (B, T, D) -> (B, T, D). cos_sin: those of the T positions, from `rotary`. extend: takes the new keys and
    values (B, G, T, h) and returns all, (B, G, S, h), as a `KVCache` does.

    >>> attention = Attention(d_model=16, num_heads=4, num_kv_heads=2)
    >>> attention(torch.randn(2, 5, 16), rotary(torch.arange(5), head_dim=4)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(self, d_model: int, num_heads: int, num_kv_heads: int):
        super().__init__()
        check_heads(d_model, num_heads, num_kv_heads)
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = d_model // num_heads
        self.qkv_proj = nn.Linear(d_model, (num_heads + 2 * num_kv_heads) * self.head_dim, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], extend: Callable | None = None) -> Tensor:
        H, G = self.num_heads, self.num_kv_heads
        qkv = self.qkv_proj(x).unflatten(2, (-1, self.head_dim))  # (B, T, H + 2G, h)
        qk, v = qkv.split([H + G, G], dim=2)
        q, k = rotate(qk, *cos_sin).split([H, G], dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, h), (B, G, T, h) twice
        if extend is not None:
            k, v = extend(k, v)  # (B, G, S, h)
        T, S = q.shape[2], k.shape[2]
        mask = None  # one token sees all that there are; where all are new, is_causal says it faster
        if 1 < T < S:
            mask = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)  # True: may be looked at
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=T == S, enable_gqa=True)  # (B, H, T, h)
        return self.out_proj(y.transpose(1, 2).flatten(2))  # (B, T, D)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}"


def check_heads(d_model: int, num_heads: int, num_kv_heads: int) -> None:
    """Raise ValueError unless the heads divide d_model into even parts, and the groups the heads."""
    if check_positive_int("d_model", d_model) % (2 * check_positive_int("num_heads", num_heads)):
        raise ValueError(f"d_model must be a multiple of 2·num_heads ({2 * num_heads}), got {d_model}")
    if num_heads % check_positive_int("num_kv_heads", num_kv_heads):
        raise ValueError(f"num_kv_heads must divide num_heads ({num_heads}), got {num_kv_heads}")


def rotary(positions: Tensor, head_dim: int, theta: float = 10_000.0, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """cos and sin (T, 1, h) of how far `rotate` turns pair i: by position · theta^(-2i/h) (arXiv:2104.09864, eq. 15).
    sin has its sign for the first and for the second number of a pair."""
    precise = torch.promote_types(dtype, torch.float32)  # bfloat16 cannot count beyond 256
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=positions.device).to(precise) / head_dim)  # (h / 2,)
    angles = positions.to(precise)[:, None, None] * frequencies  # (T, 1, h / 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + h/2]) by its angle, as (x[i] + j·x[i + h/2]) · exp(j·angle): x (B, T, heads, h).

    The score q·k of two tokens then depends on how far they are apart, not on where they stand. RoFormer pairs
    neighbours; this is the order of Hugging Face's Llama."""
    partner = x.roll(x.shape[-1] // 2, dims=-1)  # the other number of each pair
    return torch.addcmul(x * cos, partner, sin)


class KVCache:
    """The keys and values of the tokens so far, so that each is computed once: see `LanguageModel.new_cache`.

    There is room for `max_length` tokens in each of `batch_size` (B) sequences; the first `length` places are taken:
    2·L·G·h numbers for a token, in L layers. For decoding under `torch.no_grad()`, not for training."""

    def __init__(self, num_layers, batch_size, num_kv_heads, max_length, head_dim, *, cos_sin, **make):
        shape = (num_layers, check_positive_int("batch_size", batch_size), num_kv_heads, max_length, head_dim)
        try:
            self.keys, self.values = torch.zeros(shape, **make), torch.zeros(shape, **make)  # (L, B, G, max_length, h)
        except (RuntimeError, TypeError) as error:  # no room, or a size of more than 64 bits
            room = f"must leave room in memory for its {max_length} tokens each"
            raise ValueError(f"batch_size {room}, got {batch_size}") from error
        self.batch_size, self.max_length = batch_size, max_length
        self.length = 0
        self.cos_sin = cos_sin

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values (B, G, T, h) of a layer, and return all that it has: (B, G, S, h) each."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    @property
    def nbytes(self) -> int:
        """The bytes that it takes, full or empty."""
        return self.keys.nbytes + self.values.nbytes
