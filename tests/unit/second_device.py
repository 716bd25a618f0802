"""A device without hardware. Its tensors say that they are on 'second', keep their numbers on the CPU, refuse to be
mixed with tensors of the CPU as a GPU refuses it, and count where a GPU would have to be waited for.

>>> # second_device.register() once in a process, then: with second_device.On(): model.to("second")

It says nothing of kernels or speed: it says that nothing is on the wrong device, and how often a step would wait."""

from types import ModuleType

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "second"
DEVICE = torch.device("cpu")  # until it is registered
waits: list[str] = []  # the operations for which a GPU would be waited for

aten = torch.ops.aten
# What ends in a number, or in a shape that depends on numbers.
WAITING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten._unique2.default}
WAITING |= {aten.masked_select.default}
# A GPU takes indices of the CPU, and copies from one device to the other.
MIXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}
MIXING |= {aten._to_copy.default, aten.copy_.default, aten.copy.default}


def register() -> None:
    """Make it known to torch, once in a process, after all that imports torch.distributed: it changes torch itself."""
    global DEVICE
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    DEVICE = torch.device(NAME, 0)
    backend: ModuleType = getattr(torch, NAME)
    backend.is_available, backend.device_count, backend.current_device = lambda: True, lambda: 1, lambda: 0
    backend.get_rng_state = lambda device=None: torch.get_rng_state()
    backend.set_rng_state = lambda state, device=None: None
    backend.synchronize = torch.accelerator.synchronize = lambda device=None: waits.append("synchronize")
    generator = torch.Generator

    class Generator(generator):  # its random numbers are those of the CPU
        def __new__(cls, device="cpu"):
            return generator.__new__(cls, "cpu" if torch.device(device).type == NAME else device)

    torch.Generator = Generator


class Second(torch.Tensor):
    """A tensor of the second device; `inner`: the one of the CPU that has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), **layout, device=DEVICE, requires_grad=False)

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"second({self.inner})"

    def tolist(self):
        waits.append("tolist")
        return self.inner.tolist()

    def numpy(self, *, force=False):
        raise TypeError(f"can't convert {NAME} device type tensor to numpy. Use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return call(function, args, kwargs or {})


class On(TorchDispatchMode):
    """Within it a function that makes tensors, called with device='second', makes such tensors."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return call(function, args, kwargs or {})


def call(function, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours, asked = [isinstance(tensor, Second) for tensor in tensors], kwargs.get("device")
    kind = None if asked is None else torch.device(asked).type
    if any(ours) and function not in MIXING:
        if not all(own or tensor.dim() == 0 for own, tensor in zip(ours, tensors)):
            raise RuntimeError(f"Expected all tensors to be on the same device, {function} got cpu and {DEVICE}")
    if any(ours) and (function in WAITING or (function is aten._to_copy.default and kind == "cpu")):
        waits.append(str(function))
    inner_args, inner_kwargs = tree_map(lambda leaf: leaf.inner if isinstance(leaf, Second) else leaf, (args, kwargs))
    if kind == NAME:
        inner_kwargs["device"] = "cpu"
    is_ours = (
        isinstance(args[0], Second) if function is aten.copy_.default else any(ours) if kind is None else kind == NAME
    )
    found = function(*inner_args, **inner_kwargs)
    if not is_ours:
        return found
    found = tree_map(lambda leaf: Second(leaf) if isinstance(leaf, torch.Tensor) else leaf, found)
    return return_and_correct_aliasing(function, args, kwargs, found) if any(ours) else found
