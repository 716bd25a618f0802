"""See what the routers of a model decide while it runs, by `Lens`."""

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from moe_lessons.analysis import balance_by_layer
from moe_lessons.hub.routers import Mixture, detached, find_mixtures
from moe_lessons.nn import Routing, load_balancing_loss
from moe_lessons.nn.balancing import rank_within
from moe_lessons.support.errors import in_words

ADVICE = "count all tokens, by count_padding=True"
NOTHING = (
    "the lens has seen no router at work: call the model itself within it. torch.compile, and kernels that replace a "
    "whole block (gpt-oss in MXFP4), go past its hooks: load the model without them, as by Mxfp4Config(dequantize=True)"
)


class Lens:
    """Within it, each call of `model` leaves a `Routing` for each of its MoE layers.

    model: one of ours, or one of Hugging Face whose blocks call their experts with the choices of a router, as those of
        Mixtral and OLMoE do; with or without adapters (LoRA), in eval or in training, on any device. It computes bit by
        bit what it computes without: the hooks only read, and are gone when the lens is left. What a backward pass
        computes again (gradient checkpointing) is no call of the model.
    count_padding: whether tokens count whose attention_mask is 0.

    layers: the names of the layers, in the order in which they ran; one that ran twice in a call is there twice.
    calls: layer -> `Routing`, for each call, the oldest first: T·(E + 2·K) numbers a layer. `generate` makes a call for
        each new token.
    routings: layer -> the `Routing` of the tokens of all these calls, joined. A lens that is entered again starts anew.

    router_probs are the router's scores over their sum: softmax, sigmoid or √softplus.

    >>> from moe_lessons.nn import LanguageModel, TransformerConfig
    >>> model, ids = LanguageModel(TransformerConfig()), torch.tensor([list(b"What is a mixture of experts?")])
    >>> with Lens(model) as lens:
    ...     logits, _ = model(ids)
    >>> lens.layers
    ('layers.0.ffn', 'layers.1.ffn', 'layers.2.ffn')
    >>> int(lens.routings["layers.0.ffn"].tokens_per_expert.sum())  # 29 tokens, 2 experts each
    58

    To be drawn as ours: `plots.layer_loads(list(lens.routings.values()))`.

    Raises ValueError for a model without experts, or whose router or experts cannot be read; in a call of the model for
    a mask that does not tell padding; and when asked before anything was seen.
    """

    def __init__(self, model: nn.Module, count_padding: bool = False):
        self.mixtures, self.model, self.count_padding = find_mixtures(model), model, count_padding
        self._arguments = list(inspect.signature(model.forward).parameters)
        self._calls: list[Call] = []
        self._open: Call | None = None  # the one that runs
        self._handles: list = []

    def __enter__(self) -> "Lens":
        if self._handles:
            raise ValueError("lens must be left before it is entered again, got one that is open")
        self._calls.clear()
        add = self._handles.append
        add(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        for name, mixture in self.mixtures.items():
            add(mixture.router.register_forward_hook(partial(self._decided, name, mixture)))
            if mixture.experts is not None:
                add(mixture.experts.register_forward_pre_hook(partial(self._called, name, mixture), with_kwargs=True))
        add(self.model.register_forward_hook(self._end, always_call=True))
        return self

    def __exit__(self, kind: type | None = None, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._open = None
        if kind is None and not any(call.seen for call in self._calls):
            warnings.warn(NOTHING, stacklevel=2)

    def _begin(self, module, args: tuple, kwargs: dict) -> None:
        given = {} if self.count_padding else dict(zip(self._arguments, args)) | kwargs
        mask = given.get("attention_mask")
        if not (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2 and len(mask))):
            wanted = f"(B, T), with 0 for padding, got {in_words(mask)}"
            raise ValueError(f"attention_mask must be {wanted}: give that one, or {ADVICE}")
        self._open = Call(self.mixtures, mask)

    def _end(self, module, args: tuple, output) -> None:
        if self._open is not None and self._open.notes and output is not None:  # None where the call has failed
            self._calls.append(self._open)
        self._open = None

    def _decided(self, name: str, mixture: Mixture, module, args: tuple, output) -> None:
        if self._open is not None:
            self._open.notes.append((name, "output", detached(mixture.read(output))))

    def _called(self, name: str, mixture: Mixture, module, args: tuple, kwargs: dict) -> None:
        if self._open is not None:
            topk = tuple(kwargs[key] if key in kwargs else args[at] for at, key in enumerate(mixture.keys, start=1))
            self._open.notes.append((name, "topk", detached(topk)))

    @property
    def calls(self) -> list[dict[str, Routing]]:
        return [call.routings for call in self._calls if call.seen]

    @property
    def routings(self) -> dict[str, Routing]:
        if not (calls := self.calls):
            raise ValueError(NOTHING)
        return {name: joined([call[name] for call in calls if name in call]) for name in self.layers}

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for call in self._calls for name in call.seen)) or tuple(self.mixtures)

    def balance(self) -> pd.DataFrame:
        """`analysis.balance_by_layer` of all calls: a row for each layer, by its name."""
        return balance_by_layer(list(self.routings.values())).set_axis(list(self.layers))

    def pooled_loss(self) -> float:
        """The balancing loss of all layers' tokens at once: Hugging Face's own loss, over K. Two layers that have
        collapsed onto different experts look balanced in it."""
        return load_balancing_loss(joined(list(self.routings.values()))).item()


