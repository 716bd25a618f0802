"""``python -m moe_lessons sweep NAME``: run data/make_sweeps.py, which trains the models of the stored sweeps."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from moe_lessons.support.data import data_path


def main(argv: Sequence[str] = ()) -> int:
    if not find_spec("joblib"):
        needs = "it needs joblib: pip install -e '.[sweep]' in the folder of the course"
        print(f"sweep trains the models of the stored sweeps again; {needs}", file=sys.stderr)
        return 1
    return subprocess.run([sys.executable, data_path("make_sweeps.py"), *argv]).returncode
