"""show_source: the source as it stands, readable everywhere."""

import inspect

from moe_lessons.nn import MoE
from moe_lessons.support.show import show_source


def test_a_method_is_shown_in_colour_and_as_text_without_the_indent_of_its_class():
    source = show_source(MoE.forward)
    lines = source.splitlines()
    assert lines[0].startswith("def forward(self, x") and lines[1].startswith("    ")
    assert [line.strip() for line in lines] == [line.strip() for line in inspect.getsource(MoE.forward).splitlines()]
    assert repr(source) == str(source)
    assert source._repr_markdown_() == f"```python\n{source}\n```"
