"""Checks at the door. Each `check_…` returns the value, or raises ValueError in one sentence that names the argument,
its value and what is allowed. True and False are no numbers."""

import math
from collections.abc import Iterable
from numbers import Integral, Number, Real
from typing import Any

import torch
from torch import Tensor


def is_whole(value: Any, low: float, high: float = math.inf) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    except OverflowError:  # a whole number beyond those that a computer calculates with
        return False


def first_line(error: BaseException) -> str:
    """Return what an error says first, or else its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def in_words(value: Any) -> str:
    """Name a tensor by its type and shape, anything else by its class."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    kind = "".join(f"{name} " for name in ("nested", "sparse", "meta") if getattr(value, f"is_{name}"))
    return f"{kind}{value.dtype}" + ("" if value.is_nested else f" of shape {tuple(value.shape)}")


def shown(value: Any) -> str:
    """Write a value in one line, a long one in short."""
    is_short = value is None or isinstance(value, (Number, str, list, tuple, dict))
    text = " ".join((repr(value) if is_short else in_words(value)).split())
    return text if len(text) <= 100 else f"{text[:80]} …"


def check_whole(name: str, value: Any, low: int, high: float, allowed: str = "") -> int:
    if not is_whole(value, low, high):
        raise ValueError(f"{name} must be {allowed or f'a whole number from {low} to {high:,}'}, got {shown(value)}")
    return int(value)


def check_positive_int(name: str, value: Any, most: float = math.inf) -> int:
    return check_whole(name, value, 1, most, "a whole number of at least 1" if most == math.inf else "")


def check_count(name: str, value: Any) -> int:
    return check_whole(name, value, 0, math.inf, "a whole number from 0 up")


def check_top_k(top_k: Any, num_experts: int) -> int:
    return check_whole("top_k", top_k, 1, num_experts, f"between 1 and num_experts ({num_experts})")


def check_number(name: str, value: Any, minimum: float = 0.0, above: bool = False, most: float = math.inf) -> float:
    if not is_number(value, minimum, most) or (above and value == minimum):
        allowed = f"above {minimum:g}" if above else f"of at least {minimum:g}"
        if most < math.inf:
            allowed += f" and at most {most:g}"
        raise ValueError(f"{name} must be a finite number {allowed}, got {shown(value)}")
    return float(value)


def check_seed(seed: Any) -> int:
    return check_whole("seed", seed, 0, 2**32 - 1, "a whole number from 0 to 2**32 - 1")  # torch reads 32 bits


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> Any:
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}")
    return value


def check_device(device: Any) -> torch.device:
    """Return a device of this machine. 'auto' is its accelerator or, where there is none, the CPU."""
    kind = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    numbered = [f"{kind}:{i}" for i in range(torch.accelerator.device_count())]
    name = kind if str(device) == "auto" else str(device)
    if name not in {"cpu", "meta", kind, *numbered}:
        names = ", ".join(map(repr, ["auto", "cpu", *numbered]))
        raise ValueError(f"device must be one of {names} on this machine, got {name!r}")
    return torch.device(name)


def check_input(x: Tensor, d_model: int, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return the floating-point tensor x (..., d_model), of the weights' device and dtype, without reading a value."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.is_nested or x.layout != torch.strided:
        raise ValueError(f"x must be a floating-point tensor, got {in_words(x)}")
    if x.ndim < 1 or x.shape[-1] != d_model:
        raise ValueError(f"the last dimension of x must be d_model ({d_model}), got shape {tuple(x.shape)}")
    if x.device != device:
        raise ValueError(f"x must be on the device of the weights ({device}), got {x.device}")
    may_cast = torch.float64 not in (x.dtype, dtype) and not x.is_meta  # autocast leaves float64 alone
    if dtype not in (None, x.dtype) and not (may_cast and torch.is_autocast_enabled(x.device.type)):
        raise ValueError(f"x must have the type of the weights ({dtype}), got {x.dtype}")
    return x
