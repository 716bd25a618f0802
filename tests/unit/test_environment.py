"""environment.yml asks for what pyproject.toml asks for, and the version is stated alike everywhere."""

from pathlib import Path

import yaml
from packaging.requirements import Requirement

import moe_lessons

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def ranges(requirements):
    return {requirement.name: requirement.specifier for requirement in map(Requirement, requirements)}


def test_conda_asks_for_the_same_packages_in_the_same_ranges():
    wanted = {CONDA_NAMES.get(name, name): spec for name, spec in ranges(PROJECT["dependencies"]).items()}
    conda = ranges(line for line in ENVIRONMENT["dependencies"] if isinstance(line, str))
    python = conda.pop("python")
    conda.pop("pip")
    assert conda == wanted
    assert str(python) == PROJECT["requires-python"]


def test_conda_installs_the_course_itself_from_the_checkout():
    (pip,) = [line for line in ENVIRONMENT["dependencies"] if isinstance(line, dict)]
    assert pip == {"pip": ["-e ."]}
    assert ENVIRONMENT["channels"] == ["conda-forge", "nodefaults"]


def test_every_dependency_has_a_range_and_no_build_of_one_machine():
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert ">=" in str(requirement.specifier), f"{requirement} has no lower bound"
        assert "+" not in str(requirement.specifier), f"{requirement} names a local build"


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert moe_lessons.__version__ == PROJECT["version"] == citation["version"]
