"""The calculators: what their sliders show is what they draw and say, and what cannot be combined cannot be chosen."""

import dataclasses
import json
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_tools import mark

from moe_lessons.analysis import Machine, plan, published_models, timing, union_law
from moe_lessons.analysis.cost import MODEL_SHAPES, TransformerShape
from moe_lessons.analysis.roofline import published_sizes, sizes_of
from moe_lessons.plots.marks import Bars, Line, Parts, Points, Table
from moe_lessons.training.knobs import KNOBS
from moe_lessons.widgets import CostCalculator, DecodingCalculator, PlanCalculator, calculators
from moe_lessons.widgets.calculators import NAMES, SIZES, measure_blocks

MIXTRAL = MODEL_SHAPES["Mixtral 8x7B"]
MOE, ACTIVE, TOTAL = NAMES
MACHINE = Machine(bytes_per_second=10e9, flops_per_second=80e9)


@pytest.fixture
def cost():
    return CostCalculator()


@pytest.fixture
def decoding():
    return DecodingCalculator(MACHINE)


@pytest.fixture
def planned():
    return PlanCalculator(dispatch_bytes=1)


def move(calculator, **values) -> None:
    """Move sliders by hand."""
    for name, value in values.items():
        calculator.inputs[name].value = value


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
    assert cost.shape == MODEL_SHAPES[name] == CostCalculator(name).shape
    width = (MODEL_SHAPES[name].num_experts / MODEL_SHAPES[name].top_k) ** 0.5
    good = f"equally good dense model ({width:.2g} ×)"
    assert mark(cost, 1, Table).columns == (name, "equal-active twin", good, "equal-total twin")
    assert_consistent(cost)
    settings = "machine='NVIDIA H100 SXM', weights='bfloat16'"
    assert repr(cost) == f"CostCalculator({name!r}, context_length=4096, {settings}, dense_width={width:.1f})"


def test_a_shape_beyond_the_sliders_is_shown_and_kept():
    shape = dataclasses.replace(MIXTRAL, num_layers=500, head_dim=64, num_experts=7)
    cost = CostCalculator(shape)
    assert_consistent(cost)
    move(cost, top_k=3)
    assert cost.shape == dataclasses.replace(shape, top_k=3)


def test_the_heads_follow_the_width(cost):
    move(cost, d_model=128 * 15)
    assert (cost.shape.num_heads, cost.shape.num_kv_heads) == (15, 5)
    assert_consistent(cost)


def test_the_top_k_never_exceeds_the_experts(cost, decoding):
    for calculator in (cost, decoding):
        top_k = calculator.inputs["top_k"]
        move(calculator, num_experts=8, top_k=8)
        for num_experts in (4, 16):
            move(calculator, num_experts=num_experts)
            assert (top_k.value, top_k.max) == (4, num_experts)
    assert cost.shape.top_k == 4 and decoding.sizes == (16, 4, 1)
    move(cost, num_experts=1)
    assert cost.shape.top_k == 1 and cost.shape.parameters()["router"].total == 0
    assert_consistent(cost)


@given(st.lists(st.tuples(st.sampled_from((*SIZES, "context_length")), st.floats(0, 1)), min_size=1, max_size=4))
@settings(max_examples=10)
def test_any_moves_leave_a_possible_shape_and_its_repr_makes_the_same_view(moves):
    cost = CostCalculator()
    for name, place in moves:
        slider = cost.inputs[name]
        if hasattr(slider, "options"):
            slider.index = round(place * (len(slider.options) - 1))
        else:
            slider.value = slider.min + round(place * (slider.max - slider.min) / slider.step) * slider.step
        assert_consistent(cost)
    again = eval(repr(cost), {"CostCalculator": CostCalculator, "TransformerShape": TransformerShape})
    assert (again.shape, again.context_length, repr(again)) == (cost.shape, cost.context_length, repr(cost))
    assert again.canvas.words["words"] == cost.canvas.words["words"]


