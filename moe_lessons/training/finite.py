"""Where it began that a loss or a gradient is no longer finite."""

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn, no_grad


def first_not_finite(model: nn.Module, forward: Callable[[Tensor], Any], x: Tensor) -> str | None:
    """Name the first that is not finite, or None: the input, a weight, the output of a module (in the order in which
    they finish when forward(x) calls the model), a gradient (as backward goes)."""
    weights, found = list(model.named_parameters()), []

    def look(what: str, value: Any) -> None:
        values = vars(value).values() if is_dataclass(value) else value if isinstance(value, tuple) else [value]
        if not all(tensor.isfinite().all() for tensor in values if isinstance(tensor, Tensor)):
            found.append(what)

    for name, tensor in [("the input", x), *weights]:
        look(name, tensor)
    hooks = []
    for name, module in model.named_modules():
        what = f"the output of {name or 'the model'}"
        hooks.append(module.register_forward_hook(lambda _, __, output, what=what: look(what, output)))
    try:
        with no_grad():
            forward(x)
    except Exception:  # what was seen until then, and the weights, say enough
        pass
    finally:
        for hook in hooks:
            hook.remove()
    for name, weight in reversed(weights):
        look(f"the gradient of {name}", weight.grad)
    return found[0] if found else None
