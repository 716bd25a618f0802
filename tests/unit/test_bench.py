"""The benchmark at tiny sizes: what is compared is the same computation, and the tables hold what was measured."""

import json

import pytest
import torch

from moe_lessons import bench
from moe_lessons.bench import Size
from moe_lessons.nn import DISPATCH, choose_dispatch, dense_twin

WAYS = [*DISPATCH, "auto"]
CPU = torch.device("cpu")
SMALL = Size(num_experts=4, top_k=2, num_tokens=12, d_model=8, d_ff=4)
LARGE = Size(num_experts=8, top_k=1, num_tokens=12, d_model=8, d_ff=64)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench, "SIZES", (SMALL, LARGE))
    monkeypatch.setattr(bench, "QUICK_SIZES", (SMALL,))
    monkeypatch.setattr(bench, "SERIES", ((SMALL, LARGE),) * 2)
    monkeypatch.setattr(bench, "rounds_within", lambda seconds, calls: 2)
    monkeypatch.setattr(bench, "milliseconds_per_step", lambda run, steps: run.step().ms_per_step)


def test_the_size_of_the_target_is_measured():
    assert Size(8, 2, 2048, 256, 512) in bench.SIZES
    assert Size(8, 2, 2048, 256, 512) in bench.QUICK_SIZES


def test_json_holds_every_way_for_every_size_and_pass(tiny, capsys):
    assert bench.main(["--json", "--threads", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["cpu"] and report["machine"]["threads"] == 1
    assert report["machine"]["torch"] == torch.__version__
    rows = report["layers"]
    assert [(Size(**row["size"]), row["pass"]) for row in rows] == [
        (size, which) for size in (SMALL, LARGE) for which in ("forward", "forward + backward")
    ]
    for row in rows:
        assert list(row["ratios"]) == WAYS and row["skipped"] == []
        assert all(0 < ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in row["ratios"].values())
        assert row["ffn_ms"] > 0 and row["auto_takes"] == "dense"
    assert len(report["crossings"]) == 2
    assert all(ms > 0 for ms in report["playground_ms_per_step"].values())


def test_the_tables_are_readable(tiny, capsys):
    assert bench.main([]) == 0
    out = capsys.readouterr().out
    assert out.count(str(LARGE)) == 4  # two passes, two series
    for text in (*WAYS, "forward + backward", f"torch {torch.__version__}", " thread", "A training step of the"):
        assert text in out
    assert "skipped" not in out
    assert max(map(len, out.splitlines())) <= 120


def test_quick_measures_less(tiny, capsys):
    bench.main(["--quick", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert [Size(**row["size"]) for row in report["layers"]] == [SMALL, SMALL]
    assert len(report["crossings"]) == 1


def test_every_expert_on_every_token_is_left_out_where_it_takes_for_ever(tiny, capsys, monkeypatch):
    flops = 2 * 12 * 8 * 3 * 8 * 64  # T tokens on E experts, without the router
    monkeypatch.setattr(bench, "DENSE_LIMIT", 1)
    assert "dense" in bench.compare(SMALL, "forward", CPU, 0.1)["ratios"]  # only twice the arithmetic
    monkeypatch.setattr(bench, "DENSE_LIMIT", 2 * flops)
    assert "dense" in bench.compare(LARGE, "forward", CPU, 0.1)["ratios"]
    monkeypatch.setattr(bench, "DENSE_LIMIT", flops)
    bench.main([])
    out = capsys.readouterr().out
    assert out.count("skipped ") == 2 and "skipped: every expert on every token" in out
    row = bench.compare(LARGE, "forward", CPU, 0.1)
    assert list(row["ratios"]) == ["loop", "auto"] and row["skipped"] == ["dense"]


def test_all_ways_run_the_same_layer_on_the_same_tokens():
    moe, x = bench.make_layer(SMALL, CPU)
    again, same_x = bench.make_layer(SMALL, CPU)
    assert torch.equal(x, same_x) and torch.equal(moe(x)[0], again(x)[0])
    for way in WAYS:
        layer = bench.with_dispatch(moe, way)
        assert layer.dispatch == way and moe.dispatch == "auto"
        assert all(a is b for a, b in zip(layer.parameters(), moe.parameters(), strict=True))
        torch.testing.assert_close(layer(x)[0], moe(x)[0])


def test_the_passes_are_what_they_are_called():
    moe, x = bench.make_layer(SMALL, CPU)
    y, _ = bench.one_pass(moe, x, "forward")()
    assert not y.requires_grad
    for layer in (moe, dense_twin(moe, "active")):
        gradients = bench.one_pass(layer, x, "forward + backward")()
        assert [g.shape for g in gradients] == [x.shape, *(p.shape for p in layer.parameters())]
        assert all(p.grad is None for p in layer.parameters())  # nothing piles up from round to round


def test_the_crossing_lies_where_the_ratio_is_one():
    assert bench.crossing([1, 100], [0.5, 2]) == pytest.approx(10)  # halfway between the logarithms
    assert bench.crossing([1, 10, 1000], [0.2, 0.1, 10]) == pytest.approx(100)
    assert bench.crossing([1, 10], [0.5, 1]) == pytest.approx(10)
    assert bench.crossing([1, 10], [0.5, 0.9]) is None
    assert bench.crossing([1, 10], [1.5, 3]) is None


def test_the_crossing_is_measured_in_what_auto_looks_at(tiny):
    found = bench.find_crossing([Size(8, 2, 256, d_model, 2 * d_model) for d_model in (8, 32, 64)], CPU, 0.1)
    moe, x = bench.make_layer(Size(8, 2, 256, 64, 128), CPU)
    assert found["wasted_per_expert"][-1] == (8 - 2) * 256 * 2 * 64 * 128 / 8
    assert found["auto_takes"][-1] == choose_dispatch(moe.experts, moe(x)[1])
    dense = [w for w, way in zip(found["wasted_per_expert"], found["auto_takes"]) if way == "dense"]
    loop = [w for w, way in zip(found["wasted_per_expert"], found["auto_takes"]) if way == "loop"]
    assert dense and loop and max(dense) < min(loop)


def test_rounds_fit_the_time_within_limits(monkeypatch):
    monkeypatch.setattr(bench, "milliseconds", lambda call: call() or 10)
    assert bench.rounds_within(1.0, [lambda: None] * 4) == 25
    assert bench.rounds_within(0.001, [lambda: None]) == 5
    assert bench.rounds_within(1e9, [lambda: None]) == 200


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--threads", "0"], "threads must be a whole number of at least 1, got 0"),
        (["--threads", "two"], "invalid int value: 'two'"),
        (["--device", "abacus"], "device must be one of 'cpu'"),
        (["--loud"], "unrecognized arguments: --loud"),
    ],
)
def test_bad_options(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_threads_are_given_back(tiny, capsys):
    before = torch.get_num_threads()
    bench.main(["--quick", "--threads", str(before + 1)])
    assert f"{before + 1} threads" in capsys.readouterr().out
    assert torch.get_num_threads() == before
