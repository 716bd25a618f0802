"""``python -m moe_lessons cost CONFIG.json``: what a published model costs, from its configuration alone.

Nothing is downloaded, and no code is run but that of the installed transformers."""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from moe_lessons.support.files import read_config

MOST_CONTEXT = 10**12  # tokens


def main(argv: Sequence[str]) -> int:
    """Count what a published model costs, from its configuration alone: total and active parameters, FLOPs for a token,
    bytes of the weights and the KV cache, and the tokens per second that known machines can reach at best. Nothing is
    downloaded, and no code is run but that of the installed transformers. The exit status is 1, with one
    sentence, where there is nothing to count."""
    parser = argparse.ArgumentParser(prog="python -m moe_lessons cost", description=main.__doc__)
    parser.add_argument("config", metavar="CONFIG.json", help="a model's configuration, or a folder with config.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--context", type=int, default=4096, help="tokens of the text that is written (default: 4096)")
    options = parser.parse_args(argv)
    try:
        print(report(options.config, options.context, options.json))
    except ValueError as error:
        if options.json:
            print(json.dumps({"error": str(error)}))
        print(f"cost: {error}", file=sys.stderr)
        return 1
    return 0


def report(path: str, context: int, as_json: bool) -> str:
    """Write what the model of a configuration costs. What is refused is so, if it can be, before torch is imported."""
    if not 0 <= context <= MOST_CONTEXT:
        raise ValueError(f"context must be a whole number from 0 to {MOST_CONTEXT:,}, got {context!s:.80}")
    config = read_config(path)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    from moe_lessons.hub.published import as_tables, cost_report, count_config

    costs = cost_report(count_config(config), context)
    return json.dumps(costs, indent=2) if as_json else as_tables(costs)
