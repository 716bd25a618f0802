"""The command line: ``python -m moe_lessons lab | render | bench | sweep | doctor``."""

import argparse
import importlib
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m moe_lessons", description="The course, by command.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    lab = commands.add_parser("lab", help="open the course in JupyterLab at the first lesson")
    lab.add_argument("--no-browser", action="store_true", help="print the address and open no browser")
    render = commands.add_parser("render", help="execute lessons afresh and store their static pictures")
    render.add_argument("notebooks", nargs="*", help="the notebooks to render (default: all in notebooks/)")
    commands.add_parser("bench", help="measure the speed of the layers on this machine", add_help=False)
    commands.add_parser("sweep", help="train many small models, for the lessons to compare", add_help=False)
    commands.add_parser("doctor", help="say what is wrong with this installation and what to do")
    parsed, rest = parser.parse_known_args(argv)
    options = vars(parsed)
    if options["command"] in ("bench", "sweep"):
        options["argv"] = rest  # they have options of their own
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    # Imported only now: doctor must run in a broken installation, and lab should not wait for torch.
    command = importlib.import_module(f"moe_lessons.{options.pop('command')}")
    return command.main(**options) or 0


if __name__ == "__main__":
    sys.exit(main())
