"""How much memory a computation needs while it runs."""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moe_lessons.errors import check_device


def peak_extra_bytes(function: Callable[[], object], device="cpu") -> int:
    """The most bytes of new tensors that were alive at one time while function(), which computes on `device`, ran.

    What was there before does not count, a view takes nothing, and what is kept for a backward pass counts as
    long as it is kept. On a CUDA device it is what PyTorch's allocator counts. Elsewhere every operation is
    watched; what a kernel allocates and frees inside itself is not seen.

    >>> peak_extra_bytes(lambda: torch.zeros(1000) + 1)  # 1000 zeros and 1000 ones, of 4 bytes each
    8000
    """
    device = check_device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Watch() as watch:
        function()
    return watch.peak


class _Watch(TorchDispatchMode):
    """Sees the result of each operation, and notices when its storage is freed."""

    def __init__(self):
        super().__init__()
        self.alive: dict[int, int] = {}  # bytes of each new storage
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {id(storage) for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            key = id(storage)  # the same object for all tensors on one storage, as long as it is alive
            if key not in given and key not in self.alive:
                self.alive[key] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
