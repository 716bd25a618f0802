"""Data files are found in a checkout and in an installed wheel."""

import pytest

from moe_lessons import datafiles


def test_a_file_of_the_checkout():
    assert datafiles.data_path("README.md").read_text(encoding="utf-8").startswith("# ")


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(FileNotFoundError, match=r"no data file 'models.csv' in .*; there are: .*README.md"):
        datafiles.data_path("models.csv")


def test_in_a_wheel_the_files_lie_inside_the_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "moe_lessons"
    (package / "data").mkdir(parents=True)
    (package / "data" / "a.csv").write_text("x")
    (package.parent / "data").mkdir()  # some other package's folder must not be taken for ours
    monkeypatch.setattr(datafiles, "_FOLDERS", (package.parent / "data", package / "data"))
    assert datafiles.data_path("a.csv") == package / "data" / "a.csv"
