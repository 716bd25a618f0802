"""CONTRIBUTING.md to the letter, in a copy of the repository: a lesson is added, and a router with a knob."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


class Copy:
    def __init__(self, folder: Path):
        self.folder = folder
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
        if listed.returncode:
            pytest.skip("this is no clone")
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                self.write(name, (ROOT / name).read_bytes())

    def write(self, name: str, content: bytes | str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def insert(self, name: str, before: str, text: str) -> None:
        """Write `text` before the only place of `before` in a file."""
        old = (self.folder / name).read_text("utf-8")
        assert old.count(before) == 1, (name, before)
        self.write(name, old.replace(before, text + before))

    def python(self, *arguments: str) -> str:
        environment = os.environ | {
            "PYTHONPATH": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "MOE_LESSONS_PROGRESS": "off",
        }
        command = [sys.executable, *arguments]
        ran = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-3000:]
        return ran.stdout

    def test(self, *places: str) -> None:
        self.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *places)


@pytest.fixture
def copy(tmp_path) -> Copy:
    return Copy(tmp_path)


FIRST = """# 13 · The share

**Each expert has its share of the tokens.**

**The question.** How is a load written?

**How long.** About 30 minutes. You need [top-k](GLOSSARY.md#top-k), the [router](GLOSSARY.md#router), the
[load](GLOSSARY.md#load), an [expert](GLOSSARY.md#expert) and an [assignment](GLOSSARY.md#assignment).

**At the end you can say** what a share is."""
TO_WRITE = "def my_share(counts):\n    # counts (E,): the share of each\n    ..."
IMPORTS = """from moe_lessons.course import Quiz
from moe_lessons.exercises import own_share
from moe_lessons.plots.theme import LessonFigure"""
DRAWN = "figure = LessonFigure()\nfigure.add_subplot().bar([0, 1], [3, 1])\nfigure"
CELLS = [
    new_markdown_cell(FIRST),
    new_code_cell(IMPORTS, metadata={"tags": ["install"]}),
    new_code_cell(DRAWN),
    new_markdown_cell("**What to notice.** One bar is higher.", metadata={"tags": ["claim:one-bar-is-higher"]}),
    new_markdown_cell("### Exercise ★ The share"),
    new_code_cell(TO_WRITE, metadata={"tags": ["exercise:own_share"]}),
    new_code_cell("own_share.check(my_share)"),
    new_markdown_cell("## Check yourself"),
    new_code_cell('Quiz("13")'),
]
QUIZ = "".join(
    f"## {name}\nWhat is a share?\n\n- [{a}] A part of all — {x} it is.\n- [{b}] A number of tokens — {y} it is.\n\n"
    for name, a, b, x, y in (("one", "x", " ", "Yes:", "No, a count"), ("two", "x", " ", "Yes,", "No, a sum"))
)
QUIZ += "## three\nWhich is one?\n\n- [ ] Three — No: it is a count.\n- [x] A half — Yes: it is a part.\n"
EXERCISE = '''"""Lesson 13: the share of each expert."""

import torch

from moe_lessons.exercises.exercise import exercise


def my_share(counts):
    return counts / counts.sum()


@exercise(1, my_share, [(lambda counts: counts, "These are the counts.")], "the share", axes=("expert",))
def own_share() -> list[tuple]:
    return [(torch.tensor(counts),) for counts in ([3.0, 1.0], [1.0, 2.0, 5.0])]
'''
CLAIM = """import pytest


@pytest.mark.claim("one-bar-is-higher")
def test_one_bar_is_higher():
    assert 3 > 1
"""


def test_a_lesson_is_added_as_the_page_says(copy):
    nbformat.write(new_notebook(cells=CELLS), copy.folder / "notebooks/13_the_share.ipynb")
    copy.write("moe_lessons/course/quizzes/13.md", QUIZ)
    copy.write("moe_lessons/exercises/lesson_13.py", EXERCISE)
    copy.write("moe_lessons/exercises/hints/13.md", "## own_share\n- Divide by the sum.\n")
    copy.write("tests/claims/test_lesson_13.py", CLAIM)
    right = '    ("own_share", lambda counts: [float(own) / float(sum(counts)) for own in counts]),\n'
    copy.insert("tests/unit/test_exercise_answers.py", '    ("masked_weights", divided', right)
    copy.insert("docs/instructors.md", "What works in a class", "Lesson 13 is for whoever wants more.\n\n")
    copy.python("-m", "tools.render", "--busy", "notebooks/13_the_share.ipynb", "notebooks/course.ipynb")
    assert (
        "| 13 | [The share](notebooks/13_the_share.ipynb) | what a share is |"
        in (copy.folder / "README.md").read_text()
    )
    places = "test_layers test_course test_exercises test_exercise_answers test_tools".split()
    copy.test(
        *(f"tests/unit/{name}.py" for name in places), "tests/notebooks", "tests/claims/test_claims_are_tagged.py"
    )
    copy.test("tests/claims/test_lesson_13.py", "--nbval", "--nbval-current-env", "notebooks/13_the_share.ipynb")
    copy.python("-m", "ruff", "check", ".")


ROUTER = '''class WarmRouter(TopKRouter):
    """Top-k of logits that are divided by a temperature (arXiv:1503.02531, eq. 1): x (T, D) -> `Routing`.

    >>> WarmRouter(d_model=4, num_experts=8, top_k=2)(torch.randn(3, 4)).topk_indices.shape
    torch.Size([3, 2])
    """

    temperature = 1.0

    def choose(self, logits: Tensor) -> Routing:
        return super().choose(logits / self.temperature)


'''
KNOB = """    Knob(
        name="temperature",
        label="Temperature",
        tip="The router's logits are divided by it; no unit",
        stops=(0.5, 1.0, 2.0, 4.0),
        is_above=True,
        off=1.0,
        needs=lambda module: hasattr(module, "temperature"),
        idle="this router has no temperature",
        attribute=True,
    ),
"""
LOOP = '''"""A router with a temperature against a loop."""

import pytest
import torch

from moe_lessons.nn.routing import WarmRouter
from moe_lessons.training import PlaneSetting
from moe_lessons.training.as_pytorch import as_pytorch
from moe_lessons.widgets import Playground, RoutingLab


@pytest.mark.parametrize("num_tokens, top_k", [(0, 1), (1, 2), (5, 4)])
def test_it_chooses_as_the_loop(num_tokens, top_k):
    router, x = WarmRouter(3, 4, top_k), torch.randn(num_tokens, 3)
    router.temperature = 2.0
    for token, chosen in zip(x, router(x).topk_indices):
        probs = [float(row @ token) / 2 for row in router.weight]
        assert chosen.tolist() == sorted(range(4), key=lambda e: -probs[e])[:top_k]


def test_it_trains_where_the_page_says():
    lab = Playground(router="warm", temperature=2.0)
    lab.advance(2)
    assert lab.main_run.model.block.router.temperature == 2 and "temperature" in lab.inputs
    assert RoutingLab("json", router="warm", num_layers=1, d_model=16, num_experts=4).inputs["router"].value == "warm"
    with pytest.raises(ValueError, match="warm"):
        as_pytorch(PlaneSetting(router="warm"))
    with pytest.raises(ValueError, match="temperature must be 1.0"):
        PlaneSetting(temperature=2.0)
'''


def test_a_router_with_a_knob_is_added_as_the_page_says(copy):
    copy.insert("moe_lessons/nn/routing.py", "class SigmoidRouter(", ROUTER)
    copy.insert("moe_lessons/nn/routing.py", '    "sigmoid": ', '    "warm": WarmRouter,\n')
    copy.insert("moe_lessons/training/knobs.py", '    Knob(\n        name="lr",', KNOB)
    copy.insert("moe_lessons/training/knobs.py", "    lr: float\n", "    temperature: float\n")
    copy.insert("moe_lessons/training/settings.py", "    lr: float = 0.02\n", "    temperature: float = 1.0\n")
    copy.write("tests/unit/test_warm.py", LOOP)
    places = (
        "test_warm test_knobs test_as_pytorch test_routing test_moe test_playground test_layers test_refused".split()
    )
    copy.test(*(f"tests/unit/{name}.py" for name in places), "--doctest-modules", "moe_lessons/nn/routing.py")
    copy.python("-m", "ruff", "check", ".")
