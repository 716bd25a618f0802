"""What is compared with what. Every result is a dictionary of strings and numbers, ready for JSON."""

import copy
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from tqdm import tqdm

from moe_lessons.analysis.memory import peak_extra_bytes
from moe_lessons.analysis.timing import (
    Ratio,
    cpu_name,
    milliseconds,
    milliseconds_per_step,
    rounds_within,
    take_turns,
)
from moe_lessons.bench.hugging_face import DECODING_ONLY, hugging_face_blocks, transformers_version
from moe_lessons.bench.language import time_model
from moe_lessons.bench.sizes import FORWARD, PASSES, TRAINING, Plan, Size
from moe_lessons.nn import DISPATCH, MoE, choose_dispatch, dense_twin, seeded
from moe_lessons.tasks import PRESETS
from moe_lessons.training import plane_runs

DECODING_TOKENS = 16  # up to so many tokens at once, a language model that writes is decoding
GATHER_LIMIT = 256e6  # bytes of weights that 'gather' may copy
SLOW_MS, SLOW_TIMES = 300, 4  # what takes longer than both, milliseconds and times 'auto', is not timed again
TOLERANCE = 1e-4  # of the largest value of a result, in float32


def measure(device: torch.device, plan: Plan) -> dict:
    """All that the tables show; a bar on the terminal shows how far it is."""
    here = {"device": device, "seconds": plan.seconds}
    tasks = [("layers", partial(compare, size, which, **here)) for size in plan.layers for which in PASSES]
    tasks += [("decoding", partial(compare, size, FORWARD, **here)) for size in plan.decoding]
    tasks += [("lines", partial(follow, sizes, which, **here)) for which, sizes in plan.lines]
    if transformers_version():
        tasks += [("grid", partial(compare, s, which, **here, ways=())) for which, sizes in plan.grid for s in sizes]
    tasks += [("growth", partial(grow, plan.growth, which, **here)) for which in PASSES]
    tasks += [("memory", partial(weigh, size, device)) for size in plan.memory]
    tasks += [("language", partial(time_model, each, **here)) for each in plan.language]
    report = {"machine": describe_machine(device)}
    report |= {section: [] for section in ("layers", "decoding", "lines", "grid", "growth", "memory", "language")}
    for section, task in tqdm(tasks, desc="bench", unit="", disable=None):  # None: no bar where no terminal is
        report[section].append(task())
    return report | {"playground_ms_per_step": playground_step(device, steps=max(20, int(200 * plan.seconds)))}


