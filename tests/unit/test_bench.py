"""The benchmark at tiny sizes: what is compared is the same computation, and the table holds what was measured."""

from functools import partial

import pytest
import torch

from moe_lessons.nn import DISPATCH, EQUAL_ACTIVE, EQUAL_TOTAL, TransformerConfig
from tools import bench
from tools import bench_cases as cases
from tools.bench_cases import AUTO, FORWARD, MIXTURE, PASSES, Case, Layer, all_cases

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


def test_what_the_documents_state_is_measured():
    names = [f"{case.name}: over {case.baseline}" for case in all_cases()]
    layers = ["E=8, K=2, T=2048, D=256, F=512", "E=64, K=8, T=2048, D=256, F=128", "E=8, K=2, T=256, D=16, F=4"]
    wanted = {f"{which}, Layer({sizes}): over equal-active twin" for which in PASSES for sizes in layers}
    wanted |= {f"training, LanguageModel(L=3, D={d}, F={d}, E=8, K=2): over MoE" for d in (64, 128)}
    wanted |= {f"decoding, LanguageModel(L=4, D=512, F=1024, E={e}, K=2): over MoE" for e in (8, 16)}
    assert wanted <= set(names) and len(set(names)) == len(names) > len(all_cases(quick=True))


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
    baseline_ms, found = bench.measure(Case("name", "base", lambda: calls), CPU, seconds=0.01)
    assert baseline_ms == 4 and turns == [2, 2] and [found[name].median for name in ("one", "two")] == [3, 3]
    assert found["picky"] == "strides should be multiple of 16 bytes"


def test_the_table_has_every_row_and_the_threads_are_given_back(tiny, capsys):
    before = torch.get_num_threads()
    assert bench.main(["--threads", str(before + 1)]) == 0
    out = capsys.readouterr().out
    for name in (AUTO, *(f"MoE, {way}" for way in DISPATCH), EQUAL_ACTIVE, EQUAL_TOTAL, *HF):
        assert f"\n  {name:<20}" in out
    assert [line[-2:] for line in out.splitlines() if "threads:" in line] == ["1)", f"{before + 1})"]
    assert torch.get_num_threads() == before and max(map(len, out.splitlines())) <= 120
    bench.main(["--quick"])
    assert capsys.readouterr().out.count("threads:") == 1
