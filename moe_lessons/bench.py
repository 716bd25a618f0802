"""``python -m moe_lessons bench``: what a mixture of experts costs on this machine, against the dense FFN.

Each dispatch and the dense FFN of equal active size take turns in one process, and the median of their ratios
is shown: ratios of times taken side by side hold from one day to the next, milliseconds do not.
"""

import argparse
import copy
import json
import math
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import nn

from moe_lessons.analysis.cost import flops_per_token
from moe_lessons.analysis.timing import Ratio, milliseconds, milliseconds_per_step, take_turns, torch_threads
from moe_lessons.errors import check_device, check_positive_int
from moe_lessons.nn import DISPATCH, MoE, choose_dispatch, dense_twin, seeded
from moe_lessons.tasks import PRESETS
from moe_lessons.training import plane_runs

DESCRIPTION = "Time an MoE layer, run in each way that it can run, against a dense FFN of equal active size."
PASSES = ("forward", "forward + backward")
DENSE_LIMIT = 1e9  # FLOPs of a forward pass up to which 'dense' is timed also where E is 8 times K or more


@dataclass(frozen=True)
class Size:
    """The sizes of one MoE layer, and how many tokens it gets."""

    num_experts: int  # E
    top_k: int  # K
    num_tokens: int  # T
    d_model: int  # D
    d_ff: int  # F

    def __str__(self) -> str:
        return f"E={self.num_experts} K={self.top_k} T={self.num_tokens} D={self.d_model} F={self.d_ff}"


SIZES = (
    Size(8, 1, 256, 16, 8),  # a step of the playground: 'collapse'
    Size(8, 2, 256, 16, 4),  # 'healthy'
    Size(8, 2, 2048, 16, 4),
    Size(8, 2, 2048, 64, 128),
    Size(8, 2, 2048, 256, 512),
    Size(64, 2, 2048, 128, 128),
    Size(64, 8, 2048, 256, 128),
)
QUICK_SIZES = (SIZES[1], SIZES[4])
# Along each of these only D grows, with F = 2·D: 'dense' is the faster one at its start, 'loop' at its end.
SERIES = tuple(
    tuple(Size(num_experts, top_k, num_tokens, d_model, 2 * d_model) for d_model in (4, 8, 16, 32, 64))
    for num_experts, top_k, num_tokens in ((8, 2, 256), (8, 2, 2048), (32, 2, 1024))
)


