"""``python -m moe_lessons cost CONFIG.json``: what a published model costs, from its configuration alone.

Nothing is downloaded, and no code is run but that of the installed transformers (extra: hf)."""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from moe_lessons.hub.published import as_tables, cost_report, count_config, read_config
from moe_lessons.support.errors import check_whole

MOST_CONTEXT = 10**12  # tokens


def main(argv: Sequence[str]) -> int:
    """Count what a published model costs, from its configuration alone: total and active parameters, FLOPs for a token,
    bytes of the weights and the KV cache, and the tokens per second that known machines can reach at best. Nothing is
    downloaded, and no code is run but that of the installed transformers (extra: hf). The exit status is 1, with one
    sentence, where there is nothing to count."""
    parser = argparse.ArgumentParser(prog="python -m moe_lessons cost", description=main.__doc__)
    parser.add_argument("config", metavar="CONFIG.json", help="a model's configuration, or a folder with config.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--context", type=int, default=4096, help="tokens of the text that is written (default: 4096)")
    options = parser.parse_args(argv)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    try:
        context = check_whole("context", options.context, 0, MOST_CONTEXT)
        report = cost_report(count_config(read_config(options.config)), context)
    except (ValueError, ImportError) as error:
        missing = isinstance(error, ImportError) and f"cost needs {error.name}: pip install -e '.[hf]' in its folder"
        if options.json:
            print(json.dumps({"error": missing or str(error)}))
        print(f"cost: {missing or error}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2) if options.json else as_tables(report))
    return 0