def test_one_move_draws_once(cost, decoding):
    drawn = cost.canvas.frame, decoding.canvas.frame
    for calculator in (cost, decoding):
        move(calculator, top_k=8)
        move(calculator, num_experts=4)  # moves top_k too
    cost.presets["OLMoE 1B-7B"].click()  # moves all
    assert (cost.canvas.frame, decoding.canvas.frame) == (drawn[0] + 3, drawn[1] + 2)


def test_the_sentence_has_the_figures(cost):
    for figure in ("46.7 B parameters", "12.9 B", "27.6%", "93.4 GB", "27.6 B FLOPs", "They do not fit", "129 tokens"):
        assert figure in cost.sentence()
    move(cost, machine="NVIDIA H200 SXM")
    assert "They fit into one NVIDIA H200 SXM" in cost.sentence()


def cells(calculator, row: str) -> list[str]:
    """What the table says in the row whose name begins so."""
    table = mark(calculator, 1, Table)
    return next(cells for name, cells in zip(table.rows, table.cells) if name.startswith(row))


def test_the_rows_by_the_roofline_of_lesson_07(cost):
    move(cost, context_length=0)
    read = 2 * (12_879_925_248 - 32000 * 4096)  # bytes: all active weights but the embedding, a look-up
    assert cells(cost, "tokens/s")[0] == f"{3.35e12 / read:.3g}"
    ridge = 989.4 / 3.35
    assert cells(cost, "arithmetic")[1:] == ["296"] * 3 and 295 < ridge < 296
    batch = int(cells(cost, "arithmetic")[0].replace(",", ""))
    for b, reads_longer in ((batch, False), (batch - 1, True)):
        touched = 32 * 176_160_768 * (8 - union_law(8, 2, b))  # parameters of experts that nobody chose
        reading = 2 * (46_702_792_704 - 32000 * 4096 - touched) / 3.35e12
        assert (reading > b * cost.shape.flops_per_token() / 989.4e12) == reads_longer
    assert cells(cost, "fits") == ["no", "yes", "yes", "no"]
    move(cost, weights="4-bit")
    assert cells(cost, "fits") == ["yes"] * 4 and cells(cost, "weights")[0] == "23.4 GB"


def test_the_opponents_are_those_of_the_shape(cost):
    move(cost, dense_width=3.0, num_experts=16)
    assert cost.inputs["dense_width"].value == 2.8  # E / K is another: the assumption follows it
    move(cost, dense_width=3.0)
    active, good, total = [cost.models[name] for name in list(cost.models)[1:]]
    assert active == sizes_of(cost.shape.dense_twin("active")) and total == sizes_of(cost.shape.dense_twin("total"))
    assert good == sizes_of(dataclasses.replace(cost.shape.dense_twin("active"), d_ff=3 * 2 * 14336))


@pytest.mark.parametrize("name", published_sizes())
def test_a_published_model_by_name(cost, name):
    move(cost, published=name)
    row = published_models().set_index("name").loc[name]
    assert [sum(values) for values in mark(cost, 0, Parts).values] == [row.total_params, row.active_params]
    assert mark(cost, 1, Table).columns[0] == name and cost.sizes == published_sizes()[name]
    again = eval(repr(cost), {"CostCalculator": CostCalculator})
    assert (again.sizes, repr(again), again.sentence()) == (cost.sizes, repr(cost), cost.sentence())
    move(cost, num_layers=3)
    assert cost.inputs["published"].value == calculators.SLIDERS and cost.name == "this model"
    assert_consistent(cost)


def test_a_configuration_from_a_file_and_what_is_wrong_with_one(cost, tmp_path):
    pytest.importorskip("transformers")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "mixtral"}))
    move(cost, config_file=str(file))
    assert cost.sizes == sizes_of(MIXTRAL) and cost.name == "MixtralForCausalLM" and str(file) in repr(cost)
    file.write_text("{")
    move(cost, config_file=str(tmp_path))  # the folder
    assert "must be JSON" in cost.canvas.words["words"] and cost.name == "MixtralForCausalLM"
    move(cost, top_k=1)
    assert cost.inputs["config_file"].value == "" and cost.sizes == sizes_of(dataclasses.replace(MIXTRAL, top_k=1))


