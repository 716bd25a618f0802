"""``python -m tools.slides FOLDER``: write the figure of each lesson that says most, as a PNG for a slide.

A lesson marks the cell that draws it with the tag `slide`; the picture is the one that is stored in the lesson."""

import sys
from base64 import b64decode
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def slides() -> dict[str, bytes]:
    """Read them: number of the lesson -> PNG. ValueError for a lesson that does not mark exactly one."""
    found = {}
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        cells = [cell for cell in nbformat.read(path, 4).cells if "slide" in cell.metadata.get("tags", [])]
        outputs = [output.get("data", {}) for cell in cells for output in cell.outputs]
        pictures = [data["image/png"] for data in outputs if "image/png" in data]
        if len(pictures) != 1:
            raise ValueError(f"{path.name} must mark one picture with the tag 'slide', got {len(pictures)}")
        found[path.name.split("_")[0]] = b64decode(pictures[0])
    return found


def main(folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, picture in slides().items():
        Path(folder, f"{number}.png").write_bytes(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
