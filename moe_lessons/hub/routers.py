"""Finding and reading the routers of a Hugging Face model: by structure, not by a list of its classes.

A mixture is a module with a child, its experts, whose `forward` takes (hidden states, indices (T, K), weights (T, K)):
what they are called with is what is carried out. The logits are what the router beside them, a child named gate or
router, returns first."""

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
INDEX_ARGUMENTS = ("top_k_index", "router_indices")  # two names in use for each
WEIGHT_ARGUMENTS = ("top_k_weights", "routing_weights")


@dataclass(frozen=True)
class Mixture:
    """The router of a layer, how its output is `read`, and its experts with the names of their second and third
    argument; None where a `Routing` is read, which tells all."""

    router: nn.Module
    read: Callable
    experts: nn.Module | None = None
    keys: tuple[str, ...] = ()


def find_mixtures(model: nn.Module) -> dict[str, Mixture]:
    """The mixtures of experts within a model, by name. ValueError where there is none, or one that cannot be read."""
    named = dict(model.named_modules())
    found = {name: made for name, module in named.items() if (made := mixture_of(name, module))}
    if found:
        return found
    closed = [type(module).__name__ for name, module in named.items() if name.rpartition(".")[2] == "experts"]
    why = "which has none"
    if closed:
        why = f"whose {closed[0]} are not (quantised ones are not, nor those of kernels, Llama 4 or Switch)"
    wanted = f"have experts that are called with the choices of a router, got {type(model).__name__}, {why}"
    raise ValueError(f"model must {wanted}")


def mixture_of(name: str, module: nn.Module) -> Mixture | None:
    """The `Mixture` of a module that is one, else None."""
    if keys_of(module):  # experts, or what wraps them: no block
        return None
    children = dict(module.named_children())
    experts = next((child for child in children.values() if keys_of(child)), None)
    if experts is not None:
        router = children.get("gate", children.get("router"))
        if router is None:
            raise ValueError(f"router of {name} must be a gate or router beside its experts, got {', '.join(children)}")
        return Mixture(router, logits_in, experts, keys_of(experts))
    if is_moe(module) and not type(module).__module__.startswith("transformers."):  # ours, or a learner's
        return Mixture(module, routing_in)
    return None


def keys_of(module: nn.Module) -> tuple[str, str] | None:
    """The names of indices and weights, where `forward` takes them, or passes all on to such a module, as LoRA's."""
    parameters = signature(type(module).forward).parameters
    names = tuple(parameters)[2:4]
    if len(names) == 2 and names[0] in INDEX_ARGUMENTS and names[1] in WEIGHT_ARGUMENTS:
        return names
    passes_on = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
    if passes_on and type(module).forward is not nn.Module.forward:  # a list of modules has none of its own
        return next(filter(None, map(keys_of, module.children())), None)
    return None


def logits_in(output: Tensor | tuple) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def routing_in(output) -> Routing | None:
    return next((part for part in output if isinstance(part, Routing)), None) if isinstance(output, tuple) else None


def detached(value):
    """The same tensor, tuple or `Routing`, without its graph; anything else as it is."""
    if isinstance(value, Routing):
        return replace(value, **{field.name: detached(getattr(value, field.name)) for field in fields(value)})
    return tree_map_only(Tensor, Tensor.detach, value)


def of_experts(logits: Tensor, topk: tuple[Tensor, Tensor]) -> Routing:
    """From the logits (T, E), and the indices and weights (T, K) that the experts were called with."""
    indices, weights = (part.reshape(-1, part.shape[-1]) for part in topk)  # (T, K)
    logits, probs = scored(logits.reshape(-1, logits.shape[-1]), indices, weights)  # (T, E)
    return Routing.from_topk(logits, probs, indices, weights)


def scored(logits: Tensor, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and probabilities (T, E), of the score that explains the weights (T, K) up to a factor for each token, or
    of softmax. Where the 'logits' are probabilities already (Gemma 4), their logarithm is returned."""
    scores = (partial(torch.softmax, dim=-1), torch.sigmoid, lambda z: F.softplus(z).sqrt())  # the last: DeepSeek-V4
    eps = max(torch.finfo(dtype).eps for dtype in (logits.dtype, weights.dtype, torch.float32))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bool((logits >= 0).all()) and bool(((logits.sum(dim=-1) - 1).abs() < 1e-2).all()):
        return logits.log(), logits
    wanted = shares(weights.to(logits.dtype))
    errors = [(shares(score(logits).gather(1, indices)) - wanted).abs().mean() for score in scores]
    probs = scores[errors.index(min(errors)) if min(errors) < 4 * eps else 0](logits)
    return logits, probs / probs.sum(dim=-1, keepdim=True)


def shares(weights: Tensor) -> Tensor:
    """Weights (T, K) over their sum; those of a single choice as they are."""
    return weights if weights.shape[1] == 1 else weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-20)
