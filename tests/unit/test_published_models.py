"""The table of published models: complete, consistent, and equal to what the model classes have."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest

from moe_lessons.analysis.counting import published_models
from moe_lessons.analysis.roofline import published_sizes
from moe_lessons.support.data import data_path

CSV = data_path("published_models.csv")


def load_maker():
    path = CSV.with_name("make_published_models.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    maker = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # data/ is packed as it lies
        spec.loader.exec_module(maker)
    return maker


maker = load_maker()
build, built = maker.build, {}


def build_once(model):
    if (key := repr(model)) not in built:
        built[key] = build(model)
    return built[key]


maker.build = build_once


def test_counted_agrees_with_published_except_where_the_note_says_why():
    frame = published_models()
    assert len(frame) == len(maker.MODELS) == 16 and frame.total_params.is_monotonic_decreasing
    assert (frame.total_params / 1e9 / frame.total_published_b - 1).abs().max() < 0.012
    active = frame.dropna(subset="active_published_b")
    off = (active.active_params / 1e9 / active.active_published_b - 1).abs()
    assert set(active.name[off > 0.025]) == {"gpt-oss-20b", "GLM-4.5"}
    assert active.note[off > 0.025].str.contains("embedding").all()


@pytest.mark.parametrize("model", maker.MODELS, ids=lambda model: model.name)
def test_csv_equals_the_model_class(model):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    if not hasattr(transformers, model.hf_class):
        pytest.skip(f"transformers {transformers.__version__} has no {model.hf_class}")
    with Path(CSV).open(encoding="utf-8", newline="") as file:
        stored = {row["name"]: row for row in csv.DictReader(file)}
    assert {column: str(value) for column, value in maker.row(model).items()} == stored[model.name]
    assert published_sizes()[model.name] == maker.count(model)
