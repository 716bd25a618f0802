"""The calculators: what their sliders show is what they draw and say, and what cannot be combined cannot be chosen."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_tools import mark

from moe_lessons.analysis import Machine, plan, published_models, timing, union_law
from moe_lessons.analysis.counting import MODEL_SHAPES, TransformerShape
from moe_lessons.analysis.roofline import published_sizes, sizes_of, step_seconds
from moe_lessons.plots.marks import Line, Parts, Rule, Table
from moe_lessons.training.knobs import KNOBS
from moe_lessons.hub import ConfigCalculator
from moe_lessons.widgets import CostCalculator, PlanCalculator
from moe_lessons.widgets.calculators import SIZES, SLIDERS

MIXTRAL = MODEL_SHAPES["Mixtral 8x7B"]


@pytest.fixture
def cost():
    return ConfigCalculator()


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
    assert mark(cost, 2, Table).columns == (name, "equal-active twin", good, "equal-total twin")
    assert_consistent(cost)
    settings = "context_length=4096, batch_size=1, machine='NVIDIA H100 SXM', weights='bfloat16'"
    assert repr(cost) == f"ConfigCalculator({name!r}, {settings}, dense_width={width:.1f})"


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


def test_the_top_k_never_exceeds_the_experts(cost):
    top_k = cost.inputs["top_k"]
    move(cost, num_experts=8, top_k=8)
    for num_experts in (4, 16):
        move(cost, num_experts=num_experts)
        assert (top_k.value, top_k.max) == (4, num_experts)
    assert cost.shape.top_k == 4
    move(cost, num_experts=1)
    assert cost.shape.top_k == 1 and cost.shape.parameters()["router"].total == 0
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
    again = eval(repr(cost), {"ConfigCalculator": ConfigCalculator, "TransformerShape": TransformerShape})
    assert (again.shape, repr(again)) == (cost.shape, repr(cost))
    assert again.canvas.words["words"] == cost.canvas.words["words"]


def test_one_move_draws_once(cost):
    drawn = cost.canvas.frame
    move(cost, top_k=8)
    move(cost, num_experts=4)  # moves top_k too
    cost.presets["OLMoE 1B-7B"].click()  # moves all
    assert cost.canvas.frame == drawn + 3


def test_the_sentence_has_the_figures(cost):
    for figure in ("46.7 B parameters", "12.9 B", "27.6%", "93.4 GB", "27.6 B FLOPs", "They do not fit", "129 tokens"):
        assert figure in cost.sentence()
    move(cost, machine="NVIDIA H200 SXM")
    assert "They fit into one NVIDIA H200 SXM" in cost.sentence()


def cells(calculator, row: str) -> list[str]:
    """What the table says in the row whose name begins so."""
    table = mark(calculator, 2, Table)
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
    assert mark(cost, 2, Table).columns[0] == name and cost.sizes == published_sizes()[name]
    again = eval(repr(cost), {"ConfigCalculator": ConfigCalculator})
    assert (again.sizes, repr(again), again.sentence()) == (cost.sizes, repr(cost), cost.sentence())
    assert all(cost.inputs[size].disabled for size in SIZES)  # they show another model
    move(cost, published=SLIDERS)
    assert not any(cost.inputs[size].disabled for size in SIZES) and cost.name == "Mixtral 8x7B"
    move(cost, published=name)
    move(cost, num_layers=3)
    assert cost.inputs["published"].value == SLIDERS and cost.name == "this model"
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


def test_a_batch_moves_what_a_step_reads_the_speed_and_what_must_fit(cost):
    speeds = [mark(cost, 1, Line, i).y for i in range(4)]
    assert speeds[2].tolist() == [1] * len(KNOBS["batch_size"].stops) and speeds[0][0] > 1.8 > 0.6 > min(speeds[0])
    for batch, said in ((1, "1 text"), (64, "64 texts")):
        move(cost, batch_size=batch)
        table = cost.table()
        rows = {name: texts[0] for name, texts in zip(table.rows, table.cells)}
        seconds = step_seconds(cost.sizes, Machine(3.35e12, 989.4e12), "bfloat16", batch, 4096)
        assert rows[f"tokens/s of {said}"] == f"{batch / seconds:,.0f}"
        assert rows["experts of a layer that a step reads"] == f"{union_law(8, 2, batch):.3g} of 8"
        assert rows["weights that a step reads"] == f"{2e-9 * cost.sizes.read(batch):.3g} GB"
        assert f"tokens/s of {said}" in table.rows and mark(cost, 1, Rule).x == KNOBS["batch_size"].stops.index(batch)
    assert (
        rows["KV cache of 64 texts of 4,096 tokens"] == "34.4 GB"
        and "34.4 GB of KV cache for 64 texts" in cost.sentence()
    )
    move(cost, weights="4-bit")
    assert cells(cost, "fits")[0] == "yes"
    move(cost, batch_size=256)
    assert cells(cost, "fits")[0] == "no"  # the weights do, but not with so many caches


def test_a_machine_of_your_own():
    shape = TransformerShape(256, 512, 2, 8, 4, 64, 1024, num_experts=16, top_k=2)
    cost = CostCalculator(shape, 0, 4, Machine(10e9, 80e9), "float32")
    assert "On this machine they would write" in cost.sentence() and not any("fits" in row for row in cost.table().rows)
    assert cells(cost, "tokens/s")[1] == f"{4 / (4 * cost.sizes.dense().read() / 10e9):,.0f}"
    again = eval(repr(cost), {name: globals()[name] for name in ("CostCalculator", "Machine", "TransformerShape")})
    assert (repr(again), again.sentence()) == (repr(cost), cost.sentence())
    move(cost, machine="NVIDIA H200 SXM")
    assert "They fit into one NVIDIA H200 SXM" in cost.sentence() and "machine='NVIDIA H200 SXM'" in repr(cost)


def test_what_goes_wrong_once_does_not_stop_a_calculator(cost):
    with pytest.raises(ZeroDivisionError):
        cost.change(lambda: 1 / 0)
    frame = cost.canvas.frame
    move(cost, top_k=4)
    assert cost.shape.top_k == 4 and cost.canvas.frame == frame + 1


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


def test_a_plan_of_a_model_with_few_experts_and_what_does_not_fit():
    planned = PlanCalculator("Mixtral 8x7B")
    assert planned.settings["expert_parallel"] == 8 and "GB, of the 80 that it has" in planned.sentence()
    move(planned, pipeline_parallel=1, expert_parallel=1)
    assert "GB, more than it has" in planned.sentence()


def test_every_control_says_what_it_does(cost, planned):
    assert all(button.tooltip for button in cost.presets.values())
    for calculator in (cost, planned):
        for control in calculator.inputs.values():
            assert calculator.canvas.words["tips"][control.description] == control.tooltip != ""


def test_a_static_page_has_the_picture_and_no_widget(planned, monkeypatch):
    for static in ("1", "0"):
        monkeypatch.setenv("MOE_LESSONS_STATIC", static)
        data, metadata = planned._repr_mimebundle_()
        live = set() if static == "1" else {"application/vnd.jupyter.widget-view+json"}
        assert set(data) == {"image/png", "text/plain"} | live and data["text/plain"] == repr(planned)
        assert metadata["image/png"]["alt"] == planned.sentence()


def test_the_same_panels_as_a_figure(cost):
    assert [ax.get_title(loc="left") for ax in cost.picture("dark").axes] == [panel.title for panel in cost.panels()]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": "GPT-5"}, "model must be one of 'Mixtral 8x7B'.*got 'GPT-5'"),
        ({"model": "nowhere/config.json"}, "^there is no file nowhere/config.json$"),
        ({"machine": "abacus"}, "^machine must be one of 'NVIDIA A100 80GB SXM'.*got 'abacus'$"),
        ({"weights": "fp3"}, "^weights must be one of 'float32', .*, got 'fp3'$"),
        ({"dense_width": 0.5}, "^dense_width must be a finite number of at least 1, got 0.5$"),
        ({"context_length": 1000}, "context_length must be one of 0, 512.*got 1000"),
        ({"machine": 10e9}, "machine must be one of .*got 10000000000.0$"),
        ({"batch_size": 3}, "^batch_size must be one of 1, 2, 4, .*, got 3$"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConfigCalculator(**arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": "GPT-5"}, "^model must be one of 'Switch-Base-8'.*got 'GPT-5'$"),
        ({"devices": 100}, "^devices must be one of 1, 2, 4.*got 100$"),
        ({"model": "Mixtral 8x7B", "expert_parallel": 64}, "^expert_parallel must be one of 1, 2, 4, 8, got 64$"),
        ({"imbalance": 0.5}, "^imbalance must be a finite number of at least 1, got 0.5$"),
        ({"machine": "abacus"}, "^machine must be one of"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PlanCalculator(**arguments)
