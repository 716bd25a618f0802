"""The speedup map: its roofline against plain numpy, its lines, what it measures, what the view shows."""

import math
from dataclasses import astuple

import numpy as np
import pytest

from moe_lessons.analysis import EffectiveWidth, Machine, TransformerShape, speedup
from moe_lessons.analysis.inference import PROMPT, measure_machine, union_law
from moe_lessons.analysis.roofline import CACHE_BYTES, WEIGHT_BYTES, machine_for, machines, published_sizes, sizes_of
from moe_lessons.analysis.speedup import edges, edges_of, measure_speedups, speedups
from moe_lessons.nn import LanguageModel, TransformerConfig, dense_baseline
from moe_lessons.plots.labels import place_labels
from moe_lessons.plots.marks import Boxes, Heat, Line, Points, Rule
from moe_lessons.widgets import SpeedupMap

COURSE = TransformerShape(256, 512, 2, 8, 4, 64, 1024, num_experts=16, top_k=2)
BATCHES = 2.0 ** np.arange(13)
THIS = Machine(1e10, 8e10)


def numpy_speedup(shape, bandwidth, peak, w, c, x, B, S):
    """The formula of `speedups`, from the paper's letters alone."""
    V, D, L, H, G, h, F, E, K, *_ = astuple(shape)

    def time(read, flops):
        return np.maximum(read / bandwidth, flops / peak)

    matrices = 2 * L * D * h * (H + G) + V * D
    cache = time(c * B * 2 * L * G * h * S, 4 * B * L * H * h * S)
    both = time(w * (matrices + (2 * L + 1) * D), 2 * B * matrices) + cache
    experts = time(w * 3 * L * D * F * E * (1 - (1 - K / E) ** B), 2 * B * 3 * L * D * F * K)
    moe = both + time(w * L * D * E, 2 * B * L * D * E) + experts
    return (both + time(w * 3 * L * D * F * K * x, 2 * B * 3 * L * D * F * K * x)) / moe


def test_the_roofline_is_the_formula_at_200_random_settings():
    draw = np.random.default_rng(28)
    for _ in range(200):
        E, G, row = int(2 ** draw.integers(1, 9)), int(2 ** draw.integers(0, 4)), machines().iloc[draw.integers(11)]
        shape = TransformerShape(
            int(draw.integers(256, 200_000)), int(64 * draw.integers(1, 128)), int(draw.integers(1, 100)),
            G * int(draw.integers(1, 9)), G, int(draw.choice([32, 64, 128])), int(draw.integers(64, 20_000)),
            num_experts=E, top_k=int(draw.integers(1, min(E, 8) + 1)),
        )  # fmt: skip
        kind, x = draw.choice(list(WEIGHT_BYTES)), draw.uniform(1, 16)
        B, S = draw.integers(1, 4097), draw.integers(0, 9000)
        fast = kind == "fp8" and row.fp8_flops_per_second > 0
        peak = row.fp8_flops_per_second if fast else row.bf16_flops_per_second
        expected = numpy_speedup(shape, row.bytes_per_second, peak, WEIGHT_BYTES[kind], CACHE_BYTES[kind], x, B, S)
        found = speedups(sizes_of(shape), machine_for(row, kind), kind, np.array([float(B)]), int(S))
        assert found.at(np.array([x])).item() == pytest.approx(expected, rel=1e-9)
        assert found.widths(expected).item() == pytest.approx(x, rel=1e-6)  # the contour passes there
    for sizes in published_sizes().values():
        assert sum(flops for _, flops in sizes.parts(3).values()) == pytest.approx(3 * sizes.flops())


def crossings(E, K, width, ridge):
    """The first and the last batch size at which an MoE is slower, by the roofline of experts and FFN alone."""
    batches = 2.0 ** np.linspace(0, 21, 42001)
    dense = np.maximum(width * K, width * K * batches / ridge)
    slower = batches[dense / np.maximum(union_law(E, K, batches), K * batches / ridge) < 1 - 1e-12]
    return (slower[0], slower[-1]) if len(slower) else None


