"""``python -m moe_lessons app``: the playground, the wall of facts and the calculators, without code, under Voila."""

import argparse
import os
import sys
from collections.abc import Sequence

from moe_lessons.commands.lab import JUPYTER, has_display


def main(argv: Sequence[str] = ()) -> int:
    """Serve the page to this machine; it prints its address and stays."""
    parser = argparse.ArgumentParser("python -m moe_lessons app", description=main.__doc__)
    parser.add_argument("--no-browser", action="store_true", help="print the address and open no browser")
    parser.add_argument("--theme", choices=("light", "dark"), default="light", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8866, help="default: %(default)s, or the next that is free")
    options = parser.parse_args(argv)
    try:
        from voila.app import Voila
    except ImportError:
        print('The app needs Voila: run `pip install "moe_lessons[app]"`.', file=sys.stderr)
        return 1
    # The template 'offline': that of Voila, without the icons that it fetches from elsewhere.
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(JUPYTER), os.environ.get("JUPYTER_PATH")]))
    arguments = [  # this page, this machine only; each visitor has a kernel
        str(JUPYTER / "app.ipynb"),
        "--template=offline",
        f"--theme={options.theme}",
        f"--port={options.port}",
        f"--Voila.open_browser={not options.no_browser and has_display()}",
        "--Voila.ip=127.0.0.1",
        "--VoilaConfiguration.allow_theme_override=YES",  # …?theme=dark
        "--MappingKernelManager.cull_idle_timeout=600",  # seconds after a page is gone
        "--MappingKernelManager.cull_interval=60",
    ]
    Voila.launch_instance(arguments)
    return 0
