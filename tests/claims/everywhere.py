"""``python tests/claims/everywhere.py``: measure all claims but those of time as on other processors and from other
seeds, and print which of them fail where. ``… everywhere.py tests/claims/test_lesson_06.py -k topic``: only these.

A training is chaotic: another order of a sum changes its last digits, and some hundred steps later the third digit of
a loss, sometimes an expert. What a lesson says must hold all the same."""

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEEDS, NOISE = "MOE_LESSONS_SEEDS", "MOE_LESSONS_NOISE"
SETTINGS = {  # name -> environment. Where a processor lacks what is asked for, torch takes what there is
    "this machine": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "default": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
    "noise": {NOISE: "1e-6"},
    "seeds + 100": {SEEDS: "100"},
    "seeds + 2000": {SEEDS: "2000"},
    "seeds + 7000": {SEEDS: "7000"},
    "seeds + 31337": {SEEDS: "31337"},
    "seeds + 555 and noise": {SEEDS: "555", NOISE: "1e-6"},
}
PYTEST = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-m", "not alone"]


def seeds(count: int, first: int = 0) -> range:
    """Return the seeds that a claim is measured from: first, first + 1, …, all of them shifted by MOE_LESSONS_SEEDS."""
    shifted = first + int(os.environ.get(SEEDS, 0))
    return range(shifted, shifted + count)


def failures(name: str, arguments: list[str]) -> tuple[int, list[str]]:
    """Run the claims under a setting: how many there were, and the names of those that failed."""
    report = ROOT / "build" / f"claims-{name.replace(' ', '')}.xml"
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | SETTINGS[name]
    subprocess.run([*PYTEST, f"--junitxml={report}", *arguments], cwd=ROOT, env=environment)
    cases = [case for case in ElementTree.parse(report).iter("testcase") if case.find("skipped") is None]
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return len(cases), [f"{case.get('classname').rpartition('.')[2]}::{case.get('name')}" for case in failed]


def main(arguments: list[str]) -> int:
    names = [name for name in SETTINGS if f"--only={name}" in arguments] or list(SETTINGS)
    tests = [argument for argument in arguments if not argument.startswith("--only=")] or ["tests/claims"]
    found = {}
    for name in names:
        start = time.monotonic()
        print(f"=== {name}: {SETTINGS[name]}", flush=True)
        found[name] = failures(name, tests)
        print(f"{(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    failed = sorted({test for _, tests in found.values() for test in tests})
    print("\n| claim |", " | ".join(names), "|")
    print("|---|" + "---|" * len(names))
    for test in failed:
        print(f"| {test} |", " | ".join("failed" if test in tests else "" for _, tests in found.values()), "|")
    print("| passed of all |", " | ".join(f"{count - len(tests)} of {count}" for count, tests in found.values()), "|")
    number = sum(len(tests) for _, tests in found.values())
    print(f"{sum(count for count, _ in found.values()) - number} passed, {number} failed, 0 skipped")
    return 1 if number or not all(count for count, _ in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
