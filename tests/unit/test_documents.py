"""What the documents point at exists, and the README lists every lesson."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "notebooks/GLOSSARY.md"])
def test_local_links_lead_somewhere(name):
    document = ROOT / name
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not broken


def test_the_readme_lists_every_lesson():
    lessons = [path.name for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert [name for name in lessons if f"(notebooks/{name})" not in README] == []


def test_the_example_in_the_readme_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["y"].shape == names["x"].shape
    assert names["routing"].topk_indices.shape == (16, 2)
    assert names["moe"].router.weight.grad is not None
