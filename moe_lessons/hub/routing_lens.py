"""See what the routers of a model decide while it runs, by `Lens`."""

import inspect
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from moe_lessons.hub.routers import Mixture, detached, find_mixtures, of_experts
from moe_lessons.nn import Routing
from moe_lessons.nn.balancing import rank_within

NOTHING = (
    "the lens has seen no router at work: call the model itself within it. torch.compile, and kernels that replace a "
    "whole block (gpt-oss in MXFP4), go past its hooks: load the model without them, as by Mxfp4Config(dequantize=True)"
)


class Lens:
    """Within it, `model` leaves a `Routing` for each of its MoE layers.

    model: one of ours, or one of Hugging Face whose blocks call their experts with the choices of a router, as those of
        Mixtral and OLMoE do; with or without adapters (LoRA), in eval or in training, on any device. It computes bit by
        bit what it computes without: the hooks only read, and are gone when the lens is left. What a backward pass
        computes again (gradient checkpointing) is not seen.

    routings: layer -> the `Routing` of the tokens of all its calls, joined, the oldest first: T·(E + 2·K) numbers.
        Tokens whose attention_mask (B, T) is 0 do not count; with a mask of another form all do. A lens that is entered
        again starts anew.

    router_probs are the router's scores over their sum: softmax, sigmoid or √softplus.

    >>> from moe_lessons.nn import LanguageModel, TransformerConfig
    >>> model, ids = LanguageModel(TransformerConfig()), torch.tensor([list(b"What is a mixture of experts?")])
    >>> with Lens(model) as lens:
    ...     logits, _ = model(ids)
    >>> list(lens.routings)
    ['layers.0.ffn', 'layers.1.ffn', 'layers.2.ffn']
    >>> int(lens.routings["layers.0.ffn"].tokens_per_expert.sum())  # 29 tokens, 2 experts each
    58

    Raises ValueError for a model without experts, or whose router or experts cannot be read; and when asked before
    anything was seen.
    """

    def __init__(self, model: nn.Module):
        self.mixtures, self.model = find_mixtures(model), model
        self._arguments = list(inspect.signature(model.forward).parameters)
        self._seen: dict[str, list[Routing]] = {}
        self._outputs: dict | None = None  # of the routers whose experts are still to be called; None: no call runs
        self._mask: Tensor | None = None  # (B, T) of this call, longer where a cache holds tokens
        self._handles: list = []

    def __enter__(self) -> "Lens":
        if self._handles:
            raise ValueError("lens must be left before it is entered again, got one that is open")
        self._seen.clear()
        add = self._handles.append
        add(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        for name, mixture in self.mixtures.items():
            add(mixture.router.register_forward_hook(partial(self._decided, name, mixture)))
            if mixture.experts is not None:
                add(mixture.experts.register_forward_pre_hook(partial(self._called, name, mixture), with_kwargs=True))
        add(self.model.register_forward_hook(self._end, always_call=True))
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._outputs = None

    def _begin(self, module, args: tuple, kwargs: dict) -> None:
        mask = (dict(zip(self._arguments, args)) | kwargs).get("attention_mask")
        self._outputs = {}
        self._mask = mask if getattr(mask, "ndim", 0) == 2 else None

    def _end(self, module, args: tuple, output) -> None:
        self._outputs = None

    def _decided(self, name: str, mixture: Mixture, module, args: tuple, output) -> None:
        if self._outputs is not None:
            self._outputs[name] = detached(mixture.read(output))
            if mixture.experts is None:  # the router tells all
                self._keep(name, self._outputs.pop(name))

    def _called(self, name: str, mixture: Mixture, module, args: tuple, kwargs: dict) -> None:
        if self._outputs is not None and name in self._outputs:
            topk = tuple(kwargs[key] if key in kwargs else args[at] for at, key in enumerate(mixture.keys, start=1))
            self._keep(name, of_experts(self._outputs.pop(name), detached(topk)))

    def _keep(self, name: str, routing: Routing) -> None:
        if (mask := self._mask) is not None:
            length = routing.num_tokens // max(len(mask), 1)  # T of a call, without what a cache holds
            counts = mask[:, mask.shape[1] - length :].reshape(-1) != 0
            if len(counts) == routing.num_tokens and not bool(counts.all()):
                routing = routing.of_tokens(counts.nonzero()[:, 0].to(routing.token_idx.device))
        self._seen.setdefault(name, []).append(routing)

    @property
    def routings(self) -> dict[str, Routing]:
        if not self._seen:
            raise ValueError(NOTHING)
        return {name: joined(parts) for name, parts in self._seen.items()}


def joined(routings: Sequence[Routing]) -> Routing:
    """One `Routing` of the tokens of all, which are of one layer, or of layers alike; first choices first."""
    if len(routings) == 1:
        return routings[0]
    starts = np.cumsum([0, *(routing.num_tokens for routing in routings)]).tolist()
    columns = {}
    for name in (field.name for field in fields(Routing) if field.name != "top_k"):
        parts = [getattr(routing, name) for routing in routings]
        columns[name] = torch.cat([idx + start for idx, start in zip(parts, starts)] if "token_idx" in name else parts)
    both = Routing(**columns, top_k=routings[0].top_k)
    order = rank_within(both.token_idx).argsort(stable=True)  # 0 for a token's first choice
    return replace(both, **{name: getattr(both, name)[order] for name in ("token_idx", "expert_idx", "weight")})
