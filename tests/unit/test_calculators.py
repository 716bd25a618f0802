"""The calculators: what their sliders show is what they draw and say, and what cannot be combined cannot be chosen."""

import json
from dataclasses import replace
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_tools import mark

from moe_lessons.analysis import Machine
from moe_lessons.analysis.counting import MODEL_SHAPES, TransformerShape
from moe_lessons.analysis.roofline import published_sizes, sizes_of, step_seconds
from moe_lessons.hub import ConfigCalculator
from moe_lessons.hub.calculator import SIZES, SLIDERS
from moe_lessons.nn import dense_name
from moe_lessons.plots.marks import Parts, Table
from moe_lessons.widgets import ParameterMap

MIXTRAL = MODEL_SHAPES["Mixtral 8x7B"]


@pytest.fixture
def cost():
    return ConfigCalculator()


def move(calculator, **values) -> None:
    for name, value in values.items():
        calculator.inputs[name].value = value


def cells(calculator, row: str) -> list[str]:
    table = mark(calculator, 1, Table)
    return next(cells for name, cells in zip(table.rows, table.cells) if name.startswith(row))


def made_again(calculator):
    again = eval(repr(calculator), {kind.__name__: kind for kind in (ConfigCalculator, TransformerShape)})
    assert (repr(again), again.sentence()) == (repr(calculator), calculator.sentence())
    return again


def assert_consistent(calculator):
    for name in SIZES:
        assert calculator.inputs[name].value == getattr(calculator.shape, name), name
    top_k = calculator.inputs["top_k"]
    assert top_k.value <= top_k.max == calculator.shape.num_experts
    assert calculator.shape.num_heads % calculator.shape.num_kv_heads == 0
    count = calculator.shape.count
    assert [sum(values) for values in mark(calculator, 0, Parts).values] == [count.total, count.active]
    assert calculator.canvas.words["words"] == calculator.sentence()


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_preset_by_name_and_by_button(cost, name):
    cost.presets[name].click()
    assert cost.shape == MODEL_SHAPES[name]
    assert mark(cost, 1, Table).columns == (name, *dict.fromkeys(map(dense_name, (1, cost.sizes.total_width))))
    assert_consistent(cost)
    assert made_again(cost).shape == cost.shape


def test_a_shape_beyond_the_sliders_is_shown_and_kept_and_the_heads_follow_the_width():
    shape = replace(MIXTRAL, num_layers=500, head_dim=64, num_experts=7)
    cost = ConfigCalculator(shape)
    move(cost, top_k=3)
    assert cost.shape == replace(shape, top_k=3)
    move(cost, d_model=64 * 15)
    assert (cost.shape.num_heads, cost.shape.num_kv_heads) == (15, 5)
    assert_consistent(cost)


@given(st.lists(st.tuples(st.sampled_from((*SIZES, "context_length")), st.floats(0, 1)), min_size=1, max_size=4))
@settings(max_examples=10)
def test_any_moves_leave_a_possible_shape_and_its_repr_makes_the_same_view(moves):
    cost = ConfigCalculator()
    for name, place in moves:
        slider = cost.inputs[name]
        if hasattr(slider, "options"):
            slider.index = round(place * (len(slider.options) - 1))
        else:
            slider.value = slider.min + round(place * (slider.max - slider.min) / slider.step) * slider.step
        assert_consistent(cost)
    assert made_again(cost).shape == cost.shape


def test_the_sentence_and_the_table_by_the_roofline_of_lesson_04(cost):
    for figure in ("46.7 B", "12.9 B", "27.6 %", "93.4 GB", "27.6 B", "129"):
        assert figure in cost.sentence()
    move(cost, context_length=0)
    read = 2 * (12_879_925_248 - 32000 * 4096)  # bytes: all active weights but the embedding, a look-up
    assert cells(cost, "tokens/s")[0] == f"{3.35e12 / read:.3g}"
    assert cells(cost, "fits") == ["no", "yes", "no"]
    move(cost, context_length=4096, batch_size=64)
    seconds = step_seconds(cost.sizes, Machine(3.35e12, 989.4e12), "bfloat16", 64, 4096)
    assert cells(cost, "tokens/s at batch size 64")[0] == f"{64 / seconds:,.0f}"
    assert "34.4 GB" in cost.sentence()
    move(cost, weights="4-bit")
    assert cells(cost, "fits")[0] == "yes" and cells(cost, "weights")[0] == "23.4 GB"
    move(cost, batch_size=256)
    assert cells(cost, "fits")[0] == "no"  # the weights do, but not with so many caches


