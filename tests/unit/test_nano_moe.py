"""nano_moe.py is the model of `moe_lessons.nn`, learns, writes, and refuses what it cannot use."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nano_moe
from moe_lessons import nn
from moe_lessons.training.record import load_share, token_losses

FILE = Path(nano_moe.__file__)
TINY = "--experts 4 --d-model 16 --d-ff 8 --layers 2 --heads 2 --context 16 --batch-size 8".split()
TINY += "--every 10 --length 60".split()


@pytest.fixture
def text(tmp_path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("The cat sat on the mat. The dog sat on the log. " * 40)
    return str(path)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_it_computes_what_nn_computes_with_the_same_weights(top_k):
    torch.manual_seed(top_k)
    nano = nano_moe.LanguageModel(d_model=16, d_ff=8, num_layers=2, num_heads=2, num_experts=4, top_k=top_k)
    sizes = {"d_model": 16, "d_ff": 8, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "num_experts": 4}
    ours = nn.LanguageModel(nn.TransformerConfig(**sizes, top_k=top_k))
    ours.load_state_dict(nano.state_dict() | {"head.weight": nano.embed.weight})  # the names are the same
    ids = torch.randint(256, (3, 12))
    x, y = ids[:, :-1], ids[:, 1:]
    (logits, routings), (expected, ours_routed) = nano(x), ours(x)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    auxiliary = [nano_moe.load_balancing_loss(*routing) for routing in routings]
    expected_auxiliary = [nn.load_balancing_loss(routing) for routing in ours_routed]
    torch.testing.assert_close(auxiliary, expected_auxiliary, atol=1e-5, rtol=1e-5)
    for (probs, chosen), routing in zip(routings, ours_routed):
        assert torch.equal(chosen, routing.topk_indices)
        torch.testing.assert_close(nano_moe.load(probs, chosen), load_share(routing))
    (nano_moe.cross_entropy(logits, y) + 0.1 * sum(auxiliary)).backward()
    (token_losses(expected, y)[0].mean() + 0.1 * sum(expected_auxiliary)).backward()
    gradients = {name: weight.grad for name, weight in ours.named_parameters()}
    for name, weight in nano.named_parameters():
        assert weight.grad.abs().sum() > 0
        torch.testing.assert_close(weight.grad, gradients[name], atol=1e-5, rtol=1e-4)


def test_it_learns_reports_and_writes_the_same_from_the_same_seed(text, capsys):
    def lines(*more) -> list[str]:
        nano_moe.main([text, *TINY, "--steps", "60", *more])
        return capsys.readouterr().out.splitlines()

    first, second, other = lines(), lines(), lines("--seed", "1")
    steps = [line.split() for line in first[3:] if line[:5].strip().isdecimal()]
    assert [int(step) for step, *_ in steps] == [1, 10, 20, 30, 40, 50, 60]
    (loss, held_out), (last, last_held_out) = (map(float, steps[place][1:3]) for place in (0, -1))
    assert last < 0.7 * loss and last_held_out < 0.7 * held_out
    left = [float(seconds) for *_, seconds, s, _, _ in steps if s == "s"]
    assert len(left) == len(steps) and left[-1] == 0 <= min(left)
    busiest = [float(times) for times in steps[-1][-2:]]
    assert len(busiest) == 2 and all(1 <= times <= 4 for times in busiest)
    written = ["\n".join(each[12:]) for each in (first, second, other)]
    assert written[0] == written[1] != written[2] and written[0].strip().startswith("The ")


def test_the_auxiliary_loss_evens_the_load(text, capsys):
    def busiest(coefficient: str) -> float:
        nano_moe.main([text, *TINY, "--top-k", "1", "--steps", "60", "--aux-loss", coefficient])
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("   60 ")]
        return max(map(float, line.split()[-2:]))

    assert busiest("1") + 0.3 < busiest("0")


def test_its_own_text_is_long_and_has_no_paragraph_twice():
    paragraphs = nano_moe.read_text(None).split(b"\n\n")
    assert sum(map(len, paragraphs)) > 200_000
    assert len(set(paragraphs)) == len(paragraphs)


@pytest.mark.parametrize(
    "arguments",
    [
        "--top-k 5 --experts 4", "--top-k 0", "--steps 0", "--steps 1.5", "--d-model 20 --heads 4",
        "--lr 0", "--lr nan", "--aux-loss -1", "--seed -1", "--device cuda:99", "--device meta", "--device toaster",
        "nowhere.txt", ".",
    ],
)  # fmt: skip
def test_it_refuses_in_one_sentence_what_it_cannot_use(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        nano_moe.main(arguments.split())
    out, errors = capsys.readouterr()
    name, value, *_ = arguments.split() if arguments.startswith("--") else ("FILE", arguments)
    said = errors.splitlines()[-1]
    assert ended.value.code == 2 and out == "" and name in said and value in said.partition("got ")[2]


def test_a_text_that_is_too_short_is_refused(tmp_path, capsys):
    (tmp_path / "text").write_bytes(b"x" * 1900)
    with pytest.raises(SystemExit):
        nano_moe.main([str(tmp_path / "text"), "--context", "190"])
    assert capsys.readouterr().err.endswith("FILE must have 1910 bytes or more for its --context, got 1900\n")


def test_the_shortest_text_that_it_takes_is_enough(tmp_path, capsys):
    (tmp_path / "text").write_bytes(bytes(range(170)))
    nano_moe.main([str(tmp_path / "text"), *TINY, "--steps", "1"])
    assert capsys.readouterr().out


def test_a_loss_that_is_not_finite_ends_it_with_the_rate(text):
    with pytest.raises(SystemExit, match="The loss is nan after 10 steps: try a lower --lr than 1e.30"):
        nano_moe.main([text, *TINY, "--steps", "10", "--lr", "1e30"])


def test_it_needs_torch_alone_and_runs_as_a_program(text):
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(FILE.read_text("utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported - sys.stdlib_module_names == {"torch"}
    run = subprocess.run(
        [sys.executable, FILE, text, *TINY, "--steps", "10"], capture_output=True, text=True, check=True, timeout=300
    )
    assert "parameters, of which" in run.stdout and run.stderr == ""
