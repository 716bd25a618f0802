"""``python -m moe_lessons lens MODEL --text FILE --out PAGE.html``: is the router of a published mixture healthy?

The model reads the text, and one page shows who worked. Nothing leaves this machine, and no code of the model's own
folder is run, but that of the installed transformers (extra: hf)."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from moe_lessons.hub.lens_page import load_model, look, page, read_text
from moe_lessons.support.errors import check_device, check_positive_int, first_line, say_refusal
from moe_lessons.support.files import can_be_written, write_whole


def main(argv: Sequence[str]) -> int:
    """Write the page; 1, with one sentence, where there is nothing to see."""
    parser = argparse.ArgumentParser(prog="python -m moe_lessons lens", description=__doc__.replace("``", ""))
    parser.add_argument("model", metavar="MODEL", help="a folder that save_pretrained wrote, or a name on the hub")
    parser.add_argument("--text", required=True, metavar="FILE", help="what the model is to read, in UTF-8")
    parser.add_argument("--out", metavar="PAGE.html", help="where to write the page (one that is there is replaced)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens to read at most (default: %(default)s)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    options = parser.parse_args(argv)
    if not options.out and not options.json:
        parser.error("give --out PAGE.html, or --json, or both")
    try:
        if options.out and not can_be_written(Path(options.out)):  # asked before a model is loaded, for minutes
            raise ValueError(f"--out must be a file that can be written, in a folder that is there, got {options.out}")
        text, limit = read_text(options.text), check_positive_int("tokens", options.tokens)
        device = check_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model, tokenizer = load_model(options.model, device)
        figures, routings = look(model, tokenizer, text, limit)
        figures = {"model": options.model, "text": options.text} | figures
        if options.out:
            write_whole(Path(options.out), page(figures, routings).encode("utf-8"))
    except OSError as error:  # a full disk: what was there stays
        said = f"{options.out} could not be written: {error.strerror or error}"
        return say_refusal("lens", error, said, options.json)
    except (ValueError, ImportError, RuntimeError) as error:  # the last of a device without room
        return say_refusal("lens", error, first_line(error), options.json)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print(figures["verdict"], *figures["notes"], f"The page: {options.out}", sep="\n")
    return 0
