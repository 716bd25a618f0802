"""The calculator of decoding: its three pictures follow the sliders, and what was measured goes when they move."""

import struct

import pytest

from moe_lessons.analysis import Machine, union_law
from moe_lessons.widgets import decoding
from moe_lessons.widgets.decoding import BATCHES, EXPERTS, NAMES, DecodingCalculator, measure_blocks

MOE, ACTIVE, TOTAL = NAMES
MACHINE = Machine(bytes_per_second=10e9, flops_per_second=80e9)


@pytest.fixture
def calculator():
    return DecodingCalculator(MACHINE)


@pytest.fixture
def measured(monkeypatch):
    """What is asked of `measure_blocks`, which takes no time here."""
    asked = []
    speeds = dict(zip(NAMES, (2.0, 3.0, 1.0)))
    monkeypatch.setattr(decoding, "measure_blocks", lambda *sizes: asked.append(sizes) or speeds)
    return asked


def bars_of(axes) -> list[float]:
    return [bar.get_width() for bar in axes.patches]


@pytest.mark.parametrize("sizes", [(8, 2, 1), (8, 2, 16), (16, 1, 4), (4, 4, 64)])
def test_the_pictures_show_the_sizes(calculator, sizes):
    calculator.experts.value, calculator.top_k.value, calculator.batch.value = sizes
    assert calculator.sizes == sizes
    law, read, speed = calculator.figure().axes
    num_experts, top_k, batch = sizes
    point = law.lines[-1].get_xydata()[0]
    assert point.tolist() == [BATCHES.index(batch), union_law(num_experts, top_k, batch)]
    expert = 4 * 3 * 512 * 1024 / 1e6
    assert bars_of(read) == pytest.approx([expert * union_law(*sizes), expert * top_k, expert * num_experts])
    assert bars_of(speed) == pytest.approx(list(calculator.predicted().values()))


def test_the_prediction_at_its_ends(calculator):
    assert calculator.predicted() == pytest.approx({MOE: 4, ACTIVE: 4, TOTAL: 1})  # as many bytes as active
    calculator.batch.value = 128  # arithmetic sets the pace of all
    assert calculator.predicted() == pytest.approx({MOE: 4, ACTIVE: 4, TOTAL: 1})
    calculator.batch.value = 8
    assert calculator.predicted()[MOE] == pytest.approx(8 / union_law(8, 2, 8))
    calculator.top_k.value = 8
    assert calculator.predicted() == pytest.approx({MOE: 1, ACTIVE: 1, TOTAL: 1})


def test_top_k_never_exceeds_the_experts(calculator):
    calculator.top_k.value = 8
    calculator.experts.value = 4
    assert calculator.sizes == (4, 4, 1) and calculator.top_k.max == 4
    calculator.experts.value = 16
    assert calculator.sizes == (16, 4, 1) and calculator.top_k.max == 16


def test_one_move_draws_once(calculator, monkeypatch):
    drawn = []
    monkeypatch.setattr(DecodingCalculator, "_draw", lambda self: drawn.append(self.sizes))
    calculator.top_k.value = 8
    calculator.experts.value = 4  # moves top_k too
    calculator.batch.value = 64
    assert drawn == [(8, 8, 1), (4, 4, 1), (4, 4, 64)]


def test_measuring_draws_and_says_it_until_a_slider_moves(calculator, measured):
    before, words = calculator.image.value, calculator.words.value
    calculator.button.click()
    assert measured == [(8, 2, 1)] and not calculator.button.disabled
    assert calculator.image.value != before and "measured here: 2.0 times" in calculator.words.value
    points = calculator.figure().axes[2].lines[-1].get_xydata()
    assert points.tolist() == [[2, 2], [3, 1], [1, 0]]
    calculator.batch.value = 2
    calculator.batch.value = 1
    assert calculator.image.value == before and calculator.words.value == words


def test_the_button_comes_back_after_an_error(calculator, monkeypatch):
    def fail(*sizes):
        raise MemoryError

    monkeypatch.setattr(decoding, "measure_blocks", fail)
    with pytest.raises(MemoryError):
        calculator.measure()
    assert not calculator.button.disabled and calculator.measured is None
    assert "Measuring" not in calculator.words.value


def test_blocks_are_measured_in_turns_against_the_equal_total_twin(monkeypatch):
    for name, value in {"D_MODEL": 16, "D_FF": 8, "OTHER_MEGABYTES": 1, "WARM_UP": 1}.items():
        monkeypatch.setattr(decoding, name, value)
    called = []

    def measure(call):
        block, (x,) = call.func, call.args
        called.append((getattr(block, "num_experts", 1), block.d_ff, tuple(x.shape)))
        return {8: 2.0, 16: 1.0, 32: 4.0}[block.d_ff] if len(called) > 3 else 1000.0  # what is first is slow

    monkeypatch.setattr(decoding, "stopwatch", lambda threads, device: measure)
    assert measure_blocks(4, 2, 3, repeats=2) == {MOE: 2, ACTIVE: 4, TOTAL: 1}
    assert called == [(4, 8, (3, 16)), (1, 16, (3, 16)), (1, 32, (3, 16))] * 3


def test_repr_makes_the_same_view_again(calculator):
    calculator.experts.value, calculator.batch.value = 16, 32
    again = eval(repr(calculator), {"DecodingCalculator": DecodingCalculator, "machine": MACHINE})
    assert again.sizes == (16, 2, 32) and again.image.value == calculator.image.value


def test_all_pictures_have_one_size_and_follow_the_page(calculator, measured):
    sizes = set()
    for num_experts in EXPERTS:
        calculator.experts.value = num_experts
        calculator.measure()
        sizes.add(struct.unpack(">II", calculator.image.value[16:24]))
    light = calculator.image.value
    calculator._front_end.dark = True
    assert calculator.image.value != light and sizes == {(980, 300)}
    assert calculator.image.tooltip == calculator.sentence()


def test_every_control_says_what_it_does(calculator):
    for control in (calculator.experts, calculator.top_k, calculator.batch, calculator.button):
        assert calculator._front_end.tips[control.description] == control.tooltip != ""


def test_static_form_has_no_widget(calculator, monkeypatch):
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")
    data, _ = calculator._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"} and data["text/plain"] == repr(calculator)
    monkeypatch.setenv("MOE_LESSONS_STATIC", "0")
    data, _ = calculator._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data and "image/png" in data


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"machine": 10e9}, "^machine must be a Machine, as measure_machine returns, got float$"),
        ({"num_experts": 3}, "^num_experts must be one of 2, 4, 8, 16, got 3$"),
        ({"top_k": 9}, r"^top_k must be between 1 and num_experts \(8\), got 9$"),
        ({"batch_size": 3}, "^batch_size must be one of 1, 2, 4, .*, got 3$"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DecodingCalculator(**{"machine": MACHINE} | arguments)