def test_the_edges_are_where_the_roofline_crosses_1_at_200_random_settings():
    draw = np.random.default_rng(7)
    for _ in range(200):
        E, K = int(2 ** draw.integers(3, 9)), int(2 ** draw.integers(0, 3))
        width, ridge = draw.uniform(1.2, 0.95 * E / K), draw.uniform(20, 600)
        derived, found = edges(E, K, width, ridge), crossings(E, K, width, ridge)
        assert (derived is None) == (found is None)
        if derived is None:
            continue
        (lower, upper), (first, last) = derived, found
        assert first == pytest.approx(lower, rel=1e-3)
        missing = (1 - K / E) ** last  # the part of the experts that no token chose there, though the formula has all
        assert last == pytest.approx(upper * (1 - missing), rel=1e-3)
    assert edges(16, 2, 8, 10) is None and edges(16, 2, 4, 10, 4.0)[1] == 2 * edges(16, 2, 4, 10)[1]
    h200, sizes = Machine(4.8e12, 989e12), published_sizes()
    assert edges_of(sizes["Mixtral 8x7B"], 2, h200, "bfloat16") == edges(8, 2, 2, h200.ridge)
    assert edges_of(sizes["DeepSeek-V3"], 4, h200, "bfloat16") == edges(256, 8, 4, h200.ridge, 2, 1.0)
    with pytest.raises(ValueError, match="^width must be .* at least 1, got 0.5$"):
        edges(8, 2, 0.5, 206)


@pytest.mark.parametrize("width, said, changes", [
    (2, "faster below batch size 2.4 and above 412, slower between", {}),
    (1, "about as fast at batch size 1 and above 824, slower between", {}),
    (2, "faster below batch size 2.4, slower up to 412, about as fast above", {"context_length": 65536}),
    (3.95, "faster below batch size 15 and above 209, about as fast between", {}),
    (2, "faster below batch size 2.0 and above 6,596 (beyond this map), slower between", {"num_experts": 128}),
    (4, "never slower", {}),
    (1, "about as fast at every batch size", {"top_k": 8}),
])  # fmt: skip
def test_about_as_fast_is_within_3_percent(width, said, changes):
    view = SpeedupMap("Mixtral 8x7B", machine="NVIDIA H200 SXM", width=width, **changes)
    assert view.edge_words(width) == said and said in view.sentence()


def config(**changes):
    sizes = {"d_model": 16, "num_heads": 2, "num_layers": 2, "d_ff": 8, "num_experts": 4, "top_k": 2}
    return TransformerConfig(**sizes | changes)


def test_what_is_measured_stands_beside_the_roofline_of_the_machine(monkeypatch):
    made = {"MoE": LanguageModel(config())}
    made |= {str(w): LanguageModel(config(moe_layers=(), d_ff=16 * w)) for w in (1, 3)}
    cost = {id(made["MoE"]): 6.0, id(made["1"]): 3.0, id(made["3"]): 12.0}
    monkeypatch.setattr(speedup, "take_turns", lambda steps, *_: [[cost[id(step.args[0])]] for step in steps])
    found = measure_speedups(made, (1, 4), repeats=1)
    assert found.points == ((1.0, 1, 0.5), (3.0, 1, 2.0), (1.0, 4, 0.5), (3.0, 4, 2.0))
    assert found.machine is measure_machine()
    sizes = sizes_of(TransformerShape(256, 16, 2, 2, 2, 8, 8, 4, 2, 0, True))
    by_roof = speedups(sizes, found.machine, "float32", np.array([1.0, 4.0]), PROMPT).at(np.array([1.0, 3.0]))
    rows = found.frame[found.frame.width > 0]
    np.testing.assert_allclose(rows.roofline, by_roof.ravel(), rtol=1e-6)
    assert speedup.shape_of(dense_baseline(made["MoE"])).d_ff == speedup.shape_of(made["1"]).d_ff == 16
    other = LanguageModel(TransformerConfig(d_model=32, num_heads=2, num_layers=2, moe_layers=(), d_ff=16))
    for others in ({"MoE": made["1"]}, {"other": other}, {"MoE 2": made["MoE"]}):
        models = {"MoE": made["MoE"]} | others
        with pytest.raises(ValueError, match="^models must be a mixture in all layers and then dense models, alike"):
            measure_speedups(models, (1,))
    with pytest.raises(ValueError, match="^a model must have experts in all 2 layers or in none, got 1$"):
        measure_speedups({"MoE": LanguageModel(config(moe_layers=(0,)))}, (1,))


MEASURED = ((1, 1, 0.8), (8, 256, 4.0))


def a_map(**changes) -> SpeedupMap:
    return SpeedupMap(COURSE, **{"machine": THIS, "weights": "float32", "measured": MEASURED} | changes)


def mark(view, kind: type, place: int = 0):
    return [mark for mark in view.panels()[0].marks if isinstance(mark, kind)][place]


