"""``python -m moe_lessons bench``: what a mixture of experts costs on this machine.

Everything is timed side by side with what it is compared with, in one process and turn by turn, and the median of
the ratios is shown: ratios of times taken side by side hold from one day to the next, milliseconds do not.

    sizes         at which sizes it measures, in full and in short
    measuring     what is compared with what
    language      a whole language model: training steps, and tokens one by one
    hugging_face  the same layer and the same model in transformers, where that is installed
    showing       the tables and the picture
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from moe_lessons.bench.measuring import measure
from moe_lessons.bench.showing import as_text, draw
from moe_lessons.bench.sizes import FULL, QUICK
from moe_lessons.errors import check_device, check_positive_int
from moe_lessons.nn import torch_threads

DESCRIPTION = """Time an MoE layer, run in each way that it can run, against a dense FFN of equal active size and
against the block of Hugging Face's transformers, where that is installed; and a whole language model likewise. Takes
two to three minutes on two cores."""


def main(argv: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="python -m moe_lessons bench", description=DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios, and the cost of more experts")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and fewer rounds: some 20 seconds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    options = parser.parse_args(argv)
    try:
        check_positive_int("threads", options.threads)
        device = check_device(options.device)
        if device.type == "meta":
            raise ValueError("device must be one that computes, got 'meta'")
        if options.plot and not (options.plot.suffix == ".png" and options.plot.parent.is_dir()):
            raise ValueError(f"plot must be a .png file in a folder that exists, got {str(options.plot)!r}")
    except ValueError as error:
        parser.error(str(error))
    with torch_threads(options.threads):
        report = measure(device, QUICK if options.quick else FULL)
    print(json.dumps(report, indent=1) if options.json else as_text(report))
    if options.plot:
        options.plot.write_bytes(draw(report).png())
    return 0
