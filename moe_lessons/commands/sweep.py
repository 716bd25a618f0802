"""``python -m moe_lessons sweep NAME``: train many small models, for the lessons to compare; resumable."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from moe_lessons.analysis.sweeps import GROUPS, SWEEPS, train_missing
from moe_lessons.support.data import FOLDER
from moe_lessons.support.errors import check_positive_int

ROW = r"^\| (`.*?\.jsonl`) \| .*? ?\| (.*) \|$"  # of the table in data/README.md: files, the command, what for


def main(argv: Sequence[str] = ()) -> int:
    about = "Train many small language models, and keep what they showed. Interrupt it when you like: it goes on."
    rows = re.findall(ROW, (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    names = [f"  {files.replace('`', '').replace('.jsonl', '')}: {what}" for files, what in rows]
    names = "\n".join(["NAME is one of these, or modern for all that begin so:", *names])
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m moe_lessons sweep", description=about, epilog=names, formatter_class=shape
    )
    parser.add_argument("name", metavar="NAME", choices=[*SWEEPS, *GROUPS], help="what is trained: see below")
    parser.add_argument("--output", type=Path, default=FOLDER / "results", help="default: data/results")
    parser.add_argument("--jobs", type=int, default=1, help="processes of this machine that train (default: 1)")
    parser.add_argument("--dask", metavar="ADDRESS", help="train on a dask cluster: tcp://scheduler:8786")
    options = parser.parse_args(argv)
    try:
        check_positive_int("--jobs", options.jobs)
        if options.dask:
            print(f"Connecting to the dask scheduler at {options.dask} …", flush=True)
        for name in GROUPS.get(options.name, [options.name]):
            train_missing(name, options.output / f"{name}.jsonl", options.jobs, options.dask)
    except ImportError as error:
        parser.error(f"--dask needs {error.name or error}: pip install 'moe_lessons[cluster]'")
    except BrokenPipeError:
        raise
    except OSError as error:
        folder = f"--output must be a folder that can be written, got {options.output}: {error.strerror}"
        parser.error(folder if error.strerror else str(error))
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\nInterrupted: the runs that are finished are kept, and the same command goes on.")
        return 130
    return 0
