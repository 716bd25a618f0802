"""The code of the widgets, joined out of ES modules."""

import re
import shutil
import subprocess
from collections import Counter

import pytest

from moe_lessons.course.question import CurvePrediction, Prediction
from moe_lessons.support.keeper import Keeper
from moe_lessons.widgets.canvas import LiveCanvas

DEFINED = re.compile(r"^(?:async )?(?:const|let|class|function) (\w+)", re.MULTILINE)


@pytest.mark.parametrize("widget", [LiveCanvas, Keeper, Prediction, CurvePrediction])
def test_the_joined_code_of_a_widget_is_one_module(widget, tmp_path):
    code = widget._esm
    assert not re.search(r"^(import|export (?!default))", code, re.MULTILINE)
    assert max(Counter(DEFINED.findall(code)).values()) == 1
    if node := shutil.which("node"):
        (tmp_path / "joined.mjs").write_text(code, "utf-8")
        subprocess.run([node, "--check", tmp_path / "joined.mjs"], check=True)
