"""A decoder-only language model in the style of Mixtral: attention, then a feed-forward block, dense or of experts.

Beside the letters of the package: B sequences of T tokens each, V tokens in the vocabulary, L layers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from moe_lessons.nn.attention import Attention, KVCache, check_heads, rotary
from moe_lessons.nn.ffn import FeedForward
from moe_lessons.nn.moe import MoE
from moe_lessons.nn.routing import ROUTERS, HashRouter, Routing
from moe_lessons.nn.seeding import evaluating
from moe_lessons.support.errors import check_choice, check_number, check_positive_int, check_seed, check_top_k, in_words

COLDEST = 1e-30  # the lowest temperature by which float32 can be divided


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a `LanguageModel`. The tokens are the 256 bytes unless you say otherwise.

    num_kv_heads: see `Attention`. max_positions: the longest sequence.
    moe_layers: the numbers, from 0, of the layers whose feed-forward block is an `MoE`: None is all, () none. The
        others have a `FeedForward` of width d_ff.
    router, shared_d_ff, capacity_factor: see `MoE`. router_std: the router's weight starts at
        N(0, router_std²); None leaves it its start. tied_embedding: the head has the weight of the embedding.

    >>> TransformerConfig(d_model=32, num_heads=4).head_dim
    8
    """

    vocab_size: int = 256
    d_model: int = 64
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 2
    max_positions: int = 256
    d_ff: int = 64
    num_experts: int = 8
    top_k: int = 2
    moe_layers: tuple[int, ...] | None = None
    router: str | Callable[[int, int, int], nn.Module] = "top-k"
    router_std: float | None = None
    shared_d_ff: int = 0
    capacity_factor: float | None = None
    tied_embedding: bool = True
    norm_eps: float = 1e-5

    def __post_init__(self):
        for name in ("vocab_size", "num_layers", "max_positions", "d_ff"):
            check_positive_int(name, getattr(self, name))
        check_heads(self.d_model, self.num_heads, self.num_kv_heads)
        check_top_k(self.top_k, check_positive_int("num_experts", self.num_experts))
        if self.moe_layers is not None:
            listed = isinstance(self.moe_layers, (tuple, list))  # a list where it was read from JSON
            if not listed or not set(self.moe_layers) <= set(range(self.num_layers)):
                raise ValueError(f"moe_layers must be numbers from 0 to {self.num_layers - 1}, got {self.moe_layers!r}")
            object.__setattr__(self, "moe_layers", tuple(self.moe_layers))
        if not callable(self.router):
            check_choice("router", self.router, ROUTERS)
        if self.router_std is not None:
            check_number("router_std", self.router_std, above=True)
        check_number("norm_eps", self.norm_eps)

    @property
    def head_dim(self) -> int:
        """h, the width of one head of the attention."""
        return self.d_model // self.num_heads


