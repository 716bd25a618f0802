"""Data files are found, in a checkout and in an installed wheel."""

import runpy
import shutil

import pytest

from moe_lessons.support import data as datafiles


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(FileNotFoundError, match=r"no data file 'models.csv' in .*; there are: .*README.md"):
        datafiles.data_path("models.csv")


def test_in_a_wheel_the_files_lie_inside_the_package(tmp_path):
    (tmp_path / "data").mkdir()  # some other package's folder must not be taken for ours
    (tmp_path / "moe_lessons" / "data").mkdir(parents=True)
    (tmp_path / "moe_lessons" / "data" / "a.csv").touch()
    installed = runpy.run_path(shutil.copy(datafiles.__file__, tmp_path / "moe_lessons"))
    assert installed["data_path"]("a.csv") == tmp_path / "moe_lessons" / "data" / "a.csv"