def test_the_map_and_the_table_say_the_same_place():
    view = a_map()
    again = eval(repr(view), globals())
    assert repr(again) == repr(view) and again.sentence() == view.sentence()
    heat, points = mark(view, Heat), mark(view, Points)
    assert points.x.tolist() == [1, 8] and points.y.tolist() == [0, 8]
    for place in range(0, len(heat.titles), 17):
        width, batch = heat.places[place]
        expected = numpy_speedup(COURSE, 1e10, 8e10, 4, 4, width, 2**batch, 0)
        assert heat.titles[place].endswith(f"{width:g}×: speedup {expected:.2f}")
    table = view.panels()[1].marks[0]
    assert dict(zip(table.rows, table.cells))["bytes loaded"] == ["32.1 MB", "107 MB", ""]
    labels = {label.text for label in place_labels(view.panels()[0], 500, 400)}
    assert {"0.5", "2", "4", "MoE slower", "MoE faster"} < labels < {*heat.regions, *heat.names}
    np.testing.assert_allclose(points.fill, np.log2([0.8, 4.0]), rtol=1e-6)
    for place, line in enumerate(mark for mark in view.panels()[0].marks if isinstance(mark, Line)):
        for width, height in zip(line.x[::7], line.y[::7]):
            assert 2**height == pytest.approx(edges(16, 2, width, THIS.ridge, 4.0)[place])


def test_measured_numbers_have_room_at_the_edges_and_no_name_of_a_line_lies_on_them():
    points = [(width, batch, 1.0) for width in (1, 4, 5, 8) for batch in (4, 16, 64)]
    view = a_map(measured=points)
    panel = view.panels()[0]
    assert panel.x.low < 1 and panel.x.high > 8
    labels = np.array([(label.x, label.y) for label in place_labels(panel, 500, 400)])
    x, y, *_ = np.array(mark(view, Boxes).places).T
    said = np.column_stack([500 * (x - panel.x.low) / (panel.x.high - panel.x.low), 400 * y / 12])
    assert len(labels) > 6 and (np.abs(labels[:, None] - said) > (18, 15)).any(axis=-1).all()


def test_the_quality_matched_width_is_on_the_map_while_the_mixture_has_its_experts():
    for high, x, said in ((3.0, 3, "2 (1.5 to 3)"), (math.inf, 8, "2 (1.5 to above 8)")):
        view = a_map(matched=EffectiveWidth(2.0, 1.5, high, 1, 8))
        rules = [mark for mark in view.panels()[0].marks if isinstance(mark, Rule)]
        assert [rule.x for rule in rules] == [2, 1.5, x] and rules[0].name.endswith(said)
        assert f"{said} ×" in view.sentence()
    view.inputs["top_k"].value = 4
    assert not any(isinstance(one, Rule) for one in view.panels()[0].marks)


def test_a_click_reads_out_its_place_and_anything_else_is_ignored():
    view = a_map()
    index = mark(view, Heat).places.tolist().index([2.5, 6.0])
    messages = {"pick": "place", "index": index}, {"pick": "place", "index": 10**9}, {"pick": "token", "index": 0}
    for content in messages:
        view.canvas._handle_custom_msg(content, [])
        assert (view.width, view.batch) == (2.5, 64) and mark(view, Heat).selected.tolist() == [2.5, 6]
        assert view.canvas.words["words"] == view.sentence()


def test_controls_move_the_map_and_points_stay_where_they_were_measured():
    view = a_map()
    for name, value in (("top_k", 4), ("num_experts", 64), ("context_length", 4096), ("machine", "NVIDIA H100 SXM")):
        view.inputs[name].value = value
        assert not any(isinstance(one, Points) for one in view.panels()[0].marks)
        assert eval(repr(view), globals()).sentence() == view.sentence()
    view.inputs["num_experts"].value = 2
    assert view.inputs["top_k"].value == 2 and view.top == 2  # K = E
    assert np.abs(mark(view, Heat).z[:, 0]).max() < 0.01
    for name, value in (("num_experts", 16), ("context_length", 0), ("machine", "this machine")):
        view.inputs[name].value = value
    assert mark(view, Points).x.tolist() == [1, 8]


def test_memory_that_is_full_is_on_the_map():
    limit = mark(SpeedupMap("Mixtral 8x7B", context_length=1024, machine="NVIDIA H200 SXM"), Rule, -1)
    assert limit.kind == "end" and 2**limit.y == pytest.approx(354)
    assert SpeedupMap("DeepSeek-V3").picture().png()