def test_the_opponents_are_those_of_the_shape(cost):
    move(cost, num_experts=16)
    active, total = [cost.models[name] for name in list(cost.models)[1:]]
    for sizes, experts in ((active, 2), (total, 16), (active.dense(3.0), 6)):
        assert sizes == sizes_of(replace(cost.shape, d_ff=experts * 14336, num_experts=1, top_k=1))


@pytest.mark.parametrize("name", ["Mixtral 8x7B", "DeepSeek-V3", "Jamba v0.1"])
def test_a_published_model_by_name(cost, name):
    move(cost, published=name)
    sizes = published_sizes()[name]
    assert [sum(values) for values in mark(cost, 0, Parts).values] == [sizes.total, sizes.active]
    assert mark(cost, 1, Table).columns[0] == name and made_again(cost).sizes == cost.sizes == sizes
    assert all(cost.inputs[size].layout.display == "none" for size in SIZES)  # they say another model
    move(cost, published=SLIDERS)
    assert cost.name == "Mixtral 8x7B"
    move(cost, published=name)
    move(cost, num_layers=3)
    assert not any(cost.inputs[size].layout.display for size in SIZES)
    assert cost.inputs["published"].value == SLIDERS and cost.name == "this model"
    assert_consistent(cost)


def test_a_configuration_from_a_file_and_what_is_wrong_with_one(cost, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "mixtral"}))
    move(cost, published="DeepSeek-V3")
    move(cost, config_file=str(file))
    assert cost.sizes == sizes_of(MIXTRAL) and cost.name == "MixtralForCausalLM" and str(file) in repr(cost)
    assert cost.inputs["published"].value == SLIDERS and made_again(cost).sizes == cost.sizes
    file.write_text("{")
    move(cost, config_file=str(tmp_path))  # the folder
    assert "must be JSON" in cost.problem.value == cost.sentence()
    assert cost.canvas.panels == {} and "B parameters" not in cost.canvas.words["words"]
    assert cost.picture().png()
    move(cost, top_k=1)
    assert cost.inputs["config_file"].value == "" and cost.sizes == sizes_of(replace(MIXTRAL, top_k=1))
    assert "B parameters" in cost.sentence() and cost.problem.value == ""  # what was wrong is no longer said
    assert_consistent(cost)


def test_a_size_beyond_all_that_a_page_may_ask_for_is_the_largest(cost):
    cost.inputs["num_layers"].max = 10**300
    move(cost, num_layers=10**300)
    assert cost.shape.num_layers == 2**20 and max(len(cell) for row in mark(cost, 1, Table).cells for cell in row) < 30


def test_one_token_after_another_lights_its_experts_until_all_were_there(monkeypatch):
    due, events = [], Mock(call_later=lambda _, action, place: due.append((action, place)) or Mock())
    monkeypatch.setattr("moe_lessons.widgets.recording.event_loop", lambda: events)
    monkeypatch.setattr("moe_lessons.widgets.recording.on_the_loop", lambda events, action: action())
    shown = ParameterMap(seed=3)
    outside = shown.sizes.total - 256 * shown.group.expert
    for token in range(1, 17):
        assert shown.slider.value == token and shown.button.description == ("Stop" if token < 16 else "Play")
        boxes, met = shown.panels()[0].marks[0], shown.meets[:token].any(dim=0)
        assert [fill == 3 for fill in boxes.fill[1:]] == shown.meets[token - 1].flatten().tolist()
        assert [fill != 1 for fill in boxes.fill[1:]] == met.flatten().tolist()
        assert shown.together[token - 1] == outside + int(met.sum()) * shown.group.expert
        if token < 16:
            action, place = due.pop()
            action(place)
    assert (shown.meets.sum(dim=2) == 2).all() and shown.meets.shape == (16, 32, 8) and not due
    assert shown.canvas.words["words"] == shown.sentence()
    shown.button.click()  # it begins again
    assert shown.slider.value == 1 and shown.timer
    shown.close()
    assert shown.timer.cancel.called


def test_a_still_map_shows_three_tokens_and_the_curve(monkeypatch):
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")
    still = ParameterMap(seed=3)
    met = [sum(fill != 1 for fill in panel.marks[0].fill[1:]) for panel in still.panels()[:-1]]
    assert met == [int(still.meets[:n].any(dim=0).sum()) for n in (1, 8, 16)]
