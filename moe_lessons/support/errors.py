"""Checks at the door. Each `check_…` returns the value, or raises ValueError in one sentence that names the argument,
its value and what is allowed. True and False are no numbers."""

import json
import math
import sys
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def is_whole(value: Any, low: float, high: float = math.inf) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high


def first_line(error: BaseException) -> str:
    """Return what an error says first, or else its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def in_words(value: Any) -> str:
    """Name a tensor by its type and shape, anything else by its class."""
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def check_positive_int(name: str, value: Any) -> int:
    if not is_whole(value, 1):
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def check_count(name: str, value: Any) -> int:
    if not is_whole(value, 0):
        raise ValueError(f"{name} must be a whole number from 0 up, got {value!r}")
    return int(value)


def check_top_k(top_k: Any, num_experts: int) -> int:
    if not is_whole(top_k, 1, num_experts):
        raise ValueError(f"top_k must be between 1 and num_experts ({num_experts}), got {top_k!r}")
    return int(top_k)


def check_number(name: str, value: Any, minimum: float = 0.0, above: bool = False) -> float:
    if not is_number(value, minimum) or (above and value == minimum):
        allowed = f"above {minimum:g}" if above else f"of at least {minimum:g}"
        raise ValueError(f"{name} must be a finite number {allowed}, got {value!r}")
    return float(value)


def check_seed(seed: Any) -> int:
    if not is_whole(seed, 0, 2**62):
        raise ValueError(f"seed must be a whole number from 0 to 2**62, got {seed!r}")
    return int(seed)


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> Any:
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def check_device(device: Any) -> torch.device:
    present = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    present += ["mps"] if torch.backends.mps.is_available() else []
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    name = str(found) if found is None or found.index else found.type  # mps:0 is what a tensor on mps says
    if name not in {"meta", *present, *(name.split(":")[0] for name in present)}:
        raise ValueError(f"device must be one of {', '.join(map(repr, present))} on this machine, got {str(device)!r}")
    return found


def check_input(x: Tensor, d_model: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return the floating-point tensor x (..., d_model), of the weights' dtype (autocast aside). No value is read."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"x must be a floating-point tensor, got {in_words(x)}")
    if x.ndim < 1 or x.shape[-1] != d_model:
        raise ValueError(f"the last dimension of x must be d_model ({d_model}), got shape {tuple(x.shape)}")
    cast = torch.float64 not in (x.dtype, dtype) and torch.is_autocast_enabled(x.device.type)  # it leaves float64 alone
    if dtype not in (None, x.dtype) and not cast:
        raise ValueError(f"x must have the type of the weights ({dtype}), got {x.dtype}")
    return x


def say_refusal(command: str, error: Exception, said: str, as_json: bool = False) -> int:
    """Print why a command has nothing to show, on stderr and, with `as_json`, as an object, too. Returns 1."""
    if isinstance(error, ImportError):
        said = f"{command} needs {error.name or error}: pip install 'moe_lessons[hf]'"
    if as_json:
        print(json.dumps({"error": said}))
    print(f"{command}: {said}", file=sys.stderr)
    return 1
