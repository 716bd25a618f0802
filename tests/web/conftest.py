"""What the page trains with, and a server of a folder."""

import contextlib

import pytest

from tests.chromium import skip
from web.serve import serving
from web.training_page import find_runtime


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != "test_site.py")  # it takes longest, and so is begun first


@pytest.fixture(scope="session")
def runtime() -> None:
    """The onnxruntime-web that a page trains with is there."""
    try:
        find_runtime()
    except SystemExit as missing:
        skip(str(missing).rstrip("."))


@pytest.fixture(scope="session")
def serve():
    """serve(folder): the address of a server of these files, as `python -m web.serve` has it."""
    with contextlib.ExitStack() as stack:
        yield lambda folder: stack.enter_context(serving(folder, 0))
