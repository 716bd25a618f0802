"""``make test``: every check in order, two at a time where that disturbs nothing, and one line that sums up.

``python tests/run.py unit claims`` runs only the groups named. A group fails when a test in it fails and when
it holds no test; with MOE_LESSONS_REQUIRE_BROWSER=1 the browser group also fails when a test was skipped.
"""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "build" / "test-reports"
PYTEST = [sys.executable, "-m", "pytest", "-q"]
COMMANDS = {
    "ruff": [sys.executable, "-m", "ruff", "check", "."],
    "unit": [*PYTEST, "tests/unit", "moe_lessons"],  # moe_lessons: the examples in its docstrings
    "claims": [*PYTEST, "tests/claims"],
    "notebooks": [*PYTEST, "tests/notebooks"],
    "nbval": [*PYTEST, "--nbval", "--nbval-current-env", "--nbval-cell-timeout=300", "notebooks"],
    "browser": [*PYTEST, "tests/browser"],
}
ROUNDS = [["ruff"], ["claims", "unit", "nbval", "notebooks"], ["browser"]]  # the browser measures time, alone
AT_ONCE = 2
CLEARED = ("MOE_LESSONS_STATIC", "MPLBACKEND")  # what is set outside must not change what a notebook shows
ENVIRONMENT = {
    "unit": {"OMP_NUM_THREADS": "1"},  # it shares two cores with the claims
    "claims": {"OMP_NUM_THREADS": "1"},
    "nbval": {"MOE_LESSONS_STATIC": "1"},  # the stored outputs are those of the static form
}


def main(names: list[str]) -> int:
    unknown = set(names) - set(COMMANDS)
    if unknown:
        print(f"unknown group {', '.join(unknown)}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    failed_groups = []
    for round_ in ROUNDS:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for group in pool.map(Group, [name for name in round_ if not names or name in names]):
                counts = group.show()
                totals = {key: totals[key] + counts[key] for key in totals}
                if counts["failed"]:
                    failed_groups.append(group.name)
    verdict = "Nothing failed, but some tests were skipped." if totals["skipped"] else "Everything passed."
    print("\n" + (f"FAILED: {', '.join(failed_groups)}" if failed_groups else verdict))
    print(", ".join(f"{number} {key}" for key, number in totals.items()))
    return 1 if failed_groups else 0


class Group:
    """One group of tests, run to its end; its output is kept until it is its turn to be shown."""

    def __init__(self, name: str):
        self.name = name
        self.report = REPORTS / f"{name}.xml"
        REPORTS.mkdir(parents=True, exist_ok=True)
        self.report.unlink(missing_ok=True)
        command = list(COMMANDS[name])
        if name != "ruff":
            command += [f"--junitxml={self.report}", "-o", "junit_family=xunit2", "-p", "no:cacheprovider"]
        environment = {key: value for key, value in os.environ.items() if key not in CLEARED}
        environment.update(ENVIRONMENT.get(name, {}))
        began = time.monotonic()
        with tempfile.TemporaryFile() as output:
            self.code = subprocess.call(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
            output.seek(0)
            self.output = output.read().decode(errors="replace")
        self.seconds = time.monotonic() - began

    def show(self) -> dict[str, int]:
        """Show the output under a heading, and count."""
        print(f"\n=== {self.name} " + "=" * (70 - len(self.name)))
        print(self.output, end="")
        counts = {"passed": int(self.code == 0), "failed": int(self.code != 0), "skipped": 0}
        if self.name != "ruff":
            counts = self.count(self.code)
        result = "FAILED" if counts["failed"] else "passed"
        print(f"--- {self.name}: {result} after {self.seconds:.0f} s", flush=True)
        return counts

    def count(self, code: int) -> dict[str, int]:
        """What pytest's report says; whatever is wrong beside it counts as one more failure."""
        suites = ElementTree.parse(self.report).getroot().iter("testsuite") if self.report.is_file() else []
        seen = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
        for suite in suites:
            seen = {key: seen[key] + int(suite.get(key, 0)) for key in seen}
        failed = seen["failures"] + seen["errors"]
        passed = seen["tests"] - failed - seen["skipped"]
        must_not_skip = self.name == "browser" and os.environ.get("MOE_LESSONS_REQUIRE_BROWSER") == "1"
        problem = ""
        if seen["tests"] == 0:
            problem = "no test was found"
        elif must_not_skip and seen["skipped"]:
            problem = f"{seen['skipped']} skipped although MOE_LESSONS_REQUIRE_BROWSER is 1"
        elif code != 0 and not failed:
            problem = f"pytest ended with {code}"
        if problem:
            print(f"{self.name}: {problem}")
        return {"passed": passed, "failed": failed + bool(problem), "skipped": seen["skipped"]}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
