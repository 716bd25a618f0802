"""Experts on several ranks: equal to one process, to the last digits of float64; what travels; a run that goes on."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import ranks
import torch
from oracle import refused
from torch.nn import functional as F

from moe_lessons.nn import DISPATCH, LanguageModel, MoE, Routing, load_balancing_loss, seeded
from moe_lessons.parallel import bytes_sent, launch, rank_traffic, shard_experts
from moe_lessons.parallel.measure import exchange_times, given_routing
from moe_lessons.parallel.training import Settings, train
from moe_lessons.tasks import TextTask, make_text

SMALL = Settings(steps=100, batch=4, context=16, num_layers=1, d_model=16, d_ff=16, timeout=60)


def records(settings: Settings, num_ranks: int) -> list[dict]:
    return list(launch(train, num_ranks, settings, timeout=60))


def losses(said: list[dict]) -> list[float]:
    return [record["loss"] for record in said if record["event"] == "step"]


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_equal_to_one_process(num_ranks):
    cases = list(launch(ranks.exact, num_ranks, timeout=60))
    assert len(cases) == 2 * (len(ranks.KINDS) + len(ranks.SPLITS[num_ranks]) - 1)
    assert any(case["dropped"] for case in cases)
    worst = max(cases, key=lambda case: case["difference"])
    assert worst["difference"] < 1e-9, worst


def test_what_cannot_be_sharded_and_whole_experts():
    assert next(launch(ranks.not_sharded, 4, timeout=60)) == [
        "ValueError: num_experts (6) must be a multiple of the number of ranks (4)",
        "ValueError: model must not be sharded yet, got one whose experts are",
    ]
    with pytest.raises(RuntimeError, match="^shard_experts needs ranks: start it by parallel.launch or torchrun"):
        shard_experts(MoE(4, 4, 4))
    moe, x = MoE(4, 4, 4, dispatch="exchange"), torch.randn(5, 4)
    torch.testing.assert_close(moe(x)[0], DISPATCH["loop"](moe.experts, x, moe(x)[1]))  # whole experts stay here


def test_rank_traffic_is_counted_row_by_row():
    moe = MoE(4, 4, 8, 2)
    routing: Routing = moe.router(torch.randn(12, 4))
    expected = torch.zeros(4, 4, dtype=torch.int64)
    for token, expert in zip(routing.token_idx.tolist(), routing.expert_idx.tolist()):
        expected[token // 3, expert // 2] += 1
    assert torch.equal(rank_traffic(routing, 4), expected)
    sent = (expected.sum(0) + expected.sum(1) - 2 * expected.diag()).tolist()  # there and back
    assert bytes_sent(expected, 4).tolist() == [2 * 4 * 4 * rows for rows in sent]
    with refused("ranks must divide 12 tokens and 8 experts, got 8"):
        rank_traffic(routing, 8)


@pytest.fixture(scope="module")
def alone() -> list[float]:
    """The losses of one process, written without anything of `parallel` but the sizes."""
    with seeded(0):
        model = LanguageModel(SMALL.model_config())
    task = TextTask({name: make_text(name, 50_000) for name in ("english", "code", "arithmetic")}, 16)
    optimizer, curve = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0), []
    for step in range(SMALL.steps):
        x, y = task.batch(4, torch.Generator().manual_seed(step))
        logits, routings = model(x)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        (loss + 0.01 * sum(map(load_balancing_loss, routings))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append(loss.item())
    return curve


def test_the_curve_of_one_process(alone):
    curve = losses(records(SMALL, 2))
    assert curve[-1] < curve[0] - 1
    assert max(abs(loss - other) for loss, other in zip(curve, alone, strict=True)) < 1e-4


def test_goes_on_with_another_number_of_ranks(alone, tmp_path):
    settings = replace(SMALL, steps=6, every=2, checkpoint=str(tmp_path / "saved"))
    curve = losses(records(settings, 2))
    assert sorted(path.name for path in Path(settings.checkpoint).iterdir()) == ["step4.checkpoint", "step6.checkpoint"]
    for num_ranks in (1, 4):
        folder = shutil.copytree(settings.checkpoint, tmp_path / f"for {num_ranks}")
        again = records(replace(settings, steps=10, checkpoint=str(folder)), num_ranks)
        assert again[0]["from_step"] == 6 and again[-1]["event"] == "end"
        both = curve + losses(again)
        assert max(abs(loss - other) for loss, other in zip(both, alone[:10], strict=True)) < 1e-5


def test_three_ranks_go_on_to_the_same_bits(tmp_path):
    """With more than two, the order of a sum counts."""
    whole = replace(SMALL, steps=8, batch=6, num_experts=6, dtype="float64")
    half = replace(whole, steps=4, checkpoint=str(tmp_path))
    ends = [records(settings, 3)[-1]["weights"] for settings in (whole, half, replace(half, steps=8))]
    assert ends[0] == ends[2] != ends[1]


def test_what_is_refused_on_all_ranks_alike_and_checkpoints_that_fail(tmp_path):
    said = {record["case"]: record for record in launch(ranks.refusals, 2, str(tmp_path), timeout=60)}
    for case, message in {
        "experts": "num_experts (9) must be a multiple of the number of ranks (2)",
        "choice": "dtype must be one of 'float32', 'float64', got 'int8'",
        "fault": "rank must be one of '0', '1', got '7'",
        "no folder": "checkpoint must be a folder that can be written to, got {}/step1.checkpoint (File exists)",
    }.items():
        assert said[case]["errors"] == [f"ValueError: {message.format(tmp_path)}"] * 2
    full, after = said["full disk"], said["after it"]
    assert len(set(full["errors"])) == 1
    assert full["there"] == ["step1.checkpoint", "step2.checkpoint"]
    assert after["there"] == ["step2.checkpoint", "step3.checkpoint"]
    assert full["errors"][0] == (
        f"RuntimeError: step 3 could not be saved in {tmp_path} (File too large); those before it are kept. "
        "Make room, or name another folder, and start again"
    )
    assert [record.get("from_step") for record in after["records"]] == [2, None]
    shapes = [f"torch.float32 of shape (256, {d_model})" for d_model in (32, 16)]
    other = f"step2.state.weight.embed.weight must be as in this run ({shapes[0]}, finite), got {shapes[1]}"
    damaged = f"{tmp_path}/step3.checkpoint must be a moe_lessons checkpoint of ranks 1, got a damaged one"
    for case, step, why in (("damaged", 3, damaged), ("another model", 2, other)):
        (error,) = set(said[case]["errors"])
        path = f"{tmp_path}/step{step}.checkpoint"
        way = f"Delete {path}, and the same command goes on from step{step - 1}; or name another folder"
        assert error == f"ValueError: {why}. {way}"
    assert said["the one before"]["records"][0]["from_step"] == 2


@pytest.mark.parametrize("share, rows", [(0.5, [512, 512]), (1.0, [1024, 0]), (0.75, [768, 256]), (0.0, [0, 1024])])
def test_a_given_routing_gives_each_rank_its_share(share, rows):
    load = given_routing(1024, 8, 2, share).tokens_per_expert
    assert load.view(2, -1).sum(dim=1).tolist() == rows
    with refused("share must be from 0 to 1, got 1.5"):
        given_routing(1024, 8, 2, 1.5)


def test_records_of_rank_0_come_as_they_are_made_and_each_size_is_sent_in_turns():
    tries = list(launch(exchange_times, 2, (1000, 30_000)))
    assert [one["bytes"] for one in tries] == [1000, 30_000] * 7 and all(one["seconds"] > 0 for one in tries)
    first, last = launch(ranks.breaks, 1, "no way")
    assert torch.equal(first, torch.ones(2)) and last == "no fault"


@pytest.mark.parametrize(
    "how, message",
    {
        "raise": "rank 1 failed: LookupError: rank 1 has had enough$",
        "kill": r"rank 1 was killed by signal 9 \(SIGKILL\)$",
        "exit": "rank 1 ended with exit code 7$",
        "hang": "rank 1 did not answer for 0.5 s$",
        "stop": "rank 1 did not answer for 0.5 s$",
    }.items(),
)
def test_a_rank_that_fails_is_named(how, message):
    seen = []
    with pytest.raises(RuntimeError, match=f"^{message}") as caught:
        for record in launch(ranks.breaks, 2, how, timeout=0.5):
            seen.append(record)
    assert len(seen) == 1
    assert how != "raise" or "in breaks\n    raise LookupError" in str(caught.value.__cause__)


def test_closed_or_interrupted_it_ends_all_ranks(tmp_path):
    def left() -> set[int]:
        return {pid for pid in map(int, os.listdir(tmp_path)) if ranks.is_there(pid)}

    said = launch(ranks.counts_up, 2, str(tmp_path))
    assert next(said) == 0 and len(left()) == 2
    said.close()
    assert len(os.listdir(tmp_path)) == 2 and not left()
    with pytest.raises(KeyboardInterrupt):
        said = launch(ranks.counts_up, 2, str(tmp_path))
        next(said)
        said.throw(KeyboardInterrupt)
    assert len(os.listdir(tmp_path)) == 4 and not left()


def test_functions_that_other_processes_do_not_find():
    def inside():
        pass

    for function, name in ((inside, ".*inside at .*"), (lambda: 1, ".*<lambda> at .*")):
        with refused(f"function must be importable, so that other processes find it: write it to .*; got {name}"):
            launch(function, 2)
