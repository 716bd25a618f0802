"""The benchmark at tiny sizes: what is compared is the same computation, and the table holds what was measured."""

import json
import sys
from functools import partial

import pandas as pd
import pytest
import torch

from moe_lessons.nn import DISPATCH, EQUAL_ACTIVE, EQUAL_TOTAL, LanguageModel, TransformerConfig
from tools import bench
from tools import bench_cases as cases
from tools.bench_cases import AUTO, FORWARD, MIXTURE, PASSES, TRAINING, Case, Layer, all_cases

CPU = torch.device("cpu")
SMALL = Layer(E=4, K=2, T=24, D=8, F=4)
MODEL = TransformerConfig(d_model=8, d_ff=4, num_layers=2, num_heads=2, num_kv_heads=1, num_experts=4)
HAS_HF = cases.transformers_version() is not None
HF, HF_FEW = ["HF eager", "HF grouped_mm"], ["HF eager", "HF grouped_mm", "HF batched_mm"]
needs_hf = pytest.mark.skipif(not HAS_HF, reason="needs the extra hf")
TINY = [
    Case(f"forward, {SMALL}", EQUAL_ACTIVE, partial(cases.each_way, SMALL, FORWARD), threads=1),
    Case("training", MIXTURE, partial(cases.training, MODEL, 2, 5)),
]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench, "all_cases", lambda quick: TINY[: 1 if quick else 2])
    monkeypatch.setattr(bench, "rounds_within", lambda seconds, calls: 2)


@pytest.fixture
def without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # makes its import fail


def test_what_the_documents_state_is_measured():
    names = [f"{case.name}: over {case.baseline}" for case in all_cases()]
    layers = ["E=8, K=2, T=2048, D=256, F=512", "E=64, K=8, T=2048, D=256, F=128", "E=8, K=2, T=256, D=16, F=4"]
    wanted = {f"{which}, Layer({sizes}): over equal-active twin" for which in PASSES for sizes in layers}
    wanted |= {f"training, LanguageModel(L=3, D={d}, F={d}, E=8, K=2): over MoE" for d in (64, 128)}
    wanted |= {f"decoding, LanguageModel(L=4, D=512, F=1024, E={e}, K=2): over MoE" for e in (8, 16)}
    wanted |= {"decoding, LanguageModel(L=3, D=64, F=64, E=8, K=2): over MoE"}
    assert wanted <= set(names) and len(set(names)) == len(names)
    assert len(all_cases(quick=True)) < len(names)
    assert [case.threads for case in all_cases() if "D=16" in case.name] == [1, 1]


@pytest.mark.parametrize("which", PASSES)
def test_every_way_computes_the_same(which):
    calls = cases.each_way(SMALL, which)
    assert list(calls) == [EQUAL_ACTIVE, AUTO, *(f"MoE, {way}" for way in DISPATCH)]
    ffn, auto, *others = (call() for call in calls.values())
    assert ffn[0].shape == auto[0].shape == (24, 8) and not auto[0].requires_grad
    for other in others:
        torch.testing.assert_close(other, auto)
    shapes = [(24, 8)] if which == FORWARD else [(24, 8), (4, 8), (4, 8, 8), (4, 8, 4)]  # x, router, gate and up, down
    assert [tensor.shape for tensor in auto] == shapes
    torch.testing.assert_close(calls[AUTO](), auto)  # nothing piles up from call to call


@needs_hf
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("layer", [SMALL, SMALL._replace(T=4), Layer(8, 1, 24, 8, 64)])
def test_the_block_of_hugging_face_computes_the_same(layer, which):
    calls = cases.beside_hf(layer, which)
    assert list(calls) == [AUTO, *(HF_FEW if layer.T == 4 else HF)]
    ours = calls.pop(AUTO)()
    for call in calls.values():
        for a, b in zip(call(), ours, strict=True):
            torch.testing.assert_close(a, b)


def test_more_experts_are_the_same_layer_otherwise():
    calls = cases.more_experts([SMALL, SMALL._replace(E=8)], TRAINING)
    assert {name: [tuple(g.shape) for g in call()] for name, call in calls.items()} == {
        f"E={e}": [(24, 8), (e, 8), (e, 8, 8), (e, 8, 4)] for e in (4, 8)
    }


@needs_hf
def test_the_model_of_hugging_face_is_the_same(monkeypatch):
    models, theirs = cases.make_models(MODEL, output_router_logits=True)
    assert list(models) == [MIXTURE, EQUAL_ACTIVE, EQUAL_TOTAL]
    ours, ids = models[MIXTURE].eval(), torch.randint(256, (1, 7))
    logits = cases.in_each_way(theirs.eval(), lambda: lambda: theirs(input_ids=ids), cases.HF_WAYS_FEW_TOKENS)
    assert list(logits) == HF_FEW
    for name, call in logits.items():
        out = call()
        assert f"HF {theirs.get_experts_implementation()['']}" == name
        torch.testing.assert_close(out.logits, ours(ids)[0], rtol=1e-4, atol=1e-5)
        assert out.aux_loss > 0  # trained with the auxiliary loss, as ours is
    written = theirs.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(written, ours.generate(ids, 5, temperature=0))


