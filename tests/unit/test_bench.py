"""The benchmark at tiny sizes: what is compared is the same computation, and the tables hold what was measured."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from moe_lessons import bench
from moe_lessons.bench import hugging_face, language, measuring, showing
from moe_lessons.bench.sizes import (
    COARSE,
    FINE,
    FORWARD,
    FULL,
    PASSES,
    QUICK,
    TRAINING,
    Plan,
    Reading,
    Size,
    Writing,
    line,
)
from moe_lessons.nn import DISPATCH, LanguageModel, MoE, TransformerConfig, choose_dispatch, dense_twin

CPU = torch.device("cpu")
SMALL = Size(num_experts=4, top_k=2, num_tokens=24, d_model=8, d_ff=4)
LARGE = Size(num_experts=8, top_k=1, num_tokens=24, d_model=8, d_ff=64)
MODEL = TransformerConfig(d_model=8, d_ff=4, num_layers=2, num_heads=2, num_kv_heads=1, num_experts=4)
READS = Reading(MODEL, num_sequences=2, num_tokens=5)
WRITES = Writing(MODEL, new_tokens=3)
TINY = Plan(
    layers=(SMALL, LARGE),
    decoding=line(SMALL, num_tokens=(1, 4)),
    lines=((TRAINING, line(SMALL, d_model=(4, 8))), (FORWARD, line(LARGE, num_experts=(2, 4, 8)))),
    grid=((FORWARD, line(SMALL, num_tokens=(3, 5))),),
    growth=line(SMALL, num_experts=(4, 8)),
    memory=(LARGE,),
    language=(READS, WRITES),
    seconds=0.01,
)
HERE = {"device": CPU, "seconds": 0.01}
OURS = [*DISPATCH, "auto"]
HAS_HF = hugging_face.transformers_version() is not None
THEIRS = ["HF eager", "HF grouped_mm"] if HAS_HF else []
needs_hf = pytest.mark.skipif(not HAS_HF, reason="needs the extra hf")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench, "FULL", TINY)
    monkeypatch.setattr(bench, "QUICK", replace(TINY, layers=(SMALL,)))
    monkeypatch.setattr(measuring, "rounds_within", lambda seconds, calls: 2)
    monkeypatch.setattr(language, "rounds_within", lambda seconds, calls: 2)
    monkeypatch.setattr(measuring, "milliseconds_per_step", lambda run, steps: run.step().ms_per_step)


@pytest.fixture
def without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # makes its import fail


def is_ratio(ratio):
    return 0 < ratio["low"] <= ratio["median"] <= ratio["high"]


# --- what is measured ------------------------------------------------------------------------------------


def test_the_sizes_of_the_targets_are_in_the_full_plan():
    assert {COARSE, FINE, Size(64, 2, 2048, 128, 128)} <= set(FULL.layers)
    assert COARSE == Size(8, 2, 2048, 256, 512) and FINE == Size(64, 8, 2048, 256, 128)
    assert [size.num_experts for size in FULL.growth] == [8, 16, 32, 64]
    assert len({replace(size, num_experts=8) for size in FULL.growth}) == 1
    forward = {(s.num_experts, s.num_tokens) for which, sizes in FULL.grid if which == FORWARD for s in sizes}
    assert {(e, t) for e in (8, 128) for t in (64, 4096)} <= forward
    assert {size.num_tokens for size in FULL.decoding} == {1, 4, 16}


@pytest.mark.parametrize("plan", [FULL, QUICK], ids=["full", "quick"])
def test_the_blocks_of_hugging_face_can_run_every_size_of_a_plan(plan):
    """Rows that are a multiple of 16 bytes: their grouped_mm refuses others."""
    grid = [size for _, sizes in plan.grid for size in sizes]
    assert all(size.d_ff % 4 == size.d_model % 4 == 0 for size in (*plan.layers, *plan.decoding, *grid))


def test_a_line_grows_in_what_is_named():
    assert line(SMALL, num_tokens=(1, 4)) == (replace(SMALL, num_tokens=1), replace(SMALL, num_tokens=4))
    assert line(SMALL, d_model=(2, 3), d_ff=(4, 6))[1] == replace(SMALL, d_model=3, d_ff=6)


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("tokens", [4, 24])
def test_compare_has_a_ratio_for_every_way(which, tokens):
    row = measuring.compare(replace(SMALL, num_tokens=tokens), which, **HERE)
    batched = ["HF batched_mm"] if HAS_HF and tokens <= 16 else []  # it is for decoding
    assert list(row["ratios"]) == [*OURS, *THEIRS, *batched] and row["skipped"] == {}
    assert all(map(is_ratio, row["ratios"].values())) and row["ffn_ms"] > 0
    assert sorted(row["hf_over_auto"]) == sorted([*THEIRS, *batched])
    assert all(map(is_ratio, row["hf_over_auto"].values()))
    moe, x = measuring.make_layer(replace(SMALL, num_tokens=tokens), CPU)
    with torch.set_grad_enabled(which == TRAINING):
        assert row["auto_takes"] == choose_dispatch(moe.experts, moe(x)[1])


def test_each_is_divided_by_what_ran_in_the_same_rounds(monkeypatch):
    """From turn to turn the machine gets twice as slow; a dispatch takes 3, auto 6 and the others 12 times the FFN."""
    turns = []

    def slower_and_slower(calls, rounds):
        turns.append(len(calls))
        times = [1, 3] if len(turns) <= len(DISPATCH) else [1, 6, 12, 12]
        return [[2.0 ** len(turns) * ms] * rounds for ms in times[: len(calls)]]

    monkeypatch.setattr(measuring, "take_turns", slower_and_slower)
    row = measuring.compare(SMALL, FORWARD, **HERE)
    assert turns == [2] * len(DISPATCH) + [2 + len(THEIRS)]
    assert [row["ratios"][way]["median"] for way in DISPATCH] == [3] * len(DISPATCH)
    assert row["ratios"]["auto"]["median"] == 6
    assert all(row["ratios"][name]["median"] == 12 and row["hf_over_auto"][name]["median"] == 2 for name in THEIRS)


@needs_hf
def test_what_gathers_weights_is_timed_apart(monkeypatch):
    turns = []

    def remember(calls, rounds):
        turns.append(len(calls))
        return [[1.0]] * len(calls)

    monkeypatch.setattr(measuring, "take_turns", remember)
    measuring.compare(replace(SMALL, num_tokens=4), FORWARD, **HERE, ways=())
    assert turns == [3, 4]  # FFN, auto, batched_mm; FFN, auto, eager, grouped_mm


def test_follow_has_every_dispatch_beside_auto(monkeypatch):
    turns = []

    def slower_and_slower(calls, rounds):
        turns.append(len(calls))
        return [[5.0 * len(turns)] * 3, [2.0 * len(turns)] * 3]

    monkeypatch.setattr(measuring, "take_turns", slower_and_slower)
    first, second = measuring.follow(line(SMALL, d_model=(4, 8)), TRAINING, **HERE)
    assert turns == [2] * 2 * len(DISPATCH)
    assert second["size"]["d_model"] == 8 and second["skipped"] == {}
    assert {way: ratio["median"] for way, ratio in first["over_auto"].items()} == dict.fromkeys(DISPATCH, 2.5)
    assert first["auto_takes"] in DISPATCH


def test_growth_is_over_the_fewest_experts(monkeypatch):
    monkeypatch.setattr(measuring, "take_turns", lambda calls, rounds: [[2.0, 4.0], [3.0, 6.0]])
    found = measuring.grow(line(SMALL, num_experts=(4, 8)), FORWARD, **HERE)
    assert [ratio["median"] for ratio in found["ratios"]] == [1, 1.5]
    assert [size["num_experts"] for size in found["sizes"]] == [4, 8]


def test_weigh_has_every_way_with_and_without_gradient():
    found = measuring.weigh(LARGE, CPU)
    assert list(found["ratios"]) == list(found["ffn_bytes"]) == ["without gradient", "with gradient"]
    for ratios in found["ratios"].values():
        assert list(ratios) == [*OURS, *THEIRS] and min(ratios.values()) > 0
        assert ratios["dense"] > 4  # E/K = 8 times the hidden rows
    assert found["ffn_bytes"]["with gradient"] > found["ffn_bytes"]["without gradient"]


# --- nothing wrong, and nothing hopeless, is timed -------------------------------------------------------


def test_a_way_that_computes_something_else_is_not_timed(monkeypatch):
    monkeypatch.setitem(DISPATCH, "wrong", lambda *given: DISPATCH["loop"](*given) * 1.001)
    for which in PASSES:
        row = measuring.compare(SMALL, which, **HERE, ways=("dense", "wrong"))
        assert row["skipped"] == {"wrong": "another result than auto!"} and "wrong" not in row["ratios"]


def test_a_way_with_a_wrong_gradient_is_not_timed(monkeypatch):
    def half_a_gradient(*given):
        y = DISPATCH["loop"](*given)
        return (y + y.detach()) / 2

    monkeypatch.setitem(DISPATCH, "wrong", half_a_gradient)
    assert measuring.compare(SMALL, FORWARD, **HERE, ways=("wrong",))["skipped"] == {}
    assert list(measuring.compare(SMALL, TRAINING, **HERE, ways=("wrong",))["skipped"]) == ["wrong"]


def test_a_way_that_refuses_says_why(monkeypatch):
    def refuse(*given):
        raise RuntimeError("strides should be multiple of 16 bytes\nand more")

    monkeypatch.setitem(DISPATCH, "picky", refuse)
    row = measuring.compare(SMALL, FORWARD, **HERE, ways=("picky",))
    assert row["skipped"] == {"picky": "refuses: strides should be multiple of 16 bytes"}


def test_a_way_that_takes_for_ever_runs_once(monkeypatch):
    calls = []
    slow = {"auto": 100.0, "near": 399.0, "far": 401.0}

    def milliseconds(call):
        call()
        return slow[calls[-1]]

    monkeypatch.setattr(measuring, "milliseconds", milliseconds)
    ways = {name: lambda name=name: calls.append(name) or (torch.ones(1),) for name in ("auto", "near", "far")}
    assert measuring.why_not_time(ways) == {"far": "4 times auto at first"}
    assert calls.count("far") == 1
    slow |= {"auto": 1.0, "near": 299.0, "far": 299.0}  # what is over quickly may be as slow as it likes
    assert measuring.why_not_time(ways) == {}


def test_gather_is_left_out_where_it_would_copy_too_much(monkeypatch):
    monkeypatch.setitem(DISPATCH, "gather", DISPATCH["loop"])
    moe, _ = measuring.make_layer(SMALL, CPU)
    copies = 24 * 2 * (2 * 4 * 8 + 8 * 4) * 4  # T·K times the bytes of one expert
    monkeypatch.setattr(measuring, "GATHER_LIMIT", copies)
    assert "gather" in measuring.layers_to_run(moe, SMALL, ("gather",))[0]
    monkeypatch.setattr(measuring, "GATHER_LIMIT", copies - 1)
    layers, skipped = measuring.layers_to_run(moe, SMALL, ("gather",), hf=False)
    assert list(layers) == ["auto"] and skipped == {"gather": "would copy 0.0 GB"}


@pytest.mark.parametrize("shift, verdict", [(0, True), (1e-5, True), (1e-3, False), (float("nan"), False)])
def test_the_same_but_for_rounding(shift, verdict):
    a = torch.tensor([1.0, -2.0, 1e-9])
    assert measuring.same(a + shift, a) is verdict
    assert measuring.same(torch.zeros(3), torch.zeros(3))


# --- the layers ------------------------------------------------------------------------------------------


def test_all_ways_run_the_same_layer_on_the_same_tokens():
    moe, x = measuring.make_layer(SMALL, CPU)
    again, same_x = measuring.make_layer(SMALL, CPU)
    assert torch.equal(x, same_x) and torch.equal(moe(x)[0], again(x)[0]) and x.shape == (1, 24, 8)
    for way in OURS:
        layer = measuring.with_dispatch(moe, way)
        assert layer.dispatch == way and moe.dispatch == "auto"
        assert all(a is b for a, b in zip(layer.parameters(), moe.parameters(), strict=True))
        torch.testing.assert_close(layer(x)[0], moe(x)[0])


def test_the_passes_are_what_they_are_called():
    moe, x = measuring.make_layer(SMALL, CPU)
    (y,) = measuring.one_pass(moe, x, FORWARD)()
    assert not y.requires_grad and torch.equal(y, moe(x)[0])
    for layer in (moe, dense_twin(moe, "active")):
        gradients = measuring.one_pass(layer, x, TRAINING)()
        assert [g.shape for g in gradients] == [x.shape, *(p.shape for p in layer.parameters())]
        assert all(p.grad is None for p in layer.parameters())  # nothing piles up from round to round


@needs_hf
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=str)
def test_hugging_face_runs_our_very_weights(size):
    moe, x = measuring.make_layer(size, CPU)
    blocks = hugging_face.hugging_face_blocks(moe, decoding=True)
    assert list(blocks) == [*THEIRS, "HF batched_mm"]
    ours = measuring.one_pass(moe, x, TRAINING)()
    for name, block in blocks.items():
        assert f"HF {block.experts.config._experts_implementation}" == name
        pairs = list(zip(block.parameters(), moe.parameters(), strict=True))  # in the same order
        assert all(a.data_ptr() == b.data_ptr() and a.requires_grad for a, b in pairs)
        torch.testing.assert_close(block(x), moe(x)[0])
        for a, b in zip(measuring.one_pass(block, x, TRAINING)(), ours, strict=True):
            torch.testing.assert_close(a, b)


def test_without_transformers_there_is_no_block(without_transformers):
    assert hugging_face.transformers_version() is None
    assert hugging_face.hugging_face_blocks(MoE(8, 4, 4), decoding=True) == {}


# --- what is shown ---------------------------------------------------------------------------------------


def test_json_holds_every_section(tiny, capsys):
    assert bench.main(["--json", "--threads", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["cpu"] and report["machine"]["threads"] == 1
    assert report["machine"]["torch"] == torch.__version__
    assert [(Size(**row["size"]), row["pass"]) for row in report["layers"]] == [
        (size, which) for size in (SMALL, LARGE) for which in PASSES
    ]
    assert [row["size"]["num_tokens"] for row in report["decoding"]] == [1, 4]
    assert [[row["pass"] for row in rows] for rows in report["lines"]] == [[TRAINING] * 2, [FORWARD] * 3]
    assert [row["size"]["num_tokens"] for row in report["grid"]] == ([3, 5] if HAS_HF else [])
    assert [row["pass"] for row in report["growth"]] == list(PASSES)
    assert len(report["memory"]) == 1
    assert all(ms > 0 for ms in report["playground_ms_per_step"].values())


def test_the_tables_are_readable(tiny, capsys):
    assert bench.main([]) == 0
    out = capsys.readouterr().out
    for text in (*OURS, *THEIRS, *PASSES, f"torch {torch.__version__}", " thread", "A training step of the", "E=8"):
        assert text in out
    assert "skipped" not in out
    assert max(map(len, out.splitlines())) <= 120
    assert all(text == text.rstrip() for text in out.splitlines())


def test_the_tables_without_transformers(tiny, capsys, without_transformers):
    assert bench.main([]) == 0
    out = capsys.readouterr().out
    assert "no transformers (5.18 or newer)" in out
    assert "HF eager" not in out and "best HF" not in out


def test_a_table_says_what_was_skipped_and_why():
    ratio = {"median": 2.0, "low": 1.5, "high": 2.5}
    row = {"size": vars(SMALL), "ffn_ms": 1.25, "ratios": {"auto": ratio}, "skipped": {}, "auto_takes": "loop"}
    rows = [
        row | {"pass": FORWARD, "hf_over_auto": {"HF eager": ratio, "HF grouped_mm": {**ratio, "median": 1.9}}},
        row | {"pass": TRAINING, "hf_over_auto": {}, "skipped": {"gather": "would copy 9.0 GB"}},
    ]
    (table,) = showing.layer_blocks(rows)
    words = {text[:34].strip(): text[34:] for text in table}
    assert words["dense FFN"].split() == ["1.25", "ms"] * 2
    assert words["auto"].split() == ["2.00", "(1.50–2.50)"] * 2
    assert words["gather"].strip().endswith("skipped: would copy 9.0 GB")
    assert words["best HF over auto"].split() == ["1.90", "(1.50–2.50)", "skipped"]


def test_a_line_shows_the_fastest_and_what_auto_takes():
    over_auto = {way: {"median": 1.0 + i, "low": 1.0, "high": 1.0} for i, way in enumerate(DISPATCH)}
    first = next(iter(DISPATCH))
    row = {"size": vars(SMALL), "pass": FORWARD, "over_auto": over_auto, "skipped": {}, "auto_takes": "loop"}
    head, text = showing.line_table([row])
    assert head.split()[1:-3] == list(DISPATCH) and head.startswith(FORWARD)
    assert text.split()[-2:] == [first, "loop"]
    assert "1.00" in text and "2.00" in text
    del over_auto["dense"]
    _, text, reason = showing.line_table([row | {"skipped": {"dense": "9 times auto at first"}}])
    assert text.split()[5] == "skipped" and reason == "  dense skipped: 9 times auto at first"


def test_the_grid_is_tokens_by_experts():
    def cell(num_experts, num_tokens, median):
        ratio = {"median": median, "low": median, "high": median}
        size = vars(replace(SMALL, num_experts=num_experts, num_tokens=num_tokens))
        return {"size": size, "pass": FORWARD, "hf_over_auto": {"HF eager": ratio}}

    _, table = showing.grid_tables([cell(4, 3, 1.0), cell(4, 5, 2.0), cell(8, 3, 3.0), cell(8, 5, 4.0)])
    assert table[0].split() == ["forward", "E=4", "E=8"]
    assert [text.split() for text in table[1:]] == [
        ["T=3", "1.00", "(1.00–1.00)", "3.00", "(3.00–3.00)"],
        ["T=5", "2.00", "(2.00–2.00)", "4.00", "(4.00–4.00)"],
    ]


def test_the_plot_is_written(tiny, capsys, tmp_path):
    file = tmp_path / "bench.png"
    assert bench.main(["--quick", "--plot", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    assert "forward" in capsys.readouterr().out  # the tables too


def test_quick_measures_less(tiny, capsys):
    bench.main(["--quick", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert [Size(**row["size"]) for row in report["layers"]] == [SMALL, SMALL]
    assert len(QUICK.layers) < len(FULL.layers) and QUICK.seconds < FULL.seconds


# --- the language model ----------------------------------------------------------------------------------


def test_the_models_of_the_targets_are_in_the_full_plan():
    reads = [plan.config for plan in FULL.language if isinstance(plan, Reading)]
    writes = [plan.config for plan in FULL.language if isinstance(plan, Writing)]
    assert [(c.d_model, c.d_ff, c.num_experts, c.top_k) for c in reads] == [(64, 64, 8, 2), (128, 128, 8, 2)]
    assert [(c.d_model, c.num_experts) for c in writes] == [(64, 8), (512, 8), (512, 16)]


@pytest.mark.parametrize("plan", [READS, WRITES], ids=["training", "writing"])
def test_a_model_is_timed_beside_its_twins_and_hugging_face(plan, monkeypatch):
    def twice_as_long_each(calls, rounds):
        return [[2.0**i] * 3 for i in range(len(calls))]

    monkeypatch.setattr(language, "take_turns", twice_as_long_each)
    found = language.time_model(plan, **HERE)
    twins = ["dense, equal active"] + (["dense, equal total"] if plan is WRITES else [])
    batched = ["HF batched_mm"] if HAS_HF and plan is WRITES else []
    assert list(found["over_moe"]) == [*twins, *THEIRS, *batched]
    assert [ratio["median"] for ratio in found["over_moe"].values()] == [2, 4, 8, 16, 32][: len(found["over_moe"])]
    assert list(language.time_model(replace(plan, hugging_face=False), **HERE)["over_moe"]) == twins


@needs_hf
def test_the_model_of_hugging_face_is_the_same():
    model, ids = LanguageModel(MODEL).eval(), torch.randint(256, (1, 7))
    expected, routings = model(ids)
    rivals = hugging_face.hugging_face_models(model, decoding=True)
    assert list(rivals) == [*THEIRS, "HF batched_mm"]
    for rival in rivals.values():
        out = rival.eval()(input_ids=ids)
        torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-5)
        assert rival.config.output_router_logits and out.aux_loss > 0  # trained with the auxiliary loss, as ours is
        assert torch.equal(language.writer(rival, ids, 5)(), language.writer(model, ids, 5)())


def test_a_training_step_trains():
    model, ids = LanguageModel(MODEL), torch.randint(256, (2, 6))
    before = [parameter.clone() for parameter in model.parameters()]
    language.training_step(model, ids)()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_the_table_of_a_model():
    ratio = {"median": 2.5, "low": 2.0, "high": 3.0}
    lines = showing.language_block({"plan": str(WRITES), "over_moe": {"HF eager": ratio}})
    assert lines[0] == "3 tokens one by one, L=2 D=8 F=4 E=4 K=2" and lines[1].split() == [
        "HF",
        "eager",
        "2.50",
        "(2.00–3.00)",
    ]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--threads", "0"], "threads must be a whole number of at least 1, got 0"),
        (["--threads", "two"], "invalid int value: 'two'"),
        (["--device", "abacus"], "device must be one of 'cpu'"),
        (["--device", "meta"], "device must be one that computes, got 'meta'"),
        (["--plot", "bench.pdf"], "plot must be a .png file in a folder that exists, got 'bench.pdf'"),
        (["--plot", "nowhere/bench.png"], "plot must be a .png file in a folder that exists"),
        (["--loud"], "unrecognized arguments: --loud"),
    ],
)
def test_bad_options(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_threads_are_given_back(monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure", lambda device, plan: torch.get_num_threads())
    before = torch.get_num_threads()
    bench.main(["--json", "--threads", str(before + 1)])
    assert json.loads(capsys.readouterr().out) == before + 1
    assert torch.get_num_threads() == before