def describe_machine(device: torch.device) -> dict:
    """What the numbers depend on."""
    return {
        "cpu": cpu_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers_version(),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def compare(
    size: Size, which: str, device: torch.device, seconds: float, ways: Sequence[str] = tuple(DISPATCH)
) -> dict:
    """Each of `ways`, 'auto' and Hugging Face's block, in one pass over a layer of this size.

    `ratios` are times over that of the dense FFN of equal active size, `hf_over_auto` those of Hugging Face over
    that of 'auto'; `skipped` says why a way has no ratio.
    """
    moe, x = make_layer(size, device)
    layers, skipped = layers_to_run(moe, size, ways)
    calls = {name: one_pass(layer, x, which) for name, layer in layers.items()}
    skipped |= why_not_time(calls)
    ffn = one_pass(dense_twin(moe, "active"), x, which)
    ffn()
    # Each dispatch beside the FFN alone, and batched_mm apart from the others of its kind: after something has
    # filled the memory, what comes next is slow.
    turns = [[way] for way in ways if way not in skipped]
    hf = [name for name in calls if name not in (*ways, "auto", *skipped)]
    turns += [["auto", name] for name in hf if name.endswith(DECODING_ONLY)]
    turns.append(["auto", *(name for name in hf if not name.endswith(DECODING_ONLY))])
    ratios, over_auto, ffn_times = {}, {}, []
    for names in turns:
        turn = [ffn, *(calls[name] for name in names)]
        ffn_ms, *times = take_turns(turn, rounds_within(seconds / len(turns), turn))
        ratios |= {name: asdict(Ratio.of(one, ffn_ms)) for name, one in zip(names, times)}
        over_auto |= {name: asdict(Ratio.of(one, times[0])) for name, one in zip(names[1:], times[1:])}
        ffn_times += ffn_ms
    return {
        "size": asdict(size),
        "pass": which,
        "ffn_ms": median(ffn_times),
        "ratios": {name: ratios[name] for name in calls if name in ratios},
        "hf_over_auto": over_auto,
        "skipped": skipped,
        "auto_takes": auto_takes(moe, x, which),
    }


def follow(sizes: Sequence[Size], which: str, device: torch.device, seconds: float) -> list[dict]:
    """Along a line of sizes each dispatch beside 'auto': where does the fastest change, and does 'auto' change there?

    The one that 'auto' takes comes out near 1, which shows how good the measurement is; what is below 1 by more
    than that, 'auto' should have taken.
    """
    rows = []
    for size in sizes:
        moe, x = make_layer(size, device)
        layers, skipped = layers_to_run(moe, size, hf=False)
        calls = {name: one_pass(layer, x, which) for name, layer in layers.items()}
        skipped |= why_not_time(calls)
        over_auto = {}
        for way in (way for way in DISPATCH if way not in skipped):
            turn = [calls[way], calls["auto"]]
            over_auto[way] = asdict(Ratio.of(*take_turns(turn, rounds_within(seconds / len(calls), turn))))
        row = {"size": asdict(size), "pass": which, "over_auto": over_auto, "skipped": skipped}
        rows.append(row | {"auto_takes": auto_takes(moe, x, which)})
    return rows


def grow(sizes: Sequence[Size], which: str, device: torch.device, seconds: float) -> dict:
    """'auto' at sizes that take turns in the same rounds: its time at each over that at the first."""
    calls = [one_pass(*make_layer(size, device), which) for size in sizes]
    for call in calls:
        call()
    times = take_turns(calls, rounds_within(seconds * len(sizes), calls))
    ratios = [asdict(Ratio.of(one, times[0])) for one in times]
    return {"sizes": [asdict(size) for size in sizes], "pass": which, "ratios": ratios}


def weigh(size: Size, device: torch.device) -> dict:
    """The peak of the memory that a forward pass takes on top, over that of the dense FFN of equal active size.

    Without a gradient, as in `forward`, and with all that a backward pass would need.
    """
    moe, x = make_layer(size, device)
    layers, skipped = layers_to_run(moe, size)
    moe(x)  # the first product on a GPU allocates a workspace that stays
    found = {"size": asdict(size), "ffn_bytes": {}, "ratios": {}, "skipped": skipped}
    for kind, gradient in (("without gradient", False), ("with gradient", True)):
        x = x.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            ffn = peak_extra_bytes(partial(dense_twin(moe, "active"), x), device)
            peaks = {name: peak_extra_bytes(partial(layer, x), device) for name, layer in layers.items()}
        found["ffn_bytes"][kind] = ffn
        found["ratios"][kind] = {name: peak / ffn for name, peak in peaks.items()}
    return found


def playground_step(device: torch.device, steps: int) -> dict[str, float]:
    """Milliseconds for a training step of the playground's mixture and of its dense twins, one thread each."""
    runs = plane_runs(PRESETS["healthy"], device=device)
    for run in runs.values():
        milliseconds_per_step(run, 10)  # warm-up
    return {name: milliseconds_per_step(run, steps) for name, run in runs.items()}


# --- the layers, and what may be timed of them -----------------------------------------------------------


def make_layer(size: Size, device: torch.device) -> tuple[MoE, Tensor]:
    """A layer and its tokens (1, T, D), the same on every call; the router sends about as many to each expert."""
    with seeded(0):
        moe = MoE(size.d_model, size.d_ff, size.num_experts, size.top_k)
        x = torch.randn(1, size.num_tokens, size.d_model)
    return moe.to(device), x.to(device)


def with_dispatch(moe: MoE, way: str) -> MoE:
    """The same layer, its weights included, with another dispatch."""
    layer = copy.copy(moe)
    layer.dispatch = way
    return layer


def layers_to_run(
    moe: MoE, size: Size, ways: Sequence[str] = tuple(DISPATCH), hf: bool = True
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layer in each way, by name ('auto' after `ways`), and the ways left out beforehand, with the reason."""
    layers, skipped = {way: with_dispatch(moe, way) for way in (*ways, "auto")}, {}
    if hf:
        layers |= hugging_face_blocks(moe, decoding=size.num_tokens <= DECODING_TOKENS)
    gathered = size.top_k * size.num_tokens * sum(p[0].nbytes for p in moe.experts.parameters())
    if "gather" in layers and gathered > GATHER_LIMIT:
        del layers["gather"]
        skipped["gather"] = f"would copy {gathered / 1e9:.1f} GB"
    return layers, skipped


def auto_takes(moe: MoE, x: Tensor, which: str) -> str:
    """The dispatch that 'auto' picks in this pass."""
    with torch.set_grad_enabled(which == TRAINING):
        return choose_dispatch(moe.experts, moe(x)[1])


def why_not_time(calls: dict[str, Callable]) -> dict[str, str]:
    """Run each call once: which refuse to run, give another result than 'auto', or take for ever, and why."""
    expected, reasons = calls["auto"](), {}
    auto_ms = milliseconds(calls["auto"])
    for name, call in calls.items():
        found = []
        try:
            ms = milliseconds(lambda call=call, found=found: found.extend(call()))
        except (RuntimeError, ValueError) as error:
            reasons[name] = f"refuses: {error}".splitlines()[0]
            continue
        if not all(same(a, b) for a, b in zip(found, expected, strict=True)):
            reasons[name] = "another result than auto!"
        elif ms > max(SLOW_MS, SLOW_TIMES * auto_ms) and name != "auto":
            reasons[name] = f"{ms / auto_ms:.0f} times auto at first"
    return reasons


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two results are the same but for rounding."""
    return bool((a - b).abs().max() <= TOLERANCE * b.abs().max() + 1e-7)


def one_pass(layer: nn.Module, x: Tensor, which: str) -> Callable[[], tuple[Tensor, ...]]:
    """A function that runs the layer once: for y, without gradients, or for the gradients of x and of all weights."""

    def forward(x: Tensor) -> Tensor:
        out = layer(x)
        return out[0] if isinstance(out, tuple) else out  # ours returns its routing too

    if which == FORWARD:
        return torch.no_grad()(lambda: (forward(x),))
    x = x.detach().requires_grad_()
    wanted = [x, *layer.parameters()]
    upstream = torch.ones_like(x)
    return lambda: torch.autograd.grad(forward(x), wanted, upstream)
