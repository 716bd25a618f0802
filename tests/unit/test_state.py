"""The state of a run: another goes on from it to the same numbers, or refuses it and is as it was."""

import copy
from dataclasses import replace

import pytest
import torch
from oracle import refused

from moe_lessons.nn import FrozenRouter, LanguageModel, MoE, NoisyTopKRouter, SigmoidRouter, TransformerConfig, seeded
from moe_lessons.tasks import PlaneClassifier, PlaneTask, TextTask, make_text
from moe_lessons.training import PlaneSetting, Record, Run, SeedBand, TrainingDiverged

MAKE_ROUTER = {
    "gaussian": lambda top_k: NoisyTopKRouter(16, 4, top_k, noise="gaussian", noise_std=0.0),
    "learned": lambda top_k: NoisyTopKRouter(16, 4, top_k),
    "frozen": lambda top_k: FrozenRouter(16, 4, top_k),
    "sigmoid": lambda top_k: SigmoidRouter(16, 4, top_k),
}


def plane_run(router: str = "gaussian", top_k: int = 2, task: str = "blobs", steps: int = 0, **options) -> Run:
    with seeded(1):
        block = MoE(16, 4, 4, top_k, router=MAKE_ROUTER[router](top_k))
        model = PlaneClassifier(block, num_classes=8)
    run = Run(model, PlaneTask(task), **{"lr": 0.02, "batch_size": 32, **options})
    records(run, steps)
    return run


def text_run(task: TextTask) -> Run:
    sizes = {"d_model": 32, "num_layers": 2, "num_heads": 2, "max_positions": 16, "d_ff": 8, "num_experts": 4}
    with seeded(0):
        model = LanguageModel(TransformerConfig(**sizes))
    return Run(model, task, lr=0.01, batch_size=8, warmup_steps=3, decay_steps=12, max_grad_norm=0.5)


def turned(run: Run, **knobs) -> Run:
    for name, value in knobs.items():
        setattr(run.knobs, name, value)
    return run


def records(run: Run, steps: int) -> list[Record]:
    return [replace(run.step(), ms_per_step=0.0) for _ in range(steps)]


def state_of(run: Run) -> tuple:
    state = copy.deepcopy(run.state_dict())
    tensors = {name: tensor.tolist() for name, tensor in state.pop("tensors").items()}
    return tensors, state | {"records": len(state["records"])}  # without the times


RUNS = {
    "noise": lambda: turned(plane_run(), noise_std=1.0, jitter_noise=0.1, router_z_loss_coef=0.01),
    "learned noise": lambda: turned(plane_run("learned"), router_aux_loss_coef=0.1),
    "dropping": lambda: turned(plane_run(), capacity_factor=0.5),
    "frozen": lambda: turned(plane_run("frozen"), noise_std=0.5),
    "bias update": lambda: turned(plane_run("sigmoid"), expert_bias_rate=0.05),
    "language model": lambda: turned(text_run(TextTask("json", context=16)), noise_std=0.5, capacity_factor=1.0),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_from_a_file_of_its_state_to_the_same_numbers(name, tmp_path):
    run = RUNS[name]()
    records(run, 6)
    torch.save(run.state_dict(), tmp_path / "run.pt")
    expected = records(run, 8)

    later = turned(RUNS[name](), router_aux_loss_coef=7.0)  # the saved ones count
    later.model.load_state_dict({k: torch.zeros_like(v) for k, v in later.model.state_dict().items()})
    later.load_state_dict(torch.load(tmp_path / "run.pt"))
    assert records(later, 8) == expected and repr(later.knobs) == repr(run.knobs)
    assert [r.auxiliary for r in later.records] == [r.auxiliary for r in run.records]
    assert later.evaluate(32) == run.evaluate(32) and state_of(later) == state_of(run)


def test_a_run_that_has_diverged_goes_on_from_its_state():
    run, later = plane_run(steps=3), plane_run()
    run.knobs.lr = 1e15
    with pytest.raises(TrainingDiverged):
        records(run, 20)
    later.load_state_dict(run.state_dict())
    later.take_back()  # there is no step of its own to undo
    run.knobs.lr = later.knobs.lr = 0.02
    assert records(later, 3) == records(run, 3)
    later.take_back()
    assert len(later.records) == len(run.records) - 1


def refuses(run: Run, state, message: str) -> None:
    before = state_of(run)
    with refused(message):
        run.load_state_dict(state)
    assert state_of(run) == before


OTHERS = {
    "run.decay_steps None, got 9": {"decay_steps": 9},
    "task.name 'blobs', got 'waves'": {"task": "waves"},
    "model.block.router NoisyTopKRouter, got SigmoidRouter": {"router": "sigmoid"},
}


def test_the_state_of_another_run_is_refused_and_the_first_difference_named():
    for message, options in OTHERS.items():
        state = plane_run(**options).state_dict()
        refuses(plane_run(steps=2), state, f"state must be of a run with {message}")
    run, other = (text_run(TextTask({"text": make_text("code", 5000, seed)}, context=16)) for seed in (1, 2))
    refuses(other, run.state_dict(), ".* with checksum of the task's data [0-9a-f]{16}, got [0-9a-f]{16}")
    with refused("run must be a Run itself to give its state, got a SeedBand"):
        SeedBand(PlaneSetting(), [0, 1]).state_dict()


BAD = {
    "optimizer.head.bias.step .*, got None": lambda state: state["tensors"].pop("optimizer.head.bias.step"),
    "model.head.bias .*, got .* torch.float64": lambda state: state["tensors"].update(
        {"model.head.bias": torch.zeros(8).double()}
    ),
    "one that a run gives, got another: Invalid mt19937 state": lambda state: state["tensors"]["random.0"].fill_(255),
    "one that a run gives, .* argument 'more'": lambda state: state["records"][1].update(more=1),
    "lr must be a finite number above 0 .*, got -1": lambda state: state["knobs"].update(lr=-1),
    "one that a run gives, got another: 'knobs'": lambda state: state.pop("knobs"),
}


@pytest.mark.parametrize("message", BAD)
def test_a_state_that_no_run_gives_is_refused_and_changes_nothing(message):
    run = plane_run(steps=2)
    state = copy.deepcopy(run.state_dict())
    BAD[message](state)
    refuses(run, state, f".*{message}")
    refuses(run, None, "state must be one that a run gives, got another: .*")
