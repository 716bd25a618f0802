"""The places of the course's data and lessons: beside the package in a checkout, inside it in an installed wheel."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
IS_CHECKOUT = (PACKAGE.parent / "pyproject.toml").is_file()
HOME = PACKAGE.parent if IS_CHECKOUT else PACKAGE
FOLDER, NOTEBOOKS = HOME / "data", HOME / "notebooks"


def data_path(name: str) -> Path:
    """Return the path of the data file `name`.

    >>> data_path("published_sizes.json").name
    'published_sizes.json'
    """
    return FOLDER / name