def main(argv: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="python -m moe_lessons bench", description=DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and fewer rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    options = parser.parse_args(argv)
    try:
        check_positive_int("threads", options.threads)
        device = check_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    with torch_threads(options.threads):
        report = measure(device, options.quick)
    print(json.dumps(report, indent=1) if options.json else as_text(report))
    return 0


# --- measuring -------------------------------------------------------------------------------------------


def measure(device: torch.device, quick: bool = False) -> dict:
    """All that the tables show, in lists and dictionaries of strings and numbers."""
    sizes, series, seconds = (QUICK_SIZES, SERIES[1:2], 0.5) if quick else (SIZES, SERIES, 1.2)
    return {
        "machine": describe_machine(device),
        "layers": [compare(size, which, device, seconds) for size in progress(sizes) for which in PASSES],
        "crossings": [find_crossing(line, device, seconds / 2) for line in progress(series)],
        "playground_ms_per_step": playground_step(device, steps=50 if quick else 200),
    }


def describe_machine(device: torch.device) -> dict:
    """What the numbers depend on."""
    return {
        "cpu": cpu_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def cpu_name() -> str:
    """The processor by its name where the system tells it (Linux does), else by its family."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def compare(size: Size, which: str, device: torch.device, seconds: float) -> dict:
    """Every dispatch against the dense FFN of equal active size, in one pass over a layer of this size."""
    moe, x = make_layer(size, device)
    ffn = one_pass(dense_twin(moe, "active"), x, which)
    ways = [way for way in (*DISPATCH, "auto") if way != "dense" or not too_slow(size, moe)]
    ratios, ffn_times = {}, []
    for way in ways:  # each with the FFN alone: after 'dense' has filled the memory, the next one is slow
        calls = [one_pass(with_dispatch(moe, way), x, which), ffn]
        times, beside = take_turns(calls, rounds_within(seconds / len(ways), calls))
        ratios[way] = asdict(Ratio.of(times, beside))
        ffn_times += beside
    with torch.no_grad():
        auto = choose_dispatch(moe.experts, moe(x)[1])
    return {
        "size": asdict(size),
        "pass": which,
        "ffn_ms": median(ffn_times),
        "ratios": ratios,
        "skipped": [way for way in DISPATCH if way not in ways],
        "auto_takes": auto,
    }


def too_slow(size: Size, moe: MoE) -> bool:
    """Whether every expert on every token ('dense') would take so long that nobody wants to wait for it."""
    times = size.num_experts / size.top_k
    return times >= 8 and times * flops_per_token(moe) * size.num_tokens > DENSE_LIMIT


def find_crossing(line: Sequence[Size], device: torch.device, seconds: float) -> dict:
    """Along sizes that grow: how much faster 'loop' gets against 'dense', and where the two are equal.

    The measure is what `choose_dispatch` looks at: the multiplications by `in_proj` that 'dense' does in vain,
    for each expert. `at` is None where one of the two is the faster at every size of the line.
    """
    wasted, ratios, taken = [], [], []
    for size in line:
        moe, x = make_layer(size, device)
        calls = [one_pass(with_dispatch(moe, way), x, PASSES[1]) for way in ("dense", "loop")]
        dense, loop = take_turns(calls, rounds_within(seconds, calls))
        ratios.append(Ratio.of(dense, loop).median)
        idle = size.num_experts - size.top_k
        wasted.append(idle * size.num_tokens * moe.experts.in_proj[0].numel() / size.num_experts)
        with torch.no_grad():
            taken.append(choose_dispatch(moe.experts, moe(x)[1]))
    return {
        "sizes": [asdict(size) for size in line],
        "wasted_per_expert": wasted,
        "dense_over_loop": ratios,
        "auto_takes": taken,
        "at": crossing(wasted, ratios),
    }


def crossing(positions: Sequence[float], ratios: Sequence[float]) -> float | None:
    """Where the ratios first pass 1 upwards, on a straight line between logarithms; None where they do not."""
    for (x0, r0), (x1, r1) in pairwise(zip(positions, ratios)):
        if r0 < 1 <= r1:
            return x0 * (x1 / x0) ** (-math.log(r0) / (math.log(r1) - math.log(r0)))
    return None


def playground_step(device: torch.device, steps: int) -> dict[str, float]:
    """Milliseconds for a training step of the playground's mixture and of its dense twins, one thread each."""
    runs = plane_runs(PRESETS["healthy"], device=device)
    for run in runs.values():
        milliseconds_per_step(run, 10)  # warm-up
    return {name: milliseconds_per_step(run, steps) for name, run in runs.items()}


def make_layer(size: Size, device: torch.device) -> tuple[MoE, torch.Tensor]:
    """A layer and its tokens (T, D), the same on every call; the router sends about as many to each expert."""
    with seeded(0):
        moe = MoE(size.d_model, size.d_ff, size.num_experts, size.top_k)
        x = torch.randn(size.num_tokens, size.d_model)
    return moe.to(device), x.to(device)


def with_dispatch(moe: MoE, way: str) -> MoE:
    """The same layer, its weights included, with another dispatch."""
    same = copy.copy(moe)
    same.dispatch = way
    return same


def one_pass(layer: nn.Module, x: torch.Tensor, which: str) -> Callable[[], object]:
    """A function that runs the layer once: without gradients, or with those of x and of all weights."""
    if which == "forward":
        return torch.no_grad()(lambda: layer(x))
    x = x.detach().requires_grad_()
    wanted = [x, *layer.parameters()]
    upstream = torch.ones_like(x)

    def forward_backward():
        out = layer(x)
        y = out[0] if isinstance(out, tuple) else out
        return torch.autograd.grad(y, wanted, upstream)

    return forward_backward


def rounds_within(seconds: float, calls: Iterable[Callable[[], object]]) -> int:
    """How many rounds of these calls fit into `seconds`, but at least 5 and at most 200."""
    calls = list(calls)
    for call in calls:
        call()
    return max(5, min(200, int(1000 * seconds / sum(milliseconds(call) for call in calls))))


def progress(items: Sequence) -> Iterator:
    """The items, with a dot on stderr for each: the measurement takes a while."""
    for item in items:
        print(".", end="", file=sys.stderr, flush=True)
        yield item
    print(file=sys.stderr)


# --- showing ---------------------------------------------------------------------------------------------


def as_text(report: dict) -> str:
    """The tables."""
    machine = report["machine"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    on = f"{machine['cpu']}, {threads}" if machine["device"] == "cpu" else machine["device"]
    lines = [
        f"{on}; torch {machine['torch']}, Python {machine['python']}, {machine['system']}",
        "",
        "Time of an MoE layer over that of a dense FFN of equal active size (K·F wide), by dispatch: median over",
        "rounds in which they take turns, and quartiles. The FFN's milliseconds are for orientation only.",
    ]
    for which in PASSES:
        rows = [row for row in report["layers"] if row["pass"] == which]
        ways = list(dict.fromkeys(way for row in rows for way in row["ratios"]))
        lines += ["", f"{which:<32}{'FFN ms':>8}" + "".join(f"   {way:<18}" for way in ways) + " auto takes"]
        for row in rows:
            cells = [Ratio(**row["ratios"][way]) if way in row["ratios"] else "skipped" for way in ways]
            cells = "".join(f"   {cell!s:<18}" for cell in cells)
            lines.append(f"{Size(**row['size'])!s:<32}{row['ffn_ms']:>8.2f}{cells} {row['auto_takes']}")
    if any(row["skipped"] for row in report["layers"]):
        lines += ["", "skipped: every expert on every token would be 8 times the arithmetic or more"]
    lines += ["", "Where 'loop' overtakes 'dense', forward + backward; D grows, F = 2·D", ""]
    lines += [f"{'':<32}{'wasted by dense':>16}{'dense / loop':>14}   auto takes"]
    for line in report["crossings"]:
        for size, wasted, ratio, taken in zip(
            line["sizes"], line["wasted_per_expert"], line["dense_over_loop"], line["auto_takes"]
        ):
            lines.append(f"{Size(**size)!s:<32}{wasted / 1e6:>14.2f} M{ratio:>14.2f}   {taken}")
        faster = "loop" if line["dense_over_loop"][-1] > 1 else "dense"
        equal = f"{faster!r} is faster throughout" if line["at"] is None else f"equal at {line['at'] / 1e6:.2f} M"
        lines.append(f"{'':<32}{equal}")
    lines.append("wasted: multiplications by in_proj with tokens that did not choose the expert, for each expert")
    steps = ", ".join(f"{name} {ms:.2f} ms" for name, ms in report["playground_ms_per_step"].items())
    return "\n".join([*lines, "", f"A training step of the playground, one thread: {steps}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
