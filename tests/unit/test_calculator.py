"""The calculator: what its sliders show is what it draws, and what cannot be combined cannot be chosen."""

import dataclasses
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lessons.analysis.cost import MODEL_SHAPES, TransformerShape
from moe_lessons.widgets.calculator import SIZES, CostCalculator

MIXTRAL = MODEL_SHAPES["Mixtral 8x7B"]


@pytest.fixture
def calculator():
    return CostCalculator()


def shown(calculator) -> dict[str, int]:
    return {name: calculator.sliders[name].value for name in SIZES}


def assert_consistent(calculator):
    for name, value in shown(calculator).items():
        assert value == getattr(calculator.shape, name), name
    top_k = calculator.sliders["top_k"]
    assert top_k.value <= top_k.max == calculator.shape.num_experts
    assert calculator.shape.num_heads % calculator.shape.num_kv_heads == 0


def png_size(png: memoryview) -> tuple[int, int]:
    assert bytes(png[:4]) == b"\x89PNG"
    return struct.unpack(">II", png[16:24])


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_preset_by_name_and_by_button(calculator, name):
    calculator.presets[name].click()
    assert calculator.shape == MODEL_SHAPES[name] == CostCalculator(name).shape
    assert_consistent(calculator)
    assert repr(calculator) == f"CostCalculator({name!r}, context_length=4096)"


def test_repr_makes_the_same_view_again(calculator):
    calculator.sliders["d_ff"].value = 1024
    calculator.sliders["num_experts"].value = 64
    calculator.sliders["context_length"].value = 8192
    again = eval(repr(calculator), {"CostCalculator": CostCalculator, "TransformerShape": TransformerShape})
    assert again.shape == calculator.shape and again.context_length == 8192
    assert repr(again) == repr(calculator)


def test_top_k_never_exceeds_the_experts(calculator):
    calculator.sliders["top_k"].value = 8
    calculator.sliders["num_experts"].value = 4
    assert calculator.shape.top_k == calculator.sliders["top_k"].value == 4
    calculator.sliders["top_k"].value = 7  # the slider stops at its end
    assert calculator.shape.top_k == 4
    calculator.sliders["num_experts"].value = 1
    assert calculator.shape.top_k == 1 and calculator.shape.parameters()["router"].total == 0


def test_heads_follow_d_model(calculator):
    calculator.sliders["d_model"].value = 128 * 15
    assert (calculator.shape.num_heads, calculator.shape.num_kv_heads) == (15, 5)
    assert_consistent(calculator)


@given(moves=st.lists(st.tuples(st.sampled_from(SIZES), st.floats(0, 1)), min_size=1, max_size=4))
@settings(max_examples=6, deadline=None)
def test_any_moves_leave_a_possible_shape(moves):
    calculator = CostCalculator()
    for name, place in moves:
        slider = calculator.sliders[name]
        if hasattr(slider, "options"):
            slider.value = slider.options[round(place * (len(slider.options) - 1))]
        else:
            slider.value = slider.min + round(place * (slider.max - slider.min))
        assert_consistent(calculator)


def test_a_move_redraws_with_the_same_size_and_tells_it_in_words(calculator):
    before, words = calculator.image.value, calculator.words.value
    calculator.sliders["num_experts"].value = 16
    assert calculator.image.value != before and calculator.words.value != words
    assert png_size(calculator.image.value) == png_size(before)
    assert calculator.image.tooltip == calculator.sentence()


def test_one_move_draws_once(calculator, monkeypatch):
    drawn = []
    monkeypatch.setattr(CostCalculator, "_draw", lambda self: drawn.append(self.shape))
    calculator.sliders["top_k"].value = 8
    calculator.sliders["num_experts"].value = 4  # moves top_k too
    calculator.presets["OLMoE 1B-7B"].click()  # moves all
    assert len(drawn) == 3


def test_the_sentence_has_the_figures(calculator):
    for figure in ("46.7 B parameters", "12.9 B", "27.6%", "93.4 GB", "27.6 B FLOPs"):
        assert figure in calculator.sentence()


def test_the_page_turns_dark(calculator):
    light = calculator.image.value
    calculator._front_end.dark = True
    assert calculator.image.value != light


def test_every_control_says_what_it_does(calculator):
    for control in (*calculator.sliders.values(), *calculator.presets.values()):
        assert control.description and control.tooltip


def test_static_form_has_no_widget(calculator, monkeypatch):
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")
    data, _ = calculator._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"}
    assert data["text/plain"] == repr(calculator)
    monkeypatch.setenv("MOE_LESSONS_STATIC", "0")
    data, _ = calculator._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data and "image/png" in data


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"shape": "GPT-5"}, "shape must be one of 'Mixtral 8x7B'.*got 'GPT-5'"),
        ({"context_length": 1000}, "context_length must be one of 0, 512.*got 1000"),
        ({"shape": dataclasses.replace(MIXTRAL, num_layers=500)}, "num_layers between 1 and 128, got 500"),
        ({"shape": dataclasses.replace(MIXTRAL, head_dim=64)}, r"num_heads · head_dim equal to d_model \(4096\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CostCalculator(**arguments)
