"""Where the routers of a Hugging Face model are, and how each is read: by structure, not by a list of names.

A mixture is a module with a child, its experts, whose `forward` takes (hidden states, indices (T, K), weights (T, K)):
what they are called with is what is carried out. The logits come from the router beside them, which the model itself
declares for `output_router_logits`. Others are `SPECIAL`. Two of transformers 5.24 call no module with their choices
and cannot be read: doge, whose experts are rows of a table, and vitpose_backbone, which has no router."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from moe_lessons.nn import Routing, is_moe

signature = cache(inspect.signature)  # which is slow
INDICES, WEIGHTS = ("top_k_index", "router_indices"), ("top_k_weights", "routing_weights")  # two names in use for each


@dataclass(frozen=True)
class Mixture:
    """The router of a layer, how its output is `read`, its experts (None where the router tells all) with the names of
    their second and third argument, and `make`: (what was read, the two arguments) -> `Routing`."""

    router: nn.Module
    read: Callable
    make: Callable[..., Routing]
    experts: nn.Module | None = None
    keys: tuple[str, ...] = ()


def find_mixtures(model: nn.Module) -> dict[str, Mixture]:
    """The mixtures of experts within a model, by name. ValueError where there is none, or one that cannot be read."""
    declared, named = declared_routers(model), dict(model.named_modules())
    found = {name: made for name, module in named.items() if (made := mixture_of(name, module, declared))}
    if found:
        return found
    closed = [type(module).__name__ for name, module in named.items() if name.rpartition(".")[2] == "experts"]
    why = "which has none: it is dense, or weighs its experts itself, as doge does"
    if closed:
        why = f"whose {closed[0]} are not: load it without quantisation or kernels, in transformers' own class"
    wanted = f"have experts that are called with the choices of a router, got {type(model).__name__}, {why}"
    raise ValueError(f"model must {wanted}")


def mixture_of(name: str, module: nn.Module, declared: dict[type, int]) -> Mixture | None:
    """The `Mixture` of a module that is one, else None. declared: see `declared_routers`."""
    children = dict(module.named_children())
    if special := SPECIAL.get(type(module).__name__):
        return Mixture(module.router, lambda output: output, partial(special, module))
    if keys_of(module):  # experts, or what wraps them: no block
        return None
    experts = next((child for child in children.values() if keys_of(child)), None)
    if experts is not None:
        router = next((child for child in children.values() if type(child) in declared), None)
        router = router or children.get("gate", children.get("router"))  # not declared: by its usual name
        if router is None:
            wanted = "declared in the model's _can_record_outputs, or named gate or router"
            raise ValueError(f"router of {name} must stand beside its experts, {wanted}; got {', '.join(children)}")
        index = next((declared[type(part)] for part in router.modules() if type(part) in declared), 0)

        def read(output: Tensor | tuple) -> Tensor:
            return output if isinstance(output, Tensor) else output[index]  # DBRX's router returns nothing else

        return Mixture(router, read, partial(of_experts, experts), experts, keys_of(experts))
    if is_moe(module) and not type(module).__module__.startswith("transformers."):  # ours, or a learner's
        return Mixture(module, routing_in, lambda routing, _: routing)
    return None


def keys_of(module: nn.Module) -> tuple[str, str] | None:
    """The names of indices and weights, where `forward` takes them, or passes all on to such a module, as LoRA's."""
    parameters = signature(type(module).forward).parameters
    names = tuple(parameters)[2:4]
    if len(names) == 2 and names[0] in INDICES and names[1] in WEIGHTS:
        return names
    passes_on = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
    if passes_on and type(module).forward is not nn.Module.forward:  # a list of modules has none of its own
        return next(filter(None, map(keys_of, module.children())), None)
    return None


def declared_routers(model: nn.Module) -> dict[type, int]:
    """The router classes that a model, or a model within it, declares, and where the logits stand in their output."""
    found = {}
    for part in model.modules():
        specs = (getattr(part, "_can_record_outputs", None) or {}).get("router_logits") or []
        for spec in specs if isinstance(specs, list | tuple) else [specs]:
            found[getattr(spec, "target_class", spec)] = getattr(spec, "index", 1)
    return found


def routing_in(output) -> Routing | None:
    return next((part for part in output if isinstance(part, Routing)), None) if isinstance(output, tuple) else None


def detached(value):
    """The same tensor, tuple or `Routing`, without its graph; anything else as it is."""
    if isinstance(value, Routing):
        return replace(value, **{field.name: detached(getattr(value, field.name)) for field in fields(value)})
    return tree_map_only(Tensor, Tensor.detach, value)


