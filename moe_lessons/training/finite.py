"""Where it began that a loss or a gradient is no longer finite."""

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn


def first_not_finite(model: nn.Module, forward: Callable[[Tensor], Any], x: Tensor) -> str | None:
    """What is the first not to be finite when forward(x) calls a model, then in its gradients; None if all is finite.

    In the order in which the modules finish: the input, the weights of a module, its output.
    """
    names, found = {module: name for name, module in model.named_modules()}, []

    def look(what: str, value: Any) -> None:
        if not all(tensor.isfinite().all() for tensor in tensors_in(value)):
            found.append(what)

    def look_at(module: nn.Module, _, output: Any) -> None:
        for name, weight in module.named_parameters(names[module]):
            look(name, weight)
        look(f"the output of {names[module] or 'the model'}", output)

    look("the input", x)
    hooks = [module.register_forward_hook(look_at) for module in names]
    try:
        with torch.no_grad():
            forward(x)
    except Exception:  # what was seen until then, and the weights, say enough
        pass
    finally:
        for hook in hooks:
            hook.remove()
    weights = list(model.named_parameters())
    for name, weight in weights:
        look(name, weight)
    for name, weight in reversed(weights):  # as backward goes
        look(f"the gradient of {name}", weight.grad)
    return found[0] if found else None


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in what a module may return: a tensor, a `Routing`, or several in a tuple or a list."""
    if isinstance(value, Tensor):
        return [value]
    parts = tuple(vars(value).values()) if is_dataclass(value) else value
    return [tensor for part in parts for tensor in tensors_in(part)] if isinstance(parts, tuple | list) else []
