"""A run: the same numbers for the same seed whatever goes on around it, knobs, history, and a clear stop."""

import copy
import math
import signal
from dataclasses import replace
from random import Random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from moe_lessons.analysis.collapse import watched_run
from moe_lessons.nn import FeedForward, MoE, seeded, torch_threads
from moe_lessons.nn.balancing import load_balancing_loss, router_z_loss
from moe_lessons.nn.routing import NoisyTopKRouter, SigmoidRouter
from moe_lessons.tasks import PlaneClassifier, PlaneTask
from moe_lessons.training import PRESETS, PlaneSetting, Run, SeedBand, plane_runs
from moe_lessons.training.record import Record, dead_experts, load_share
from moe_lessons.training.run import TrainingDiverged, lr_scale, step_together

TASK = PlaneTask("blobs")
TURNED = {"lr": 0.5, "noise_std": 2.0, "jitter_noise": 0.9, "capacity_factor": 0.5}
TURNED |= {"router_aux_loss_coef": 1.0, "router_z_loss_coef": 1.0}
BATCH = 64
BIAS = {"expert_bias_rate": 0.01, "jitter_noise": 0.1}


def make_run(seed: int = 0, noise_std: float = 0.0, block: nn.Module | None = None, **options) -> Run:
    with seeded(7):
        router = NoisyTopKRouter(16, 8, 2, noise="gaussian", noise_std=noise_std)
        model = PlaneClassifier(block or MoE(16, 4, 8, top_k=2, router=router), num_classes=8)
    return Run(model, options.pop("task", TASK), **{"lr": 0.02, "batch_size": BATCH, "seed": seed, **options})


def numbers(run: Run, steps: int) -> list[Record]:
    return [replace(run.step(), ms_per_step=0.0) for _ in range(steps)]


def weights(run: Run) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_same_seed_gives_the_same_numbers_whatever_goes_on_around_it():
    alone = numbers(make_run(seed=3, noise_std=1.0), 12)
    one, two, seen, others = make_run(seed=3, noise_std=1.0), make_run(seed=4, noise_std=1.0), [], []
    for step in range(12):
        with torch_threads(1 + step % 3):
            seen += numbers(one, 1)
            torch.manual_seed(step)
            others += numbers(two, 1)
            one.evaluate(100)
    assert seen == alone != others


@pytest.mark.parametrize("name", ["noise_std", "jitter_noise"])
def test_the_noise_of_each_step_and_seed_is_its_own(name):
    seen = []
    for run in (make_run(seed, lr=1e-30) for seed in (0, 1)):
        setattr(run.knobs, name, 0.5)
        run.draw = lambda *_: TASK.batch(BATCH, torch.Generator().manual_seed(0))  # the same points each time
        run.model.block.router.register_forward_hook(lambda _, __, routing: seen.append(routing.router_logits.detach()))
        numbers(run, 3)
    assert len({logits.sum().item() for logits in seen}) == 6


