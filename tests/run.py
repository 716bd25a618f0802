"""``make test``: every check, on all cores, and one line that sums up. ``python tests/run.py unit claims``: only these.

It fails when a test fails and when a group has no test. Without a Chromium the tests in the browser are skipped; with
MOE_LESSONS_REQUIRE_BROWSER=1 they fail."""

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from kernels import quick_kernels

from moe_lessons.commands.lab import KEEP_MEMORY

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "build" / "test-report.xml"
GROUPS = {  # name -> where its tests are
    "ruff": ("ruff",),
    "unit": ("tests/unit", "moe_lessons"),  # moe_lessons: the examples in its docstrings
    "claims": ("tests/claims",),
    "notebooks": ("notebooks", "tests/notebooks"),  # each lesson runs, and shows what is stored
    "browser": ("tests/browser",),
    "web": ("tests/web",),  # the page and the site
}
PYTEST = ["pytest", "-q", "--no-header", "-p", "no:cacheprovider", f"--junitxml={REPORT}"]
PYTEST += ["-p", "tests.how_far", "--durations=15"]  # a line now and then; at the end what took longest
PYTEST += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=300"]
PYTEST += ["--nbval-sanitize-with=tests/notebooks/sanitize.cfg"]  # the digits of what is measured are not compared
STAGES = (  # The tests of a file, and the cells of a lesson, stay on one core. What takes longest is begun first.
    ("notebooks claims unit", "-m", "not alone", "-n", "logical", "--dist", "loadfile", "--no-loadscope-reorder"),
    ("claims", "-m", "alone", "--reruns", "2"),  # they measure time, which other programs of the machine can spoil
    # They wait often: one worker more than there are cores. A page on a busy machine is late at times: what fails there
    # is tried once more. Where much fails, each test of it waits for a minute or more: the first failures say enough.
    (
        "browser web",
        *f"-n {(os.cpu_count() or 1) + 1} --dist loadfile --no-loadscope-reorder --reruns 1 --maxfail 8".split(),
    ),
)
# What is set outside must not change what a notebook shows.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MOE_LESSONS_STATIC": "", "MPLBACKEND": ""}
ENVIRONMENT["MOE_LESSONS_PROGRESS"] = "off"


def main(names: list[str]) -> int:
    if unknown := set(names) - set(GROUPS):
        sys.exit(f"no group {', '.join(unknown)}; there are: {', '.join(GROUPS)}")
    names, start, cases = names or list(GROUPS), time.monotonic(), []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background ignores interrupts
    if "ruff" in names:
        print("=== ruff", flush=True)
        cases.append(("ruff", "failed" if run("ruff", "check", ".") else "passed"))
    for groups, *options in STAGES:
        if places := [place for group in groups.split() if group in names for place in GROUPS[group]]:
            print("\n===", groups, *options, flush=True)
            environment = ENVIRONMENT if "alone" in options else ENVIRONMENT | KEEP_MEMORY  # claims of time do without
            # in the browser many kernels start, and train little: forked ones start at once, but train more slowly
            with quick_kernels(environment) if "browser" in groups else nullcontext(environment) as environment:
                code = run(*PYTEST, *options, *places, environment=environment)
            cases += read_report() if code in (0, 1, 5) else [(f"pytest ended with {code}", "failed")]
    empty = [name for name in names if not any(where.startswith(GROUPS[name]) for where, _ in cases)]
    cases += [(f"no test in {name}", "failed") for name in empty]
    failed = sorted({where for where, outcome in cases if outcome == "failed"})
    minutes, counts = (time.monotonic() - start) / 60, Counter(outcome for _, outcome in cases)
    print(f"\n{'FAILED: ' + ', '.join(failed) if failed else 'Nothing failed'}; after {minutes:.1f} minutes:")
    print(", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped")))
    return 1 if failed else 0


def read_report() -> Iterator[tuple[str, str]]:
    """Read of each test where it is, and 'passed', 'failed' or 'skipped'."""
    for case in ElementTree.parse(REPORT).iter("testcase"):
        found = {child.tag for child in case}
        outcome = "failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
        yield (case.get("classname") or case.get("name")).replace(".", "/"), outcome


def run(*command: str, environment: dict[str, str] = ENVIRONMENT) -> int:
    """Run a module of Python and return its exit code. An interrupt ends it, too."""
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        sys.exit(130)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