def test_a_slider_answers_within_80_ms(cost):
    def moves():
        for name, value in {"num_layers": 31, "top_k": 3, "dense_width": 1.5, "num_experts": 64}.items():
            move(cost, **{name: value})
        cost.take(MIXTRAL)

    assert min(timing.milliseconds(moves) for _ in range(3)) < 4 * 80


@pytest.mark.parametrize("sizes", [(8, 2, 1), (8, 2, 16), (16, 1, 4), (4, 4, 64)])
def test_the_pictures_show_the_sizes_and_the_repr_makes_them_again(decoding, sizes):
    num_experts, top_k, batch = sizes
    move(decoding, num_experts=num_experts, top_k=top_k, batch_size=batch)
    again = eval(repr(decoding), {"DecodingCalculator": DecodingCalculator, "machine": MACHINE})
    expert = 4 * 3 * 512 * 1024 / 1e6
    for calculator in (decoding, again):
        assert calculator.sizes == sizes
        batches, point = KNOBS["batch_size"].stops, mark(calculator, 0, Points)
        assert mark(calculator, 0, Line).y == [union_law(num_experts, top_k, b) for b in batches]
        assert (*point.x, *point.y) == (batches.index(batch), union_law(*sizes))
        read = [expert * union_law(*sizes), expert * top_k, expert * num_experts]
        assert mark(calculator, 1, Bars).y == pytest.approx(read)
        assert mark(calculator, 2, Bars).y == list(calculator.predicted().values())


def test_the_prediction_at_its_ends(decoding):
    assert decoding.predicted() == pytest.approx({MOE: 4, ACTIVE: 4, TOTAL: 1})  # as many bytes as active
    move(decoding, batch_size=128)  # arithmetic sets the pace of all
    assert decoding.predicted() == pytest.approx({MOE: 4, ACTIVE: 4, TOTAL: 1})
    move(decoding, batch_size=8)
    assert decoding.predicted()[MOE] == pytest.approx(8 / union_law(8, 2, 8))
    move(decoding, top_k=8)
    assert decoding.predicted() == pytest.approx({MOE: 1, ACTIVE: 1, TOTAL: 1})


def test_measuring_draws_and_says_it_until_a_slider_moves(decoding, monkeypatch):
    asked, words = [], decoding.canvas.words["words"]
    speeds = dict(zip(NAMES, (2.0, 3.0, 1.0)))
    monkeypatch.setattr(calculators, "measure_blocks", lambda *sizes: asked.append(sizes) or speeds)
    decoding.button.click()
    assert asked == [(8, 2, 1)]
    assert "measured here: 2.0 times" in decoding.canvas.words["words"]
    bars = mark(decoding, 2, Bars)
    assert bars.second == [2, 3, 1] and bars.second_name == "measured here"
    assert decoding.canvas.panels[2].y.high > 4  # the highest of both
    move(decoding, batch_size=2)
    move(decoding, batch_size=1)
    assert mark(decoding, 2, Bars).second is None and decoding.canvas.words["words"] == words


def test_blocks_are_measured_in_turns_against_the_equal_total_twin(monkeypatch):
    for name, value in {"D_MODEL": 16, "D_FF": 8, "OTHER_MEGABYTES": 1}.items():
        monkeypatch.setattr(calculators, name, value)
    called = []

    def measure(call):
        if not isinstance(call, partial):  # what fills the caches
            return 7.0
        block, (x,) = call.func, call.args
        called.append((getattr(block, "num_experts", 1), block.d_ff, tuple(x.shape)))
        return {8: 2.0, 16: 1.0, 32: 4.0}[block.d_ff]

    monkeypatch.setattr(timing, "milliseconds", measure)
    assert measure_blocks(4, 2, 3, repeats=2) == {MOE: 2, ACTIVE: 4, TOTAL: 1}
    assert called == [(4, 8, (3, 16)), (1, 16, (3, 16)), (1, 32, (3, 16))] * (timing.WARM_UP + 2)


