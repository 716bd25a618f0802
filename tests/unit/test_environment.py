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


def test_conda_asks_for_the_same_packages_in_the_same_ranges_and_there_is_one_version():
    wanted = {r.name: str(r.specifier) for r in map(Requirement, PROJECT["dependencies"])}
    assert all(">=" in bounds and "+" not in bounds for bounds in wanted.values())  # '+': a build of one machine
    wanted = {CONDA_NAMES.get(name, name): bounds for name, bounds in wanted.items()}
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip = environment["dependencies"]
    conda = {r.name: str(r.specifier) for r in map(Requirement, packages)}
    assert conda == wanted | {"python": PROJECT["requires-python"], "pip": ""}
    assert pip == {"pip": ["-e ."]} and environment["channels"] == ["conda-forge", "nodefaults"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert moe_lessons.__version__ == PROJECT["version"] == citation["version"]
