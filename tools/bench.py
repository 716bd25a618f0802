"""``python -m tools.bench``: what a mixture of experts costs on this machine, in some four minutes.

Ratios of times taken side by side hold from one day to the next, milliseconds do not. So everything takes turns with
what it is compared with, in one process, and the median of the ratios is shown. `bench_cases` says what is compared.
"""

import argparse
import platform
from collections.abc import Sequence
from statistics import median

import torch
import transformers

from moe_lessons.analysis.timing import Ratio, cpu_name, milliseconds, take_turns
from moe_lessons.nn import torch_threads
from moe_lessons.support.errors import check_device, check_positive_int
from tools.bench_cases import Case, all_cases


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    options = parser.parse_args(argv)
    try:
        check_positive_int("threads", options.threads)
        device = check_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{processor}, {versions}, Python {platform.python_version()}, {platform.system()}")
    print("Median and quartiles of the time over that of a baseline, which takes turns with each.")
    for case in all_cases():
        with torch_threads(case.threads or options.threads):
            baseline_ms, lines = measure(case, device)
            threads = torch.get_num_threads()
        print(f"\n{case.name}: over {case.baseline} ({baseline_ms:.2f} ms, threads: {threads})")
        for what, said in lines.items():
            print(f"  {what:<20}{said}", flush=True)
    return 0


def measure(case: Case, device: torch.device) -> tuple[float, dict[str, Ratio | str]]:
    """Time the functions of a case: of the baseline the ms; of the others the ratio, or the trouble."""
    with device:
        calls = case.make()
    baseline, found = calls.pop(case.baseline), {}
    baseline()
    of_baseline = [milliseconds(baseline, device)]
    for what, call in calls.items():
        try:
            call()
            times, of_baseline = take_turns([call, baseline], rounds_for([call, baseline], device), device)
            found[what] = Ratio.of(times, of_baseline)
        except RuntimeError as error:
            found[what] = str(error).splitlines()[0]
    return median(of_baseline), found


def rounds_for(functions: Sequence, device: torch.device) -> int:
    """Return how many rounds of these functions, each run before, fit into 0.8 seconds: at least 5 and at most 200."""
    return max(5, min(200, int(800 / sum(milliseconds(function, device) for function in functions))))


if __name__ == "__main__":
    main()
