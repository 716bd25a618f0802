"""The tests beside this one are made for each notebook found: that any is found must be tested apart."""

from pathlib import Path


def test_there_are_lessons():
    assert (Path(__file__).resolve().parents[2] / "notebooks" / "00_welcome.ipynb").is_file()