def test_a_plan_is_that_of_its_sliders_and_its_repr_makes_it_again(planned):
    move(planned, imbalance=1.5, overlap=0.0, node_limit=0.0)
    made = plan("DeepSeek-V3", devices=2048, expert_parallel=64, pipeline_parallel=16, imbalance=1.5, dispatch_bytes=1)
    assert planned.plan() == made and made.limit in planned.canvas.words["words"]
    times, held = mark(planned, 0, Parts), mark(planned, 1, Parts)
    assert times.values[-1] == pytest.approx((made.compute, made.exchange)) and sum(held.values[0]) == pytest.approx(
        made.memory / 1e9
    )
    again = eval(repr(planned), {"PlanCalculator": PlanCalculator})
    assert (again.plan(), repr(again)) == (made, repr(planned))


def test_there_are_as_many_devices_as_a_layout_needs(planned):
    move(planned, devices=32)
    assert [planned.inputs[name].value for name in ("expert_parallel", "pipeline_parallel")] == [32, 1]
    move(planned, expert_parallel=256)
    assert planned.plan().devices == 256
    frame = planned.canvas.frame
    move(planned, pipeline_parallel=4)
    assert planned.plan().devices == 1024 and planned.canvas.frame == frame + 1


def test_every_control_says_what_it_does(cost, decoding, planned):
    assert all(button.tooltip for button in (*cost.presets.values(), decoding.button))
    for calculator in (cost, decoding, planned):
        for control in calculator.inputs.values():
            assert calculator.canvas.words["tips"][control.description] == control.tooltip != ""


@pytest.mark.parametrize("name", ["cost", "decoding", "planned"])
def test_a_static_page_has_the_picture_and_no_widget(name, request, monkeypatch):
    calculator = request.getfixturevalue(name)
    for static in ("1", "0"):
        monkeypatch.setenv("MOE_LESSONS_STATIC", static)
        data, metadata = calculator._repr_mimebundle_()
        live = set() if static == "1" else {"application/vnd.jupyter.widget-view+json"}
        assert set(data) == {"image/png", "text/plain"} | live and data["text/plain"] == repr(calculator)
        assert metadata["image/png"]["alt"] == calculator.sentence()
    light, dark = calculator.picture(), calculator.picture("dark")
    assert light.png() != dark.png()
    assert [ax.get_title(loc="left") for ax in light.axes] == [panel.title for panel in calculator.panels()]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": "GPT-5"}, "model must be one of 'Mixtral 8x7B'.*got 'GPT-5'"),
        ({"model": "nowhere/config.json"}, "^there is no file nowhere/config.json$"),
        ({"machine": "abacus"}, "^machine must be one of 'NVIDIA A100 80GB SXM'.*got 'abacus'$"),
        ({"weights": "fp3"}, "^weights must be one of 'float32', .*, got 'fp3'$"),
        ({"dense_width": 0.5}, "^dense_width must be a finite number of at least 1, got 0.5$"),
        ({"context_length": 1000}, "context_length must be one of 0, 512.*got 1000"),
        ({"machine": 10e9}, "^machine must be a Machine, as measure_machine returns, got float$"),
        ({"machine": MACHINE, "num_experts": 3}, "^num_experts must be one of 2, 4, 8, 16, got 3$"),
        ({"machine": MACHINE, "top_k": 9}, r"^top_k must be between 1 and num_experts \(8\), got 9$"),
        ({"machine": MACHINE, "batch_size": 3}, "^batch_size must be one of 1, 2, 4, .*, got 3$"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        (CostCalculator if isinstance(arguments.get("machine", ""), str) else DecodingCalculator)(**arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": "GPT-5"}, "^model must be one of 'Switch-Base-8'.*got 'GPT-5'$"),
        ({"devices": 100}, "^devices must be one of 1, 2, 4.*got 100$"),
        ({"model": "Mixtral 8x7B"}, "^expert_parallel must be one of 1, 2, 4, 8, got 64$"),
        ({"imbalance": 0.5}, "^imbalance must be a finite number of at least 1, got 0.5$"),
        ({"machine": "abacus"}, "^machine must be one of"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PlanCalculator(**arguments)