def test_a_run_is_the_loop_of_torch_with_its_adamw_its_schedules_and_its_clipping():
    with seeded(7):
        block = MoE(16, 4, 8, top_k=2, bias=True)
    run = make_run(block=block, warmup_steps=4, decay_steps=10, max_grad_norm=0.8)
    run.knobs.router_aux_loss_coef, run.knobs.router_z_loss_coef = 0.5, 0.1
    model, data, norms = copy.deepcopy(run.model), torch.Generator().manual_seed(0), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.0)
    warm_up = lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=3)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=6, eta_min=0.002)
    schedule = lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], milestones=[3])
    for step in range(1, 11):
        x, y = TASK.batch(BATCH, data)
        logits, (routing,) = model(x)
        loss, balance, z_loss = F.cross_entropy(logits, y), load_balancing_loss(routing), router_z_loss(routing)
        optimizer.zero_grad()
        (loss + 0.5 * balance + 0.1 * z_loss).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.8).item())
        record = run.step()
        assert record.loss == pytest.approx(loss.item())  # the task's alone
        expected = {"load_balancing_loss": balance.item(), "router_z_loss": z_loss.item()}
        assert record.auxiliary == pytest.approx(expected)
        assert record.accuracy == pytest.approx((logits.argmax(1) == y).double().mean().item())
        assert record.load == [pytest.approx((routing.demand_per_expert / (2 * BATCH)).tolist())]
        assert record.step == step and record.dropped_share == 0 and record.ms_per_step > 0
        assert record.lr == pytest.approx(optimizer.param_groups[0]["lr"])
        torch.testing.assert_close([p.grad for p in run.model.parameters()], [p.grad for p in model.parameters()])
        optimizer.step(), schedule.step()
        torch.testing.assert_close(list(run.model.parameters()), list(model.parameters()))
    assert min(norms) < 0.8 < max(norms)  # both of a small gradient, which is left alone, and of a large one
    assert run.history["load E7"].tolist() == [each.load[0][7] for each in run.records]
    assert record.lr == run.step().lr == pytest.approx(0.002)
    run.knobs.lr = 0.5  # the peak
    assert run.step().lr == pytest.approx(0.05)
    assert [lr_scale(step) for step in (1, 1000)] == [1, 1] and [lr_scale(step, 2) for step in (1, 1000)] == [0.5, 1]


@pytest.mark.parametrize("name", TURNED)
def test_a_knob_works_from_the_next_step_on(name):
    reference, run = make_run(), make_run()
    expected, off = numbers(reference, 3), getattr(run.knobs, name)
    for value in (TURNED[name], off):  # turned back, it is as if it had never been turned
        setattr(run.knobs, name, value)
    assert numbers(run, 3) == expected
    with pytest.raises(AttributeError, match="no knob 'noise'"):
        run.knobs.noise = 0.5
    setattr(run.knobs, name, TURNED[name])
    expected, seen = numbers(reference, 1)[0], numbers(run, 1)[0]
    assert not same(weights(run), weights(reference))
    if name in ("noise_std", "jitter_noise"):
        assert seen.load != expected.load
    elif name == "capacity_factor":
        assert seen.dropped_share > 0.3 and seen.load == expected.load  # load is what the router wanted
    else:  # the update changes, and not what the step showed before it
        assert replace(seen, lr=0.02) == expected


def test_the_bias_is_moved_against_the_load_after_each_step_and_never_in_evaluation():
    run = make_run(block=MoE(16, 4, 8, router=SigmoidRouter(16, 8, 2)))
    bias, expected = run.model.block.router.expert_bias, torch.zeros(8)
    for rate in (0, 0.25, 0.25):  # 0 from the start
        run.knobs.expert_bias_rate, before = rate, bias.clone()
        expected = expected + rate * (1 / 8 - torch.tensor(run.step().load[0])).sign()
        run.evaluate()
        torch.testing.assert_close(bias, expected)
    run.take_back()
    assert torch.equal(bias, before) and before.any()


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = PlaneClassifier(MoE(16, 4, 4, top_k=1), num_classes=2)
        self.second = PlaneClassifier(MoE(16, 4, 3, top_k=2, router=SigmoidRouter(16, 3, 2)), num_classes=8)

    def forward(self, x):
        hidden, first = self.first(x)
        logits, second = self.second(hidden)
        return logits, first + second