def of_experts(experts: nn.Module, logits: Tensor, topk: tuple[Tensor, Tensor]) -> Routing:
    """From the logits (T, E), and the indices and weights (T, K) that the experts were called with."""
    indices, weights = (part.reshape(-1, part.shape[-1]) for part in topk)  # (T, K)
    logits = logits.reshape(-1, logits.shape[-1])  # (T, E)
    if logits.shape[1] - 1 == getattr(experts, "num_experts", None):  # Zaya: the last class stands for no expert
        return listed(logits[:, :-1], indices, weights, weights != 0)
    return listed(logits, indices, weights)


def llama4(block: nn.Module, output: tuple, _) -> Routing:
    """All experts run, on tokens times their scores (T, E): sigmoids, and 0 for those that were not chosen."""
    scores, logits = (part.reshape(-1, part.shape[-1]) for part in output)
    indices = logits.topk(block.top_k, dim=-1).indices
    return listed(logits, indices, scores.gather(1, indices))


def switch(block: nn.Module, output: tuple, _) -> Routing:
    """The choice is one-hot (..., E), nothing where its expert was full; its probability (..., 1)."""
    chosen, prob, logits = (part.reshape(-1, part.shape[-1]) for part in output)
    carried_out = chosen.sum(dim=-1, keepdim=True) > 0  # (T, 1)
    return listed(logits, logits.argmax(dim=-1, keepdim=True), prob, carried_out, drops=True)


def nllb(block: nn.Module, output: tuple, _) -> Routing:
    """Two choices, whose weights stand in a table (T, E), 0 where their expert was full."""
    _, table, logits = output
    indices = logits.topk(2, dim=-1).indices
    weights = table.gather(1, indices)
    return listed(logits, indices, weights, weights != 0, drops=True)


def jetmoe(block: nn.Module, output: tuple, _) -> Routing:
    """The choices come sorted by expert; the logits tell them by token. The weights are a softmax over the chosen."""
    by_expert, *_, logits = output
    best, indices = logits.topk(len(by_expert) // len(logits), dim=-1)
    return listed(logits, indices, best.softmax(dim=-1))


SPECIAL: dict[str, Callable[..., Routing]] = {
    "Llama4TextMoe": llama4, "SwitchTransformersSparseMLP": switch, "NllbMoeSparseMLP": nllb,
    "JetMoeMoE": jetmoe, "JetMoeMoA": jetmoe,
}  # fmt: skip


def listed(logits: Tensor, indices: Tensor, weights: Tensor, carried_out=None, drops: bool = False) -> Routing:
    """The `Routing` of logits (T, E), indices and weights (T, K). Those not carried_out (T, K) are dropped, or none."""
    logits, probs = scored(logits, indices, weights)
    routing = Routing.from_topk(logits, probs, indices, weights)
    if carried_out is None:
        return routing
    kept, names = carried_out.T.flatten(), ("token_idx", "expert_idx")
    parts = {name: getattr(routing, name)[kept] for name in (*names, "weight")}
    return replace(routing, **parts, **{f"dropped_{name}": getattr(routing, name)[~kept] for name in names if drops})


def scored(logits: Tensor, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and probabilities (T, E), of the score that explains the weights (T, K) up to a factor for each token, or
    of softmax. Where the 'logits' are probabilities already (Gemma 4), their logarithm is returned."""
    scores = (partial(torch.softmax, dim=-1), torch.sigmoid, lambda z: F.softplus(z).sqrt())  # the last: DeepSeek-V4
    eps = max(torch.finfo(dtype).eps for dtype in (logits.dtype, weights.dtype, torch.float32))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bool((logits >= 0).all()) and bool(((logits.sum(dim=-1) - 1).abs() < 1e-2).all()):
        return logits.log(), logits
    score = scores[0]
    if len(logits) and (weights.shape[1] > 1 or bool((weights != weights[0]).any())):
        own = shares(weights.to(logits.dtype))
        errors = [(shares(score(logits).gather(1, indices)) - own).abs().mean() for score in scores]
        if min(errors) < 4 * eps:
            score = scores[errors.index(min(errors))]
    probs = score(logits)
    return logits, probs / probs.sum(dim=-1, keepdim=True)


def shares(weights: Tensor) -> Tensor:
    """Weights (T, K) over their sum; those of a single choice as they are."""
    return weights if weights.shape[1] == 1 else weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-20)
