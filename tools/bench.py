"""``python -m tools.bench``: what a mixture of experts costs on this machine, in some four minutes.

Ratios of times taken side by side hold from one day to the next, milliseconds do not. So everything takes turns with
what it is compared with, in one process, and the median of the ratios is shown. `cases` says what is compared.
"""

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from moe_lessons.analysis.timing import Ratio, cpu_name, milliseconds, rounds_within, take_turns
from moe_lessons.nn import torch_threads
from moe_lessons.plots.theme import LIGHT, PALETTE, LessonFigure, dress, log_axis
from moe_lessons.support.errors import check_device, check_positive_int
from moe_lessons.training import bar
from tools.bench_cases import Case, all_cases, transformers_version


def main(argv: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows of the table, and the machine")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios")
    parser.add_argument("--quick", action="store_true", help="only small cases: some 20 seconds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    options = parser.parse_args(argv)
    try:
        check_positive_int("threads", options.threads)
        device = check_device(options.device)
        for name, file in {"json": options.json, "plot": options.plot}.items():
            if file and (file.is_dir() or not file.parent.is_dir()):
                raise ValueError(f"{name} must be a file in a folder that exists, got {str(file)!r}")
    except ValueError as error:
        parser.error(str(error))
    machine, rows = describe_machine(device), []
    for case in bar(all_cases(options.quick), "bench"):
        with torch_threads(case.threads or options.threads):
            rows += measure(case, device, seconds=0.3 if options.quick else 0.8)
    table = pd.DataFrame(rows, columns=["case", "what", "median", "low", "high", "baseline_ms", "threads", "note"])
    print(as_text(machine, table))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    if options.plot:
        options.plot.write_bytes(draw(table).png())
    return 0


def describe_machine(device: torch.device) -> dict[str, str | None]:
    """What the numbers depend on, beside the number of threads."""
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    versions = {"torch": torch.__version__, "transformers": transformers_version()}
    return {"processor": processor} | versions | {"Python": platform.python_version(), "system": platform.system()}


def measure(case: Case, device: torch.device, seconds: float) -> list[dict]:
    """A row for each function of a case but its baseline: its ratio, or why it cannot run. About `seconds` for each."""
    with device:
        calls = case.make()
    baseline, rows = calls.pop(case.baseline), []
    baseline()
    for what, call in calls.items():
        row = {"case": f"{case.name}: over {case.baseline}", "what": what, "threads": torch.get_num_threads()}
        try:
            call()
            times, of_baseline = take_turns([call, baseline], rounds_within(seconds, [call, baseline]))
            row |= asdict(Ratio.of(times, of_baseline)) | {"baseline_ms": median(of_baseline), "note": ""}
        except RuntimeError as error:
            row |= {"baseline_ms": milliseconds(baseline), "note": str(error).splitlines()[0]}
        rows.append(row)
    return rows


def as_text(machine: dict, table: pd.DataFrame) -> str:
    """The table: for each case a headline, and below it a line for each row."""
    lines = [", ".join(f"{name} {value or 'missing'}" for name, value in machine.items())]
    lines.append("Median and quartiles of the time over that of a baseline, which takes turns with each.")
    for (case, threads), rows in table.groupby(["case", "threads"], sort=False):
        lines += ["", f"{case} ({rows['baseline_ms'].median():.2f} ms, threads: {threads})"]
        for row in rows.itertuples():
            lines.append(f"  {row.what:<20}{row.note or Ratio(row.median, row.low, row.high)}")
    return "\n".join(lines)


def draw(table: pd.DataFrame) -> LessonFigure:
    """A row for each case, and in it for each ratio a point with a bar from quartile to quartile."""
    cases, whats = list(table["case"].unique()), list(table["what"].unique())
    figure = LessonFigure(13, 1.5 + 0.4 * len(cases), LIGHT)
    ax = figure.add_subplot()
    dress(ax, LIGHT, xlabel="time over that of the baseline")
    for i, (what, rows) in enumerate(table.dropna(subset="median").groupby("what", sort=False)):
        place = rows["case"].map(cases.index) + 0.7 * (i / len(whats) - 0.5)  # within the band of its case
        bars = abs(rows[["low", "high"]].T - rows["median"])  # (2, rows)
        ax.errorbar(rows["median"], place, xerr=bars, color=PALETTE[i % 8], fmt="osD^vPX"[i % 7], ms=4, label=what)
    ax.axvline(1, ls="--", lw=1, color=LIGHT.muted, zorder=0.5)
    ax.set_yticks(range(len(cases)), cases)
    ax.set_ylim(len(cases) - 0.5, -0.5)
    log_axis(ax, "x", say="{:g}".format)
    figure.legend(loc="outside upper center", ncols=7, frameon=False)
    return figure
