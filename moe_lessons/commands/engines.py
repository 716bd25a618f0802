"""``python -m moe_lessons engines MODEL_DIR --out FOLDER``: files for torchtitan, Megatron Core, DeepSpeed and vLLM."""

import argparse
from collections.abc import Sequence

from moe_lessons.hub.engine_files import write_engine_configs


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m moe_lessons engines", description="See docs/engines.md.")
    parser.add_argument("model", metavar="MODEL_DIR", help="a Mixtral, as hub.export_model saves it")
    parser.add_argument("--out", metavar="FOLDER", default=".", help="where the files go (default: here)")
    parser.add_argument("--ranks", type=int, default=2, help="GPUs, which share the experts (default: 2)")
    options = parser.parse_args(argv)
    try:
        written = write_engine_configs(options.model, options.out, options.ranks)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(*(f"{engine}: {path}" for engine, path in written.items()), sep="\n")
    return 0