@dataclass
class Call:
    """The notes of one call of the model, in their order: the layer, 'output' of its router or 'topk', the value."""

    mixtures: dict[str, Mixture]
    mask: Tensor | None  # (B, T), longer where a cache holds tokens
    notes: list[tuple] = field(default_factory=list)

    @cached_property
    def seen(self) -> dict[str, dict]:
        """layer -> what was noted of it. One that ran once more in the call has a name for each turn."""
        layers: dict[str, dict] = {}
        for name, part, value in self.notes:
            key, turn = name, 1
            while part in layers.get(key, ()):
                turn += 1
                key = f"{name} (turn {turn})"
            layers.setdefault(key, {"name": name})[part] = value
        alone = {name for name, mixture in self.mixtures.items() if mixture.experts is None}  # the router tells all
        return {k: own for k, own in layers.items() if "output" in own and ("topk" in own or own["name"] in alone)}

    @cached_property
    def routings(self) -> dict[str, Routing]:
        return {key: self._routing(key, **own) for key, own in self.seen.items()}

    def _routing(self, key: str, name: str, output, topk: tuple[Tensor, Tensor] | None = None) -> Routing:
        routing = self.mixtures[name].make(output, topk)
        if (mask := self.mask) is None:
            return routing
        (sequences, length), num_tokens = mask.shape, routing.num_tokens
        if num_tokens % sequences or num_tokens > sequences * length:
            wanted = f"(B, T), for the {num_tokens} tokens of {key}, got {tuple(mask.shape)}"
            raise ValueError(f"attention_mask must be {wanted}: {ADVICE}")
        counts = mask[:, length - num_tokens // sequences :].reshape(-1) != 0  # (T,)
        return routing if bool(counts.all()) else routing.of_tokens(counts.nonzero()[:, 0].to(routing.token_idx.device))


def joined(routings: Sequence[Routing]) -> Routing:
    """One `Routing` of the tokens of all, first choices first. ValueError where they differ in their experts."""
    if len(sizes := {routing.num_experts for routing in routings}) > 1:
        raise ValueError(f"routings must have one number of experts to be joined, got {sorted(sizes)}")
    if len(routings) == 1:
        return routings[0]
    top_ks, starts = {routing.top_k for routing in routings}, np.cumsum([0, *(r.num_tokens for r in routings)]).tolist()
    device, columns = routings[0].token_idx.device, {}  # layers may be on several
    for name in (own.name for own in fields(Routing) if own.name != "top_k"):
        parts = [getattr(routing, name).to(device) for routing in routings]
        if name.endswith("token_idx"):
            parts = [idx + start for idx, start in zip(parts, starts)]
        columns[name] = torch.cat(parts)
    both = Routing(**columns)
    order = rank_within(both.token_idx).argsort(stable=True)  # 0 for a token's first choice
    by_choice = {name: getattr(both, name)[order] for name in ("token_idx", "expert_idx", "weight")}
    return replace(both, **by_choice, top_k=top_ks.pop() if len(top_ks) == 1 else None)
