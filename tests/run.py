"""``make test``: the checks that take minutes. ``make test-all``, which is ``python tests/run.py all``: those, then all
others. ``python tests/run.py claims browser``: only these stages.

A run fails when a test fails, and when a folder or a lesson has no test. Without a Chromium the tests in the browser
are skipped, and without npm the look at the JavaScript; with MOE_LESSONS_REQUIRE_BROWSER=1 they fail."""

import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from moe_lessons.commands.lab import KEEP_MEMORY

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "build" / "test-report.xml"
LESSONS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.ipynb"))
FIRST_LESSON = "tests/browser/test_first_lesson.py"
# The tests of a file, and the cells of a lesson, stay on one core. What takes longest is begun first.
EVERY_CORE = ["-n", "logical", "--dist", "loadfile", "--no-loadscope-reorder"]
ONE_MORE = ["-n", str((os.cpu_count() or 1) + 1), *EVERY_CORE[2:], "--reruns", "1"]  # pages wait often, and may be late
STAGES = {  # name -> where its tests are, and options of pytest
    "units-and-lessons": (
        [*LESSONS, "tests/notebooks", "tests/unit", "moe_lessons", "tests/claims/test_claims_are_tagged.py"],
        ["-m", "not slow", *EVERY_CORE],
    ),
    "first-lesson": ([FIRST_LESSON], ["--reruns", "1"]),
    "claims": (["tests/claims", "tests/unit"], ["-m", "slow and not alone", *EVERY_CORE]),
    "claims-of-time": (["tests/claims"], ["-m", "alone", "--reruns", "2"]),  # other programs can spoil them
    "browser": (["tests/browser", "tests/web"], [*ONE_MORE, "--maxfail", "8", f"--ignore={FIRST_LESSON}"]),
}
QUICK = ["format", "units-and-lessons", "first-lesson"]
PYTEST = ["-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", f"--junitxml={REPORT}", "--durations=15"]
PYTEST += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=300"]
PYTEST += ["--nbval-sanitize-with=tests/notebooks/sanitize.cfg"]  # the digits of what is measured are not compared
# What is set outside must not change what a notebook shows.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MOE_LESSONS_STATIC": "", "MPLBACKEND": ""}
ENVIRONMENT |= {"MOE_LESSONS_PROGRESS": "off"}


def run(command: list[str], environment: dict[str, str] = ENVIRONMENT) -> int:
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def formatting() -> list[tuple[str, str]]:
    """Run ruff and, where npm is there or must be, eslint and prettier."""
    cases = [("ruff", "failed" if run([sys.executable, "-m", "ruff", "check", "."]) else "passed")]
    if npm := shutil.which("npm"):
        return [*cases, ("eslint", "failed" if run([npm, "run", "--prefix", "tools", "lint"]) else "passed")]
    return [*cases, ("eslint", "failed" if os.environ.get("MOE_LESSONS_REQUIRE_BROWSER") == "1" else "skipped")]


def stage(name: str) -> list[tuple[str, str]]:
    """Run the tests of a stage and return for each where it is, and 'passed', 'failed' or 'skipped'."""
    places, options = STAGES[name]
    REPORT.unlink(missing_ok=True)
    code = run([sys.executable, *PYTEST, *options, *places], ENVIRONMENT | ({} if "alone" in options else KEEP_MEMORY))
    if code not in (0, 1, 5) or not REPORT.exists():
        return [(f"{name}: pytest ended with {code}", "failed")]
    cases = [outcome(case) for case in ElementTree.parse(REPORT).iter("testcase")]
    starts = {place: place.removesuffix(".py").replace(".", "/") for place in places}
    empty = [place for place, start in starts.items() if not any(where.startswith(start) for where, _ in cases)]
    return cases + [(f"no test in {place}", "failed") for place in empty]


def outcome(case: ElementTree.Element) -> tuple[str, str]:
    found = {child.tag for child in case}
    word = "failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
    return (case.get("classname") or case.get("name")).replace(".", "/"), word


def main(names: list[str]) -> int:
    names = [*QUICK, *(name for name in STAGES if name not in QUICK)] if names == ["all"] else names or QUICK
    if unknown := set(names) - {"format", *STAGES}:
        sys.exit(f"no stage {', '.join(unknown)}; there are: all, format, {', '.join(STAGES)}")
    start, cases = time.monotonic(), []
    for name in names:
        print(f"\n=== {name}", flush=True)
        cases += formatting() if name == "format" else stage(name)
        print(f"=== {name}: done after {(time.monotonic() - start) / 60:.1f} minutes in all", flush=True)
    failed = sorted({where for where, word in cases if word == "failed"})
    print(f"\n{'FAILED: ' + ', '.join(failed) if failed else 'Nothing failed'}")
    counts = Counter(word for _, word in cases)
    print(", ".join(f"{counts[word]} {word}" for word in ("passed", "failed", "skipped")))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
