"""Data files are found, and a lesson shows the source as it stands."""

import inspect

import pytest

from moe_lessons.nn import MoE
from moe_lessons.support.data import data_path
from moe_lessons.support.show import show_source


def test_a_missing_data_file_lists_what_there_is_and_a_method_is_shown_without_the_indent_of_its_class():
    with pytest.raises(FileNotFoundError, match=r"no data file 'models.csv' in .*; there are: .*README.md"):
        data_path("models.csv")
    source = show_source(MoE.forward)
    lines = source.splitlines()
    assert lines[0].startswith("def forward(self, x") and lines[1].startswith("    ")
    assert [line.strip() for line in lines] == [line.strip() for line in inspect.getsource(MoE.forward).splitlines()]
    assert repr(source) == str(source)
    assert source._repr_markdown_() == f"```python\n{source}\n```"
