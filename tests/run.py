"""``make test``: the checks that take minutes. ``make test-all``, which is ``python tests/run.py all``: those, then all
others. ``python tests/run.py claims browser``: only these stages.

A run fails when a test fails, and when a folder or a lesson has no test. Without a Chromium the tests in the browser
are skipped, and without npm the look at the JavaScript; with MOE_LESSONS_REQUIRE_BROWSER=1 they fail."""

import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
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


def run(*command: str, environment: dict[str, str] = ENVIRONMENT) -> bool:
    """Tell whether a command found nothing wrong."""
    return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


def formatting() -> bool:
    """Run ruff and, where npm is there or must be, eslint and prettier."""
    is_good = run(sys.executable, "-m", "ruff", "check", ".")
    if npm := shutil.which("npm"):
        return run(npm, "run", "--prefix", "tools", "lint") and is_good
    return is_good and os.environ.get("MOE_LESSONS_REQUIRE_BROWSER") != "1"


def stage(name: str) -> bool:
    """Tell whether all tests of a stage passed, and each of its places has one."""
    places, options = STAGES[name]
    REPORT.unlink(missing_ok=True)
    environment = ENVIRONMENT | ({} if "alone" in options else KEEP_MEMORY)
    is_good = run(sys.executable, *PYTEST, *options, *places, environment=environment)
    cases = ElementTree.parse(REPORT).iter("testcase") if REPORT.exists() else ()
    tested = [(case.get("classname") or case.get("name")).replace(".", "/") for case in cases]
    starts = {place: place.removesuffix(".py").replace(".", "/") for place in places}
    if empty := [place for place, start in starts.items() if not any(where.startswith(start) for where in tested)]:
        print(f"no test in {', '.join(empty)}")
    return is_good and not empty


def main(names: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell would ignore it
    names = [*QUICK, *(name for name in STAGES if name not in QUICK)] if names == ["all"] else names or QUICK
    if unknown := set(names) - {"format", *STAGES}:
        sys.exit(f"no stage {', '.join(unknown)}; there are: all, format, {', '.join(STAGES)}")
    start, failed = time.monotonic(), []
    for name in names:
        print(f"\n=== {name}", flush=True)
        if not (formatting() if name == "format" else stage(name)):
            failed.append(name)
        print(f"=== {name}: done after {(time.monotonic() - start) / 60:.1f} minutes in all", flush=True)
    print(f"\nFAILED: {', '.join(failed)}" if failed else "\nNothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
