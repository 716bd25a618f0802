"""Garbles checkpoints: bytes flipped, cut and moved, contents of wrong types, shapes and values, and pickles.

python tests/unit/fuzz_checkpoints.py [CASES [SEED]]: each is refused in one sentence that changes nothing, or is loaded
as it stands, and training goes on. `test_checkpoints` runs some hundred."""

import io
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from moe_lessons.nn import LanguageModel, seeded
from moe_lessons.parallel import training as ranks
from moe_lessons.parallel.exchange import shard_experts
from moe_lessons.support.saved import STATE, read_saved, write_saved
from moe_lessons.training import PRESETS, TrainingDiverged, load_checkpoint, plane_runs, save_checkpoint
from moe_lessons.training.checkpoints import FORMAT

NUMBERS = (None, True, -1, 0, 1, 2**70, 10**400, 0.5, -1e-3, 1e300, torch.nan, torch.inf, "", "1", "a\nb", "x" * 999)
TENSORS = (
    torch.zeros(0), torch.zeros(()), torch.full((3,), float("nan")), torch.ones(4, 2, dtype=torch.int64),
    torch.zeros(5056, dtype=torch.uint8), torch.full((5056,), 255, dtype=torch.uint8), torch.zeros(1).expand(9, 9),
)  # fmt: skip
PARTS = ({"part": "1"}, {"part": "1", "dtype": "load", "shape": [-1]}, {"part": "1", "dtype": "int64", "shape": [9, 9]})


class Code:
    """Pickled, it says what to call when it is read."""

    def __reduce__(self):
        return os.mkdir, ("called",)


def of_a_run(path: Path) -> tuple[str, Callable, Callable, Callable]:
    """The format, what loads a file, the state that is not to change, and a step."""
    run = plane_runs(PRESETS["noise"])["MoE"]
    run.step(), run.step()
    save_checkpoint(run, path)
    return FORMAT, lambda: load_checkpoint(run, path), run.state_dict, run.step


def of_ranks(path: Path) -> tuple[str, Callable, Callable, Callable]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with seeded(0):
        config = ranks.Settings(num_layers=1, d_model=8, d_ff=4, num_experts=2, context=8, router="sigmoid")
        model = shard_experts(LanguageModel(config.model_config()))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.arange(8)[None])[0].square().mean().backward()
        optimizer.step()

    step()
    ranks.save(str(path.parent), 3, model, optimizer)
    return ranks.FORMAT, lambda: ranks.load(path, model, optimizer), lambda: ranks.state_of(model, optimizer), step


def fingerprint(value) -> object:
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.detach().contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {str(key): fingerprint(part) for key, part in value.items()}
    return [fingerprint(part) for part in value] if isinstance(value, list) else repr(value)


def garbled_bytes(rng: random.Random, whole: bytes) -> bytes:
    start, end = sorted(rng.randrange(len(whole)) for _ in range(2))
    if rng.random() < 0.5:
        content = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        return bytes(content)
    middle = whole[start:end]
    torch.save({"kind": FORMAT, "more": Code()}, pickled := io.BytesIO())
    ways = (whole[:start], whole[start:], whole[:start] + whole[end:], whole[:end] + middle + whole[end:])
    ways += (whole[:start] + bytes(end - start) + whole[end:], whole + middle, b"", pickled.getvalue())
    return rng.choice((*ways, whole.replace(STATE.encode(), b"other.json")))


def garble(rng: random.Random, state: dict) -> None:
    part, key = state, None
    while isinstance(part, dict | list) and part and (key is None or rng.random() < 0.8):
        holder, key = part, rng.choice(list(part) if isinstance(part, dict) else range(len(part)))
        part = holder[key]
    way = rng.randrange(7)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[rng.choice(("part", "x", "a\nb", "99"))] = part
    elif way == 2 and isinstance(holder, list):
        holder.append(rng.choice((part, None, [], {})))
    elif way < 5 and isinstance(part, torch.Tensor) and part.numel():
        flat = part.clone().flatten()
        flat[rng.randrange(len(flat))] = rng.choice((1, 0, 3) if part.dtype == torch.uint8 else (-1e9, 2, torch.nan))
        cut = part[..., :-1] if part.ndim else part
        holder[key] = rng.choice((flat.view(part.shape), cut, part[None], part.double(), part.bool()))
    else:
        holder[key] = rng.choice((*NUMBERS, *TENSORS, [], {}, [None], [[None]], *PARTS))


def fuzz(make: Callable, folder: Path, cases: int, seed: int = 0) -> dict[str, int]:
    path, count = folder / "step3.checkpoint", {"refused": 0, "loaded": 0}
    kind, load, state_of, step = make(path)
    whole, before = path.read_bytes(), fingerprint(state_of())
    for case in range(cases):
        rng = random.Random(f"{seed} {case}")
        crafted = rng.random() < 0.6
        if crafted:
            garble(rng, state := read_saved(path, kind))
            write_saved(path, kind, state)
        else:
            path.write_bytes(garbled_bytes(rng, whole))
        try:
            load()
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000, (case, str(error))
            count["refused"] += 1
        else:
            count["loaded"] += 1
            assert crafted or fingerprint(state_of()) == before, f"case {case} changed the run"
            try:
                step()
            except TrainingDiverged:
                pass
            path.write_bytes(whole)
            load()
        assert fingerprint(state_of()) == before and not (folder / "called").exists(), f"case {case}"
        path.write_bytes(whole)
    return count


if __name__ == "__main__":
    cases, seed = int((sys.argv[1:2] or [1000])[0]), int((sys.argv[2:3] or [0])[0])
    for make in (of_a_run, of_ranks):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            print(make.__name__, fuzz(make, Path(folder), cases, seed))
