"""Where the course's data files lie: beside the package in a checkout, inside it in an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = (_PACKAGE.parent / "data", _PACKAGE / "data")  # a checkout first: that file is the one you edit


def data_path(name: str) -> Path:
    """The path of the data file `name`, for example ``data_path('published_models.csv')``.

    Raises FileNotFoundError, with the names that do exist, when there is no such file.

    >>> data_path('README.md').name
    'README.md'
    """
    folder = _data_folder()
    path = folder / name
    if not path.is_file():
        files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"]
        known = sorted(p.relative_to(folder).as_posix() for p in files)
        raise FileNotFoundError(f"no data file {name!r} in {folder}; there are: {', '.join(known) or 'none'}")
    return path


def _data_folder() -> Path:
    checkout, wheel = _FOLDERS
    return checkout if (checkout.parent / "pyproject.toml").is_file() and checkout.is_dir() else wheel
