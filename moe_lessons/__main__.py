"""The command line: ``python -m moe_lessons`` lists what there is."""

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from moe_lessons import __version__

COMMANDS = {  # each is the main(argv) of the module of its name; --help after it says more
    "lab": "open the course in JupyterLab at the first lesson",
    "cost": "count what a published model costs, from its config.json",
    "sweep": "train again the many small models that lessons compare",
    "doctor": "say what is wrong with this installation and what to do",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 2 if there is none of that name."""
    try:
        code = run(*((sys.argv[1:] if argv is None else argv) or ["--help"]))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # its reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130


def run(name: str, *rest: str) -> int:
    lines = [f"  {command:<8} {about}" for command, about in COMMANDS.items()]
    overview = "\n".join(["python -m moe_lessons COMMAND (or --version, or COMMAND --help)", "", *lines])
    if name in ("--help", "-h"):
        print(overview)
    elif name == "--version":
        print(f"moe_lessons {__version__}")
    elif name in COMMANDS:  # imported only now: doctor must run in a broken installation, lab should not wait for torch
        return importlib.import_module(f"moe_lessons.commands.{name}").main(list(rest)) or 0
    else:
        hints = [f" Did you mean {near}?" for near in difflib.get_close_matches(name, COMMANDS, n=1)]
        print(f"There is no command {name!r}.{''.join(hints)}\n\n{overview}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is at work ends what it has started
    sys.exit(main())