def test_a_training_step_trains():
    model, ids = LanguageModel(MODEL), torch.randint(256, (2, 6))
    before = [parameter.clone() for parameter in model.parameters()]
    cases.training_step(model, ids)()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_a_model_is_timed_beside_its_twins_and_hugging_face():
    ours = [MIXTURE, EQUAL_ACTIVE, EQUAL_TOTAL]
    assert list(cases.training(MODEL, 2, 5)) == [*ours, *HF]
    calls = cases.decoding(MODEL)
    assert list(calls) == [*ours, *HF_FEW]
    for name in calls if HAS_HF else ours:
        ids = calls[name]()
        assert ids.shape == (1, 49) and ids.unique().numel() > 30  # other tokens need other experts


def test_each_is_divided_by_what_ran_in_the_same_rounds(monkeypatch):
    """From turn to turn the machine gets twice as slow; what is timed takes 3 times its baseline."""
    turns = []

    def slower_and_slower(calls, rounds):
        turns.append(len(calls))
        return [[3.0 * 2 ** len(turns)] * rounds, [2.0 ** len(turns)] * rounds]

    def refuse():
        raise RuntimeError("strides should be multiple of 16 bytes\nand more")

    monkeypatch.setattr(bench, "take_turns", slower_and_slower)
    calls = {"base": int, "one": int, "picky": refuse, "two": int}
    one, picky, two = bench.measure(Case("name", "base", lambda: calls), CPU, seconds=0.01)
    assert one["case"] == "name: over base" and turns == [2, 2]
    assert [row["median"] for row in (one, two)] == [3, 3] and [row["baseline_ms"] for row in (one, two)] == [2, 4]
    assert picky["note"] == "strides should be multiple of 16 bytes" and "median" not in picky


def test_files_and_table_hold_every_row(tiny, capsys, tmp_path):
    files = tmp_path / "bench.json", tmp_path / "bench.png"
    assert bench.main(["--threads", "1", "--json", str(files[0]), "--plot", str(files[1])]) == 0
    report, out = json.loads(files[0].read_text()), capsys.readouterr().out
    assert report["machine"]["processor"] and report["machine"]["torch"] == torch.__version__
    ways = [AUTO, *(f"MoE, {way}" for way in DISPATCH)]
    assert [row["what"] for row in report["rows"]] == [*ways, EQUAL_ACTIVE, EQUAL_TOTAL, *HF]
    for row in report["rows"]:
        assert row["note"] or 0 < row["low"] <= row["median"] <= row["high"]
        assert row["baseline_ms"] > 0 and row["threads"] == 1
        assert f"\n{row['case']} (" in out and f"\n  {row['what']:<20}" in out
    assert max(map(len, out.splitlines())) <= 120
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_quick_measures_less_and_the_threads_are_given_back(tiny, monkeypatch):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(bench, "measure", lambda case, device, seconds: seen.append(torch.get_num_threads()) or [])
    bench.main(["--threads", str(before + 1)])
    bench.main(["--threads", str(before + 2), "--quick"])
    assert seen == [1, before + 1, 1]  # the first case has a number of its own
    assert torch.get_num_threads() == before


def test_without_transformers_the_rows_say_so(tiny, capsys, without_transformers):
    assert bench.main([]) == 0
    out = capsys.readouterr().out
    assert "transformers missing" in out and "nan" not in out
    assert out.count("needs transformers 5.18 or newer") == len(HF)
    assert list(cases.beside_hf(SMALL, FORWARD)) == [AUTO, *HF]


def test_the_picture_shows_medians_and_quartiles():
    rows = [("a", "x", 2.0, 1.0, 4.0), ("a", "y", 1.0, 0.5, 1.5), ("b", "x", 3.0, 3.0, 3.0), ("b", "z", *[None] * 3)]
    figure = bench.draw(pd.DataFrame(rows, columns=["case", "what", "median", "low", "high"]))
    (ax,) = figure.axes
    points = {c.get_label(): c.lines[0].get_xydata().round().tolist() for c in ax.containers}
    assert points == {"x": [[2, 0], [3, 1]], "y": [[1, 0]]}  # the median, and the row of the case
    assert ax.containers[0].lines[2][0].get_segments()[0][:, 0].tolist() == [1, 4]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.yaxis_inverted() and ax.get_xscale() == "log"
    assert len(figure.legends) == 1


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--threads", "0"], "threads must be a whole number of at least 1, got 0"),
        (["--threads", "two"], "invalid int value: 'two'"),
        (["--device", "abacus"], "device must be one of 'cpu'"),
        (["--plot", "nowhere/bench.png"], "plot must be a file in a folder that exists, got 'nowhere/bench.png'"),
        (["--json", "."], "json must be a file in a folder that exists, got '.'"),
        (["--loud"], "unrecognized arguments: --loud"),
    ],
)
def test_bad_options(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@needs_hf
@pytest.mark.parametrize("num_tokens", [1, 12])
def test_the_model_is_the_same_under_the_lens(num_tokens):
    calls = cases.beside_the_lens(MODEL, num_tokens)
    bare, watched = (call().logits for call in calls.values())
    assert list(calls) == [cases.BARE, cases.WATCHED] and bare.shape[1] == num_tokens and torch.equal(bare, watched)
    hooks = [len(call.__wrapped__.func._forward_pre_hooks) for call in calls.values()]
    assert hooks == [0, 1]
