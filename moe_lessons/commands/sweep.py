"""``python -m moe_lessons sweep NAME``: train many small models, for the lessons to compare; resumable."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from moe_lessons.analysis.sweeps import GROUPS, SWEEPS, train_missing
from moe_lessons.support.data import FOLDER
from moe_lessons.support.errors import check_positive_int


def main(argv: Sequence[str] = ()) -> int:
    about = "Train many small language models, and keep what they showed. Interrupt it when you like: it goes on."
    parser = argparse.ArgumentParser("python -m moe_lessons sweep", description=about)
    parser.add_argument("name", choices=[*SWEEPS, *GROUPS], help="what each is for: data/README.md")
    parser.add_argument("--output", type=Path, default=FOLDER / "results", help="default: data/results")
    parser.add_argument("--jobs", type=int, default=1, help="processes of this machine that train (default: 1)")
    parser.add_argument("--dask", metavar="ADDRESS", help="train on a dask cluster: tcp://scheduler:8786")
    options = parser.parse_args(argv)
    try:
        check_positive_int("--jobs", options.jobs)
        for name in GROUPS.get(options.name, [options.name]):
            train_missing(name, options.output / f"{name}.jsonl", options.jobs, options.dask)
    except ImportError as error:
        parser.error(f"--dask needs {error.name or error}: pip install 'moe_lessons[cluster]'")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\nInterrupted: the runs that are finished are kept, and the same command goes on.")
        return 130
    return 0
