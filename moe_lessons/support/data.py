"""The places of the course's data and lessons: beside the package in a checkout, inside it in an installed wheel."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
IS_CHECKOUT = (PACKAGE.parent / "pyproject.toml").is_file()
HOME = PACKAGE.parent if IS_CHECKOUT else PACKAGE
FOLDER, NOTEBOOKS = HOME / "data", HOME / "notebooks"


def data_path(name: str) -> Path:
    """Return the path of the data file `name`. Raises FileNotFoundError, with the names in its folder.

    >>> data_path("published_models.csv").name
    'published_models.csv'
    """
    if not (FOLDER / name).is_file():
        found = [path for path in FOLDER.rglob("*.*") if path.parent == (FOLDER / name).parent]
        known = sorted(path.relative_to(FOLDER).as_posix() for path in found)
        raise FileNotFoundError(f"no data file {name!r} in {FOLDER}; there are: {', '.join(known)}")
    return FOLDER / name