class LanguageModel(nn.Module):
    """A model of the next token, at each position: ids (B, T) -> logits (B, T, V) and a `Routing` for each MoE layer.

    x = embed(ids); x = layer(x) for each of the L layers; logits = head(norm(x)). A routing has the tokens of all
    sequences, one sequence after the other. With a cache, ids are those that follow the tokens in it. ValueError for
    ids that are not whole numbers from 0 to V - 1 (on the CPU; elsewhere only their shape is looked at), and for more
    than max_positions, or the cache, has room for.

    >>> logits, routings = LanguageModel(TransformerConfig())(torch.tensor([list(b"What is a mixture of experts?")]))
    >>> logits.shape, len(routings), routings[0].num_tokens
    (torch.Size([1, 29, 256]), 3, 29)
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        if not isinstance(config, TransformerConfig):
            raise ValueError(f"config must be a TransformerConfig, got {in_words(config)}")
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.num_layers))
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        nn.init.normal_(self.embed.weight, std=config.d_model**-0.5)  # a tied head then starts with logits around ±1
        if config.tied_embedding:  # arXiv:1608.05859
            self.head.weight = self.embed.weight

    @property
    def causal(self) -> bool:
        """Return whether no token's logits depend on later tokens: every router is causal, and no capacity is set."""
        parts = list(self.layers.modules())
        return all(getattr(p, "causal", True) and getattr(p, "capacity_factor", None) is None for p in parts)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> tuple[Tensor, list[Routing]]:
        self.check_ids(ids, cache)
        start = 0 if cache is None else cache.length
        end = start + ids.shape[1]
        x = self.embed(ids)  # (B, T, D)
        cos_sin = self._cos_sin(end) if cache is None else [part[start:end] for part in cache.cos_sin]
        routings = []
        for number, layer in enumerate(self.layers):
            x, routing = layer(x, ids, cos_sin, None if cache is None else partial(cache.extend, number))
            routings += [] if routing is None else [routing]
        if cache is not None:
            cache.length = end
        return self.head(self.norm(x)), routings

    def new_cache(self, batch_size: int = 1, max_length: int | None = None) -> KVCache:
        """An empty cache for batch_size sequences of up to max_length tokens (None: max_positions)."""
        config, like = self.config, self.embed.weight
        max_length = config.max_positions if max_length is None else check_positive_int("max_length", max_length)
        if max_length > config.max_positions:
            raise ValueError(f"max_length must be at most max_positions ({config.max_positions}), got {max_length}")
        shape = (config.num_layers, batch_size, config.num_kv_heads, max_length, config.head_dim)
        return KVCache(*shape, cos_sin=self._cos_sin(max_length), device=like.device, dtype=like.dtype)

    def _cos_sin(self, length: int) -> list[Tensor]:
        """cos and sin of `rotary`, written out for all heads (length, H + G, h): products with short rows are slow."""
        config, like = self.config, self.embed.weight
        cos_sin = rotary(torch.arange(length, device=like.device), config.head_dim, dtype=like.dtype)
        return [part.repeat(1, config.num_heads + config.num_kv_heads, 1) for part in cos_sin]

    def generate(
        self, ids: Tensor, max_new_tokens: int, *, temperature=1.0, top_k: int | None = None, seed=0, use_cache=True
    ) -> Tensor:
        """Continue each prompt by N = max_new_tokens tokens: ids (B, T) -> (B, T + N), in eval mode.

        Each is drawn from softmax(logits / temperature) of the `top_k` likeliest tokens (None: of all), the same ones
        for the same seed; temperature 0 is greedy and takes the likeliest. A model that is not `causal` computes the
        whole sequence again for each token, as any does without use_cache. Bad prompts are refused as in forward.

        >>> model = LanguageModel(TransformerConfig())
        >>> model.generate(torch.tensor([list(b"Once upon a time")]), max_new_tokens=4).shape
        torch.Size([1, 20])
        """
        check_positive_int("max_new_tokens", max_new_tokens)
        if 0 < check_number("temperature", temperature) < COLDEST:
            raise ValueError(f"temperature must be 0 or at least {COLDEST}, got {temperature}")
        if top_k is not None and check_positive_int("top_k", top_k) > self.config.vocab_size:
            raise ValueError(f"top_k must be at most vocab_size ({self.config.vocab_size}), got {top_k}")
        self.check_ids(ids)
        length = ids.shape[1] + max_new_tokens
        if length > self.config.max_positions:
            room = f"max_positions ({self.config.max_positions}) less the {ids.shape[1]} tokens of the prompt"
            raise ValueError(f"max_new_tokens must be at most {room}, got {max_new_tokens}")
        generator = torch.Generator(ids.device).manual_seed(check_seed(seed))
        new = ids
        with evaluating(self), torch.inference_mode():  # for one token at a time, a quarter faster than no_grad
            cache = self.new_cache(len(ids), length) if use_cache and self.causal else None
            for _ in range(max_new_tokens):
                logits, _ = self(ids if cache is None else new, cache)  # (B, T, V)
                new = draw(logits[:, -1], temperature, top_k, generator)  # (B, 1)
                ids = torch.cat([ids, new], dim=1)  # (B, T + 1)
        return ids.clone()  # one that training may read again

    def check_ids(self, ids: Tensor, cache: KVCache | None = None) -> None:
        """Raise ValueError for token ids that this model cannot take, or that do not fit into the cache."""
        if not isinstance(ids, Tensor) or ids.dtype not in (torch.int32, torch.int64) or ids.ndim != 2:
            wanted = "a tensor of whole numbers (int32 or int64) of shape (B, T)"
            raise ValueError(f"ids must be {wanted}, got {in_words(ids)}")
        if ids.numel() == 0:
            raise ValueError(f"ids must hold at least one token, got shape {tuple(ids.shape)}")
        if ids.device.type == "cpu":  # elsewhere a look at them would wait for the device
            low, high = (int(value) for value in ids.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(f"ids must be between 0 and {self.config.vocab_size - 1}, got {low} to {high}")
        if not isinstance(cache, KVCache | None):
            raise ValueError(f"cache must be one that new_cache has made, or None, got {in_words(cache)}")
        if cache is None and ids.shape[1] > (limit := self.config.max_positions):
            raise ValueError(f"ids must be sequences of at most max_positions ({limit}) tokens, got {ids.shape[1]}")
        if cache is not None and (len(ids) != cache.batch_size or cache.length + ids.shape[1] > cache.max_length):
            room = f"{cache.batch_size} sequences, {cache.max_length - cache.length} of {cache.max_length} places left"
            raise ValueError(f"ids must fit into the cache ({room}), got {tuple(ids.shape)}")


class Layer(nn.Module):
    """x = x + attention(norm(x)); x = x + ffn(norm(x)): (B, T, D) -> (B, T, D), and a `Routing` if `ffn` gives one.

    norm is x / √(mean(x²) + norm_eps) · weight (arXiv:1910.07467, eq. 4). `ffn` may be any module."""

    def __init__(self, config: TransformerConfig, number: int):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config.d_model, config.num_heads, config.num_kv_heads)
        self.ffn_norm = nn.RMSNorm(config.d_model, config.norm_eps)
        if config.moe_layers is None or number in config.moe_layers:
            self.ffn = make_moe(config, number)
        else:
            self.ffn = FeedForward(config.d_model, config.d_ff)

    def forward(self, x: Tensor, ids: Tensor, cos_sin: tuple[Tensor, Tensor], extend: Callable | None = None):
        x = x + self.attention(self.attention_norm(x), cos_sin, extend)
        normed = self.ffn_norm(x)
        out = self.ffn(normed, ids) if isinstance(self.ffn, MoE) else self.ffn(normed)
        y, routing = out if isinstance(out, tuple) else (out, None)
        return x + y, routing


def make_moe(config: TransformerConfig, number: int) -> MoE:
    """The mixture of experts of layer `number`."""
    make = config.router if callable(config.router) else ROUTERS[config.router]
    if make is HashRouter:  # another table in each layer
        router = HashRouter(config.num_experts, config.vocab_size, config.top_k, seed=number)
    else:
        router = make(config.d_model, config.num_experts, config.top_k)
    if config.router_std is not None:
        if getattr(router, "weight", None) is None:
            raise ValueError(f"router_std must be None where the router has no weight, got {config.router_std}")
        nn.init.normal_(router.weight, std=config.router_std)
    rest = {name: getattr(config, name) for name in ("shared_d_ff", "capacity_factor")}
    return MoE(config.d_model, config.d_ff, config.num_experts, config.top_k, router=router, **rest)


def draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """One token for each row of logits (B, V), as `LanguageModel.generate` says: (B, 1)."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    values, tokens = logits.float().topk(top_k or logits.shape[1], dim=-1)  # (B, top_k), likeliest first
    probs = ((values - values[:, :1]) / temperature).softmax(dim=-1)  # less the largest: no temperature overflows
    return tokens.gather(1, probs.multinomial(1, generator=generator))