def test_several_layers_have_their_loads_and_biases_apart_and_the_rest_summed():
    with seeded(0):
        run = Run(TwoLayers(), TASK, batch_size=BATCH)
    run.knobs.capacity_factor, run.knobs.expert_bias_rate = 0.5, 0.5
    with torch.no_grad():
        _, routings = run.model(TASK.batch(BATCH, torch.Generator().manual_seed(0))[0])
    assert len(run.history) == 0 and "loss" in run.history.columns
    record = run.step()
    assert record.load == [pytest.approx(load_share(routing).tolist()) for routing in routings]
    balance = record.auxiliary["load_balancing_loss"]
    assert balance == pytest.approx(sum(load_balancing_loss(r).item() for r in routings))
    assert record.dead_experts == sum(dead_experts(r) for r in routings)
    assert record.dropped_share == sum(r.dropped for r in routings) / (BATCH * 3) > 0
    bias = 0.5 * (1 / 3 - load_share(routings[1])).sign()  # the first layer has none
    assert torch.equal(run.model.second.block.router.expert_bias, bias)
    loads = [f"load L0 E{e}" for e in range(4)] + [f"load L1 E{e}" for e in range(3)]
    for (_, row), each in zip(run.history.iterrows(), [record], strict=True):
        fields = {name: value for name, value in vars(each).items() if name not in ("auxiliary", "load")}
        assert row.to_dict() == fields | each.auxiliary | dict(zip(loads, sum(each.load, []), strict=True))


@pytest.mark.parametrize("make", [lambda: watched_run(PRESETS["noise"]), lambda: SeedBand(PRESETS["noise"], (4, 0))])
@pytest.mark.parametrize("steps", [0, 3])
def test_the_last_step_can_be_taken_back_and_draws_its_batch_and_noise_again(make, steps):
    run, other = make(), make()
    for _ in range(steps):
        run.step(), other.step()
    before, first = weights(run), other.step()
    run.step()
    run.take_back()
    assert len(run.records) == len(getattr(run, "expert_gradients", run.records)) == steps
    assert same(before, weights(run))
    again = run.step()
    assert (again.step, again.loss, again.load) == (steps + 1, first.loss, first.load)
    assert [run.step().loss for _ in range(2)] == [other.step().loss for _ in range(2)]


def test_several_runs_step_together_or_none_does(interruptible):
    runs, others = ([make_run(seed=seed, noise_std=1.0) for seed in range(3)] for _ in range(2))
    for _ in range(2):
        step_together(runs), step_together(others)
    hooks = [lambda *_: signal.raise_signal(signal.SIGINT), lambda *_: 1 / 0]
    for hook, error in zip(hooks, (KeyboardInterrupt, ZeroDivisionError), strict=True):
        for place in ("after_backward", "after_step"):
            getattr(runs[1], place).append(hook)
            with pytest.raises(error):
                step_together(runs)
            getattr(runs[1], place).remove(hook)
            assert [len(run.records) for run in runs] == [2, 2, 2]
    with pytest.raises(KeyboardInterrupt):
        step_together(runs, between=lambda: signal.raise_signal(signal.SIGINT))
    assert [numbers(run, 2) for run in runs] == [numbers(run, 2) for run in others]
    runs[1].knobs.lr, rate = 1e15, runs[1].knobs.lr
    step_together(runs)
    with pytest.raises(TrainingDiverged):
        step_together(runs)
    assert [len(run.records) for run in runs] == [4, 4, 4]  # the step that was too large is gone, too
    runs[1].knobs.lr = rate
    assert [numbers(run, 2) for run in runs] == [numbers(run, 2) for run in others]


def test_an_interrupt_while_a_step_is_taken_back_comes_when_all_of_it_is(interruptible, monkeypatch):
    run, other = make_run(noise_std=1.0), make_run(noise_std=1.0)
    expected = numbers(other, 4)[2:]
    numbers(run, 3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run.optimizer, "zero_grad", lambda: signal.raise_signal(signal.SIGINT))
        run.take_back()
    assert numbers(run, 2) == expected


