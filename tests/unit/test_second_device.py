"""Nothing is on the wrong device, and a step seldom waits: tried on a device that needs no hardware."""

import re
import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("second_device_cases.py")


def test_everything_runs_on_a_device_that_is_not_the_cpu():
    """In a process of its own, since the device changes torch itself."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=CASES.parents[2])
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", ran.stdout)[1]) > 20