def test_hundreds_of_interrupts_at_random_moments_leave_the_same_numbers_as_none():
    """Wherever the code is: in a step of several runs or, one time in ten, in an evaluation."""
    setting = replace(PRESETS["noise"], noise_std=0.0, router="sigmoid", **BIAS)
    runs, others = ([watched_run(setting), make_run(seed=1)] for _ in range(2))
    moments, count, watched = Random(0), 0, runs[0]
    state, before = torch.get_rng_state(), signal.signal(signal.SIGALRM, signal.default_int_handler)
    step_together(runs)
    try:
        while count < 150 or len(watched.records) < 50:
            try:
                at = moments.uniform(1e-3, 5) * watched.records[-1].ms_per_step / 1000
                signal.setitimer(signal.ITIMER_REAL, at, 1)  # again: Python swallows what is raised in a destructor
                while True:
                    step_together(runs) if moments.random() < 0.9 else watched.evaluate(8)
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
                count += 1
                assert len(runs[0].records) == len(runs[1].records) == len(watched.expert_gradients)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert torch.is_grad_enabled() and torch.equal(torch.get_rng_state(), state)
    for run, other in zip(runs, others):
        assert numbers(other, len(run.records)) == [replace(record, ms_per_step=0.0) for record in run.records]
        assert same(weights(run), weights(other)) and run.evaluate() == other.evaluate()


def refusing(_, __, output):
    if not output.isfinite().all():
        raise IndexError("no expert has this number")


@pytest.mark.parametrize(
    "hook, is_bad, why",
    [
        (lambda *_: None, True, "the loss is nan"),
        (refusing, True, "no expert has this number"),
        (lambda _, args, __: ((args[0] - args[0].detach()) ** 2).sqrt(), False, "a gradient is not finite"),
    ],
)
def test_what_is_not_finite_stops_the_training_and_the_last_step_is_taken_back(hook, is_bad, why):
    run = make_run(block=FeedForward(16, 8))
    other = make_run(block=copy.deepcopy(run.model.block))
    other.model.load_state_dict(run.model.state_dict())
    numbers(run, 2), numbers(other, 2)
    before_third = weights(run)
    run.step()
    handle = run.model.block.register_forward_hook(hook)
    if is_bad:
        run.model.block.down_proj.data[0] = math.inf
    with pytest.raises(TrainingDiverged, match=f"^training stopped after step 3: {why}; .*learning rate"):
        run.step()
    assert same(weights(run), before_third) and len(run.records) == 2
    handle.remove()
    assert numbers(run, 2) == numbers(other, 2)  # those that were taken back are computed again


def test_evaluation_is_without_noise_and_without_gradients_and_gives_the_mode_back():
    noisy, calm = make_run(noise_std=5.0), make_run()
    for mode in (False, True):
        noisy.model.train(mode)
        assert noisy.evaluate() == calm.evaluate() and noisy.model.training is mode
    assert all(weight.grad is None for weight in noisy.model.parameters())
    points, trained_on = calm.held_out(BATCH)[0], calm.draw(BATCH, calm.make_generators())[0]
    assert not (points[:, None] == trained_on).all(dim=2).any()
    noisy.model.eval()
    noisy.step()  # trains in training mode all the same
    assert noisy.model.training


def test_a_block_that_draws_random_numbers_is_evaluated_alike_and_draws_none_of_others():
    run, state = make_run(), torch.get_rng_state()
    run.model.block.register_forward_pre_hook(lambda _, args: (args[0] + torch.randn_like(args[0]),))
    first = run.evaluate(64)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert run.evaluate(64) == first


NOISY = ({"noise_std": 0.5}, {"jitter_noise": 0.1}, {"router": "learned noise"})


@pytest.mark.parametrize("fields", [*NOISY, {}, {"router": "sigmoid"}])
def test_knobs_say_whether_training_routes_otherwise_than_evaluation(fields):
    run = plane_runs(PlaneSetting(**fields))["MoE"]
    assert run.knobs.is_noisy is (fields in NOISY)
    x, _ = run.task.batch(64, torch.Generator().manual_seed(0))
    with torch.no_grad():
        (training,), (evaluation,) = run.model.train()(x)[1], run.model.eval()(x)[1]
    assert torch.equal(training.router_logits, evaluation.router_logits) is not run.knobs.is_noisy
