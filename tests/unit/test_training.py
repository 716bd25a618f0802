"""A run: the same numbers for the same seed whatever goes on around it, knobs, history, and a clear stop."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moe_lessons.analysis.collapse import watched_run
from moe_lessons.bands import SeedBand
from moe_lessons.nn import (
    FeedForward,
    LanguageModel,
    MoE,
    NoisyTopKRouter,
    Routing,
    SigmoidRouter,
    TopKRouter,
    TransformerConfig,
    dense_twin,
    load_balancing_loss,
    router_z_loss,
    seeded,
)
from moe_lessons.tasks import PRESETS, PlaneClassifier, PlaneSetting, PlaneTask, TextTask, remedy_setting
from moe_lessons.training import (
    Record,
    Run,
    TrainingDiverged,
    choose_precision,
    dead_experts,
    load_share,
    lr_scale,
    plane_runs,
)

TASK = PlaneTask("blobs")
KNOBS = {
    "lr": 0.5,
    "noise_std": 2.0,
    "jitter_noise": 0.9,
    "router_aux_loss_coef": 1.0,
    "router_z_loss_coef": 1.0,
    "capacity_factor": 0.5,
}
BATCH = 64


def make_run(seed: int = 0, noise_std: float = 0.0, block: nn.Module | None = None, **options) -> Run:
    with seeded(7):
        router = NoisyTopKRouter(16, 8, 2, noise="gaussian", noise_std=noise_std)
        model = PlaneClassifier(block or MoE(16, 4, 8, top_k=2, router=router), num_classes=8)
    return Run(model, options.pop("task", TASK), **{"lr": 0.02, "batch_size": BATCH, "seed": seed, **options})


def numbers(run: Run, steps: int) -> list[Record]:
    """The records of further steps, without their times."""
    return [run.step()._replace(ms_per_step=0.0) for _ in range(steps)]


def weights(run: Run) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def first_batch(seed: int = 0, task: PlaneTask = TASK) -> tuple[torch.Tensor, torch.Tensor]:
    return task.batch(BATCH, torch.Generator().manual_seed(seed))


# --- the same seed, the same numbers ---------------------------------------------------------------------


def test_the_same_seed_gives_the_same_numbers_whatever_goes_on_around_it():
    alone = numbers(make_run(seed=3, noise_std=1.0), 12)
    one, two = make_run(seed=3, noise_std=1.0), make_run(seed=4, noise_std=1.0)
    threads = torch.get_num_threads()
    seen, others = [], []
    try:
        for step in range(12):
            seen += numbers(one, 1)
            torch.manual_seed(step)
            torch.rand(step)
            torch.set_num_threads(1 + step % 3)
            others += numbers(two, 1)
    finally:
        torch.set_num_threads(threads)
    assert seen == alone
    assert others != alone


def test_noise_is_drawn_afresh_at_every_step():
    run = make_run(noise_std=1.0, lr=1e-12)
    run._data.manual_seed(0)
    first = numbers(run, 1)[0]
    run._data.manual_seed(0)  # the same points once more
    assert numbers(run, 1)[0].load != first.load


def test_a_run_leaves_the_random_state_and_the_threads_of_others_alone():
    run = make_run(noise_std=1.0, threads=2)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    run.step()
    run.evaluate(32)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    run.knobs.lr = 1e30
    with pytest.raises(TrainingDiverged):
        numbers(run, 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


class Plain(nn.Module):
    """A block that checks nothing, and remembers how many threads torch had."""

    d_model, threads = 16, 0

    def forward(self, x):
        self.threads = torch.get_num_threads()
        return torch.zeros_like(x)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_computes_with_its_own_threads(threads):
    block = Plain()
    run = make_run(block=block, threads=threads)
    outside = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        run.step()
        assert block.threads == threads
        block.threads = 0
        run.evaluate(8)
        assert block.threads == threads
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(outside)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None, True, 2**70])
def test_a_seed_that_is_none(seed):
    with pytest.raises(ValueError, match=r"^seed must be a whole number from 0 to 2\*\*62, got "):
        make_run(seed=seed)


def test_it_learns():
    run = make_run()
    before = run.evaluate()
    numbers(run, 150)
    after = run.evaluate()
    assert after["loss"] < before["loss"] / 2
    assert after["accuracy"] > 0.6


# --- one step, checked by hand ---------------------------------------------------------------------------


def test_a_step_descends_the_task_loss_plus_the_weighted_auxiliary_losses():
    run, reference = make_run(block=None), make_run(block=None)
    run.knobs.router_aux_loss_coef, run.knobs.router_z_loss_coef = 0.5, 0.1
    x, y = first_batch()
    logits, (routing,) = reference.model(x)
    loss, balance, z_loss = F.cross_entropy(logits, y), load_balancing_loss(routing), router_z_loss(routing)
    (loss + 0.5 * balance + 0.1 * z_loss).backward()
    reference.optimizer.step()

    record = run.step()
    assert record.loss == pytest.approx(loss.item())  # the task's alone
    assert record.load_balancing_loss == pytest.approx(balance.item())
    assert record.router_z_loss == pytest.approx(z_loss.item())
    assert record.accuracy == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert record.load == [pytest.approx((routing.demand_per_expert / (2 * BATCH)).tolist())]
    assert record.step == 1 and record.dropped_share == 0 and record.ms_per_step > 0
    for got, expected in zip(run.model.parameters(), reference.model.parameters()):
        torch.testing.assert_close(got.grad, expected.grad)
        torch.testing.assert_close(got, expected)


def test_the_loss_never_holds_the_auxiliary_losses():
    run = make_run(lr=1e-9)
    plain = run.step().loss
    run = make_run(lr=1e-9)
    run.knobs.router_aux_loss_coef = run.knobs.router_z_loss_coef = 1000.0
    assert run.step().loss == plain


# --- knobs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOBS)
def test_a_knob_works_from_the_next_step_on(name):
    reference, run = make_run(), make_run()
    expected = numbers(reference, 3)
    assert numbers(run, 3) == expected
    setattr(run.knobs, name, KNOBS[name])
    assert getattr(run.knobs, name) == KNOBS[name]
    assert f"{name}={KNOBS[name]}" in repr(run.knobs)
    expected, seen = numbers(reference, 1)[0], numbers(run, 1)[0]
    assert not same(weights(run), weights(reference))
    if name in ("noise_std", "jitter_noise"):
        assert seen.load != expected.load
    elif name == "capacity_factor":
        assert seen.dropped_share > 0.3 and seen.load == expected.load  # load is what the router wanted
    else:  # the update changes, and not what the step showed before it
        assert seen._replace(lr=0.02) == expected


def test_the_learning_rate_is_that_of_the_very_next_update():
    run = make_run()
    numbers(run, 3)
    before = weights(run)
    run.knobs.lr = 1e-12
    run.step()
    assert all(torch.allclose(a, b, rtol=0, atol=1e-7) for a, b in zip(before, weights(run)))


def test_knobs_can_be_turned_back():
    run = make_run()
    for name, value in KNOBS.items():
        before = getattr(run.knobs, name)
        setattr(run.knobs, name, value)
        setattr(run.knobs, name, before)
    assert numbers(run, 5) == numbers(make_run(), 5)


def test_the_balancing_knob_balances():
    plain, balanced = make_run(), make_run()
    balanced.knobs.router_aux_loss_coef = 1.0
    assert numbers(balanced, 100)[-1].load_balancing_loss < numbers(plain, 100)[-1].load_balancing_loss


@pytest.mark.parametrize(
    "name, value",
    [
        *[(name, value) for name in (*KNOBS, "expert_bias_rate") for value in (-0.1, math.nan, math.inf, "a", True)],
        *[(name, None) for name in KNOBS if name != "capacity_factor"],
        ("expert_bias_rate", None),
        ("lr", 0),
        ("capacity_factor", 0),
    ],
)
def test_a_bad_value_for_a_knob_is_one_sentence_and_changes_nothing(name, value):
    run = make_run(noise_std=0.5)
    before = repr(run.knobs)
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value!r}$") as error:
        setattr(run.knobs, name, value)
    assert "\n" not in str(error.value)
    assert repr(run.knobs) == before
    assert numbers(run, 2) == numbers(make_run(noise_std=0.5), 2)


def test_knobs_that_a_model_lacks_can_only_stay_off():
    run = make_run(block=FeedForward(16, 8))
    run.knobs.noise_std, run.knobs.capacity_factor = 0, None
    run.knobs.jitter_noise = run.knobs.expert_bias_rate = 0
    with pytest.raises(ValueError, match=r"^jitter_noise must be 0 where no router can jitter its input, got 0\.5$"):
        run.knobs.jitter_noise = 0.5
    with pytest.raises(ValueError, match=r"^expert_bias_rate must be 0 where no router has an expert_bias, got 0\.5$"):
        run.knobs.expert_bias_rate = 0.5
    with pytest.raises(ValueError, match=r"^noise_std must be 0 where no router has Gaussian noise, got 0\.5$"):
        run.knobs.noise_std = 0.5
    with pytest.raises(ValueError, match=r"^capacity_factor must be None where no block has a capacity, got 1\.0$"):
        run.knobs.capacity_factor = 1.0
    assert run.knobs.noise_std == 0 and run.knobs.capacity_factor is None
    knobs = run.knobs
    assert not any(map(knobs.has, ("noise_std", "jitter_noise", "expert_bias_rate", "capacity_factor")))


def test_bias_updates_need_a_routing_for_each_layer():
    """A layer that works twice gives two: refused before anything has changed."""
    run = make_run(block=MoE(16, 4, 8, router=SigmoidRouter(16, 8, 2)))
    once = run.model.forward
    run.model.forward = lambda x: (once(x)[0], once(x)[1] * 2)
    assert run.step().step == 1
    run.knobs.expert_bias_rate = 0.5
    before = [weight.clone() for weight in run.model.parameters()]
    message = r"one Routing for each MoE layer \(1\) where expert_bias_rate is above 0, got 2"
    with pytest.raises(ValueError, match=f"^model must return {message}$"):
        run.step()
    assert all(torch.equal(weight, old) for weight, old in zip(run.model.parameters(), before))
    assert len(run.records) == 1


def test_the_bias_is_moved_against_the_load_after_each_step_and_never_in_evaluation():
    run = make_run(block=MoE(16, 4, 8, router=SigmoidRouter(16, 8, 2)))
    bias = run.model.block.router.expert_bias
    run.step()
    run.evaluate()
    assert run.knobs.has("expert_bias_rate") and not bias.any()  # the rate is 0 from the start
    run.knobs.expert_bias_rate = 0.25
    load = torch.tensor(run.step().load[0])
    assert torch.equal(bias, 0.25 * (1 / 8 - load).sign())
    once = bias.clone()
    run.evaluate()
    assert torch.equal(bias, once)
    load = torch.tensor(run.step().load[0])
    torch.testing.assert_close(bias, once + 0.25 * (1 / 8 - load).sign())
    run.go_back()
    assert torch.equal(bias, once)


def test_each_layer_moves_its_own_bias_and_one_without_a_bias_is_left_alone():
    class Mixed(TwoLayers):
        def __init__(self):
            super().__init__()
            self.second.block = MoE(16, 4, 3, top_k=1, router=SigmoidRouter(16, 3, 1))

    run = Run(Mixed(), TASK, batch_size=BATCH)
    run.knobs.expert_bias_rate = 0.5
    load = torch.tensor(run.step().load[1])
    assert torch.equal(run.model.second.block.router.expert_bias, 0.5 * (1 / 3 - load).sign())


def test_the_noise_knob_leaves_a_learned_noise_alone():
    run = make_run(block=MoE(16, 4, 8, router=NoisyTopKRouter(16, 8, 2)))
    assert run.knobs.noise_std == 0
    with pytest.raises(ValueError, match="noise_std"):
        run.knobs.noise_std = 1.0


# --- the optimizer ---------------------------------------------------------------------------------------


def test_without_weight_decay_it_is_adam():
    class Double(PlaneTask):
        def batch(self, num_points, generator):
            x, y = super().batch(num_points, generator)
            return x.double(), y

    run, adam = make_run(task=Double()), make_run(task=Double())
    run.model.double(), adam.model.double()  # no tie of two scores is decided by rounding
    adam.optimizer = torch.optim.Adam(adam.model.parameters(), foreach=False)
    expected, seen = numbers(adam, 30), numbers(run, 30)
    assert [r.loss for r in seen] == pytest.approx([r.loss for r in expected], rel=1e-9)


def test_an_interrupted_step_has_changed_no_weight(monkeypatch):
    run = make_run(seed=1)
    run.step()
    before = [weight.clone() for weight in weights(run)]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "_record", interrupted)  # as late as a record is made
        run.step()
    assert same(before, weights(run)) and len(run.records) == 1


def test_a_setting_that_cannot_be_taken_leaves_every_knob():
    run = make_run(block=MoE(16, 8, 4, router=TopKRouter(16, 4, 2)))  # it has no noise
    before = repr(run.knobs)
    with pytest.raises(ValueError, match="noise_std must be 0"):
        run.knobs.take(PlaneSetting(lr=0.5, noise_std=1.0))
    assert repr(run.knobs) == before


def test_only_matrices_decay():
    def block():
        with seeded(7):
            block = MoE(16, 4, 8, bias=True)
        nn.init.ones_(block.experts.down_proj_bias)
        return block

    plain, decaying = make_run(block=block()), make_run(block=block(), weight_decay=0.5)
    before = weights(plain)
    plain.step(), decaying.step()
    for name, old, a, b in zip(dict(plain.model.named_parameters()), before, weights(plain), weights(decaying)):
        decayed = not name.endswith("bias")
        torch.testing.assert_close(b - a, -0.02 * 0.5 * old * decayed, rtol=0, atol=1e-6)  # arXiv:1711.05101
        assert torch.equal(a, b) is not decayed


def test_the_schedule_is_that_of_torch():
    run = make_run(lr=0.02, warmup_steps=4, decay_steps=10)
    rates = [record.lr for record in numbers(run, 13)]
    weight = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=0.02)
    cosine, expected = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6, eta_min=0.002), []
    for _ in range(7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step(), cosine.step()
    assert rates[:4] == pytest.approx([0.005, 0.01, 0.015, 0.02])
    assert rates[3:10] == pytest.approx(expected) and rates[9:] == pytest.approx([0.002] * 4)
    assert [lr_scale(step) for step in (1, 2, 1000)] == [1, 1, 1]
    assert [lr_scale(step, 2) for step in (1, 2, 1000)] == [0.5, 1, 1]
    run.knobs.lr = 0.5  # the peak
    assert run.step().lr == pytest.approx(0.05)


def test_the_update_has_the_rate_of_the_schedule():
    run, half = make_run(), make_run(warmup_steps=2)
    before = weights(run)
    run.step(), half.step()
    for old, a, b in zip(before, weights(run), weights(half)):
        torch.testing.assert_close(b - old, (a - old) / 2, rtol=0, atol=1e-6)


def test_a_gradient_is_scaled_down_to_the_largest_norm_and_a_smaller_one_is_left_alone():
    plain, clipped, loose = make_run(), make_run(max_grad_norm=0.01), make_run(max_grad_norm=1000.0)
    for run in (plain, clipped, loose):
        run.step()
    each = [torch.cat([p.grad.flatten() for p in run.model.parameters()]) for run in (plain, clipped, loose)]
    assert each[0].norm() > 0.1 and each[1].norm() == pytest.approx(0.01, rel=1e-4)
    assert torch.nn.functional.cosine_similarity(each[0], each[1], dim=0) == pytest.approx(1, abs=1e-5)
    assert torch.equal(each[0], each[2])


# --- language models -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text() -> TextTask:
    return TextTask(["english", "json"], context=24)


def text_run(task: TextTask, router: str = "top-k", seed: int = 0, **options) -> Run:
    config = TransformerConfig(
        d_model=32, num_layers=2, num_heads=2, max_positions=24, d_ff=16, num_experts=4, router=router
    )
    with seeded(seed):
        model = LanguageModel(config)
    return Run(model, task, **{"lr": 0.01, "batch_size": 16, "seed": seed, **options})


@pytest.mark.parametrize("router", ["top-k", "sigmoid"])
def test_every_knob_works_on_a_language_model(text, router):
    values = KNOBS | ({"expert_bias_rate": 0.25} if router == "sigmoid" else {})
    if router == "sigmoid":
        del values["noise_std"]
    for name, value in values.items():
        reference, run = text_run(text, router), text_run(text, router)
        assert numbers(run, 2) == numbers(reference, 2)
        setattr(run.knobs, name, value)
        expected, seen = numbers(reference, 1)[0], numbers(run, 1)[0]
        if name in ("noise_std", "jitter_noise"):
            assert all(a != b for a, b in zip(seen.load, expected.load)), name  # in both layers
        elif name == "capacity_factor":
            assert seen.dropped_share > 0.3
        elif name == "expert_bias_rate":
            for layer, load in zip(run.model.layers, seen.load):
                assert torch.equal(layer.ffn.router.expert_bias, 0.25 * (1 / 4 - torch.tensor(load)).sign())
        else:
            assert seen._replace(lr=expected.lr) == expected
            assert not same(weights(run), weights(reference)), name
        run.model.load_state_dict(reference.model.state_dict())
        if name != "capacity_factor":  # a limit holds in evaluation too
            assert run.evaluate(8) == reference.evaluate(8), name


def test_the_domains_of_a_task_are_evaluated_apart(text):
    run = text_run(text)
    frame = run.evaluate_by_domain(5)
    assert list(frame.index) == ["english", "json"] and frame.index.name == "domain"
    assert list(frame.columns) == ["loss", "accuracy"]
    x, y, domain = text.held_out(5)
    with torch.no_grad():
        log_probs = run.model.eval()(x)[0].log_softmax(dim=-1)
    for i, row in enumerate(frame.itertuples()):
        mine = log_probs[domain == i], y[domain == i]
        assert row.loss == pytest.approx(F.nll_loss(mine[0].flatten(0, 1), mine[1].flatten()).item())
        assert row.accuracy == pytest.approx((mine[0].argmax(dim=-1) == mine[1]).float().mean().item())
    assert frame.mean().to_dict() == pytest.approx(run.evaluate(10))
    with pytest.raises(ValueError, match="^task must have domains and a held-out part, got PlaneTask$"):
        make_run().evaluate_by_domain()
    with pytest.raises(ValueError, match="^num_per_domain must be a whole number of at least 1, got 0$"):
        run.evaluate_by_domain(0)


def test_sequences_that_are_longer_than_the_model_has_positions_are_refused_at_once():
    with pytest.raises(ValueError, match=r"^context must be at most the model's max_positions \(24\), got 25$"):
        text_run(TextTask.from_text("Any text will do. " * 9 + "".join(map(chr, range(33, 1200))), context=25))


# --- precision -------------------------------------------------------------------------------------------


def test_in_bfloat16_the_router_the_loss_and_the_weights_stay_in_float32(text):
    run, seen = text_run(text, precision="bfloat16"), {}
    router, head = run.model.layers[1].ffn.router, run.model.head
    router.register_forward_hook(lambda *args: seen.update(router=args[2].router_logits.dtype))
    head.register_forward_hook(lambda *args: seen.update(head=args[2].dtype))
    for use in (run.step, run.evaluate):
        seen.clear()
        use()
        assert seen == {"router": torch.float32, "head": torch.bfloat16}
    assert all(weight.dtype == weight.grad.dtype == torch.float32 for weight in run.model.parameters())
    assert run._forward(text.held_out(1)[0])[0].dtype == torch.float32  # the logits that the loss is computed from


def test_bfloat16_learns_about_as_well(text):
    for seed in range(3):
        single, half = text_run(text, seed=seed), text_run(text, seed=seed, precision="bfloat16")
        before = single.evaluate(64)["loss"]
        assert numbers(single, 40) != numbers(half, 40)
        after = single.evaluate(64)["loss"]
        assert after < before - 2
        assert half.evaluate(64)["loss"] == pytest.approx(after, abs=0.1)


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bfloat16_on_a_gpu_that_has_it_and_nowhere_else(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert choose_precision("auto", torch.device("cuda")) == ("bfloat16" if native else "float32")
    assert choose_precision("auto", torch.device("cpu")) == choose_precision("auto", torch.device("mps")) == "float32"
    assert make_run(precision="auto").precision == "float32"


# --- history ---------------------------------------------------------------------------------------------


def test_history_has_a_row_for_each_step_and_a_column_for_the_load_of_each_expert():
    run = make_run()
    columns = [name for name in Record._fields if name != "load"]
    assert list(run.history.columns) == columns and len(run.history) == 0
    records = [run.step() for _ in range(4)]
    history = run.history
    loads = [f"load E{e}" for e in range(8)]
    assert list(history.columns) == columns + loads
    assert list(history["step"]) == [1, 2, 3, 4]
    for row, record in zip(history.itertuples(index=False), records, strict=True):
        assert list(row[len(columns) :]) == record.load[0]
        assert list(row[: len(columns)]) == [getattr(record, name) for name in columns]
    assert history[loads].sum(axis=1).tolist() == pytest.approx([1.0] * 4)


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = PlaneClassifier(MoE(16, 4, 4, top_k=1), num_classes=2)
        self.second = PlaneClassifier(MoE(16, 4, 3, top_k=2), num_classes=8)

    def forward(self, x):
        hidden, first = self.first(x)
        logits, second = self.second(hidden)
        return logits, first + second


def test_several_layers_have_their_loads_apart_and_the_rest_summed():
    with seeded(0):
        model = TwoLayers()
    run = Run(model, TASK, batch_size=BATCH)
    run.knobs.capacity_factor = 0.5
    with torch.no_grad():
        _, routings = model(first_batch()[0])
    record = run.step()
    loads = [name for name in run.history.columns if name.startswith("load ")]
    assert loads == [f"load L0 E{e}" for e in range(4)] + [f"load L1 E{e}" for e in range(3)]
    assert [sum(layer) for layer in record.load] == pytest.approx([1, 1])
    assert record.load == [pytest.approx(load_share(routing).tolist()) for routing in routings]
    assert record.load_balancing_loss == pytest.approx(sum(load_balancing_loss(r).item() for r in routings))
    assert record.dead_experts == sum(dead_experts(r) for r in routings)
    assert record.dropped_share == sum(r.dropped for r in routings) / (BATCH * 3) > 0


def test_a_dense_model_has_no_load():
    run = make_run(block=FeedForward(16, 8))
    record = run.step()
    assert record.load == [] and record.dead_experts == 0
    assert record.load_balancing_loss == record.router_z_loss == record.dropped_share == 0
    assert not [name for name in run.history.columns if name.startswith("load ")]


# --- a step that fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: watched_run(PRESETS["noise"]), lambda: SeedBand(PRESETS["noise"], (4, 0))])
def test_a_step_that_fails_draws_its_batch_and_noise_again_and_the_last_step_can_be_taken_back(make):
    run, other = make(), make()
    for _ in range(3):
        run.step(), other.step()
    handle = run.model.head.register_forward_hook(lambda *_: 1 / 0)  # after data and noise were drawn
    with pytest.raises(ZeroDivisionError):
        run.step()
    handle.remove()
    before, fourth = weights(run), other.step()
    assert run.step().load == fourth.load and run.records[-1].loss == fourth.loss
    run.take_back()
    assert len(run.records) == len(getattr(run, "expert_gradients", run.records)) == 3 and same(before, weights(run))
    assert run.step().load == fourth.load and run.records[-1].loss == fourth.loss and run.records[-1].step == 4


# --- divergence ------------------------------------------------------------------------------------------


def test_a_learning_rate_that_is_too_high_stops_the_run_and_a_lower_one_goes_on():
    run = make_run()
    good = numbers(run, 5)
    run.knobs.lr = 1e30
    with pytest.raises(TrainingDiverged, match=r"^training stopped after step \d+: .*learning rate \(now 1e\+30\)"):
        numbers(run, 20)
    kept = len(run.records)
    assert 5 <= kept < 25 and [r._replace(ms_per_step=0.0) for r in run.records[:5]] == good
    assert all(math.isfinite(record.loss) for record in run.records)
    assert len(run.history) == kept
    assert all(torch.isfinite(w).all() for w in weights(run))
    run.knobs.lr = 0.02
    after = numbers(run, 60)
    assert after[0].step == kept + 1
    assert all(math.isfinite(record.loss) for record in after)
    assert after[-1].loss < after[0].loss


class PoisonedTask:
    """The points of a task; those of batch `bad` hold an infinity."""

    def __init__(self, bad: int):
        self.bad, self.drawn = bad, 0

    def batch(self, num_points, generator):
        self.drawn += 1
        x, y = TASK.batch(num_points, generator)
        return (x * math.inf if self.drawn == self.bad else x), y


@pytest.mark.parametrize(
    "block, why", [(None, "x must be finite"), (FeedForward(16, 8), "x must be finite"), (Plain(), "the loss is nan")]
)
def test_what_was_learned_until_the_last_good_step_is_kept(block, why):
    run = make_run(task=PoisonedTask(bad=4), block=block)
    numbers(run, 2)
    before_third = weights(run)
    run.step()
    with pytest.raises(TrainingDiverged, match=f"^training stopped after step 3: {why}.*learning rate"):
        run.step()
    assert not run.optimizer.state  # averages of gradients that led astray are forgotten
    assert same(weights(run), before_third)  # those that the loss of step 3 was computed with
    assert [record.step for record in run.records] == [1, 2, 3]
    assert numbers(run, 2)[-1].step == 5


class BadGradient(nn.Module):
    """Adds zero, with a gradient that is not a number when told so."""

    d_model, bad = 16, False

    def forward(self, x):
        return torch.zeros_like(x) if not self.bad else ((x - x.detach()) ** 2).sqrt()


def test_a_gradient_that_is_not_finite_never_reaches_the_weights():
    block = BadGradient()
    run = make_run(block=block)
    numbers(run, 2)
    block.bad = True
    with pytest.raises(TrainingDiverged, match="after step 2: a gradient is not finite"):
        run.step()
    assert all(torch.isfinite(w).all() for w in weights(run))
    block.bad = False
    assert math.isfinite(run.step().loss)


# --- evaluate --------------------------------------------------------------------------------------------


def test_evaluating_does_not_disturb_the_training():
    run = make_run(noise_std=1.0)
    seen = []
    for _ in range(6):
        run.evaluate(100)
        seen += numbers(run, 1)
    assert seen == numbers(make_run(noise_std=1.0), 6)


def test_evaluation_is_without_noise_and_without_gradients_and_gives_the_mode_back():
    noisy, calm = make_run(noise_std=5.0), make_run()
    assert noisy.evaluate() == noisy.evaluate() == calm.evaluate()
    noisy.model.eval()
    noisy.evaluate()
    assert not noisy.model.training
    noisy.step()  # trains in training mode all the same
    assert noisy.model.training
    noisy.evaluate()
    assert noisy.model.training
    assert all(not w.requires_grad or w.grad is not None for w in noisy.model.block.parameters())


class RecordingTask:
    def __init__(self):
        self.seen = []

    def batch(self, num_points, generator):
        x, y = TASK.batch(num_points, generator)
        self.seen.append(x)
        return x, y


def test_evaluation_uses_points_that_training_has_not_seen():
    task = RecordingTask()
    run = make_run(task=task)
    numbers(run, 10)
    trained = torch.cat(task.seen)
    run.evaluate(200)
    held_out = task.seen[-1]
    assert len(held_out) == 200
    assert torch.cdist(held_out, trained, compute_mode="donot_use_mm_for_euclid_dist").min() > 0


def test_evaluate_computes_the_mean_over_its_examples():
    run = make_run()
    x, y = TASK.batch(50, torch.Generator().manual_seed(1_000_003))
    with torch.no_grad():
        log_probs = run.model(x)[0].log_softmax(dim=1)
    expected = -sum(log_probs[t, y[t]].item() for t in range(50)) / 50
    accuracy = sum(int(log_probs[t].argmax() == y[t]) for t in range(50)) / 50
    assert run.evaluate(50) == {"loss": pytest.approx(expected), "accuracy": pytest.approx(accuracy)}


class Bigrams(nn.Module):
    """The logits of the next byte, from the present one alone."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(256, 256)

    def forward(self, x):
        return self.table(x), []


def test_a_task_with_a_held_out_part_is_measured_on_that():
    class Text(TextTask):
        drawn = 0

        def batch(self, num, generator):
            self.drawn += num
            return super().batch(num, generator)

    task = Text(["english", "json"], context=16)
    run = Run(Bigrams(), task, batch_size=4)
    run.step()
    for num, per_domain in ((6, 3), (7, 4), (1, 1)):
        x, y, _ = task.held_out(per_domain)
        log_probs = run.model(x)[0].log_softmax(dim=-1).gather(2, y[..., None])
        assert run.evaluate(num)["loss"] == pytest.approx(-log_probs.mean().item(), rel=1e-5)
    assert task.drawn == 4, "evaluation drew from the part that training reads"
    with pytest.raises(ValueError, match="num must be a whole number of at least 1, got 0"):
        run.evaluate(0)


# --- what is put in --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device": "cuda:99"}, r"^device must be one of 'cpu'.* on this machine, got 'cuda:99'$"),
        ({"device": "abacus"}, r"^device must be one of 'cpu'.* on this machine, got 'abacus'$"),
        ({"lr": 0}, "^lr must be a finite number above 0, got 0$"),
        ({"lr": math.nan}, "^lr must be a finite number above 0, got nan$"),
        ({"batch_size": 0}, "^batch_size must be a whole number of at least 1, got 0$"),
        ({"batch_size": 2.5}, "^batch_size must be a whole number of at least 1, got 2.5$"),
        ({"threads": 0}, "^threads must be a whole number of at least 1, got 0$"),
        ({"weight_decay": -0.1}, "^weight_decay must be a finite number of at least 0, got -0.1$"),
        ({"warmup_steps": -1}, "^warmup_steps must be a whole number from 0 up, got -1$"),
        ({"decay_steps": 0}, "^decay_steps must be a whole number of at least 1, got 0$"),
        ({"warmup_steps": 5, "decay_steps": 5}, r"^decay_steps must be above warmup_steps \(5\), got 5$"),
        ({"max_grad_norm": 0}, "^max_grad_norm must be a finite number above 0, got 0$"),
        ({"precision": "float16"}, "^precision must be one of 'float32', 'bfloat16', 'auto', got 'float16'$"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_run(**options)


def test_it_trains_on_every_device(device):
    run = make_run(device=device)
    assert all(w.device.type == device for w in run.model.parameters())
    numbers(run, 2)
    assert math.isfinite(run.evaluate(32)["loss"])


class MyMoE(nn.Module):
    """What a learner might write: the contract of `MoE`, and nothing else of it."""

    def __init__(self, d_model, d_ff, num_experts, top_k):
        super().__init__()
        self.d_model, self.d_ff, self.num_experts, self.top_k = d_model, d_ff, num_experts, top_k
        self.router = nn.Linear(d_model, num_experts)
        self.experts = nn.ModuleList(FeedForward(d_model, d_ff) for _ in range(num_experts))

    def forward(self, x):
        logits = self.router(x)
        probs = logits.softmax(dim=-1)
        top = probs.topk(self.top_k, dim=-1)
        gate = torch.zeros_like(probs).scatter(1, top.indices, top.values)
        y = sum(gate[:, e, None] * expert(x) for e, expert in enumerate(self.experts))
        return y, Routing.from_topk(logits, probs, top.indices, top.values)


def test_a_class_of_the_learner_trains_too():
    with seeded(1):
        block = MyMoE(16, 4, 5, top_k=2)
    run = make_run(block=block)
    run.knobs.router_aux_loss_coef = 0.1
    records = numbers(run, 60)
    assert records[-1].loss < records[0].loss - 0.2
    assert [len(layer) for layer in records[-1].load] == [5]
    twin = Run(dense_twin(run.model), TASK, lr=0.02)
    assert math.isfinite(twin.step().loss)


# --- functions of a routing, and the three runs of the playground ----------------------------------------


def routing_of(experts: list[int], num_tokens: int, num_experts: int, dropped: list[int] = ()) -> Routing:
    """Token 0 goes to the first of `experts`, token 1 to the second, …; then come the tokens that are dropped."""
    scores = torch.zeros(num_tokens, num_experts)
    idx, tokens = torch.tensor([*experts, *dropped], dtype=torch.long), torch.arange(len(experts) + len(dropped))
    num = len(experts)
    return Routing(scores, scores.softmax(1), tokens[:num], idx[:num], torch.ones(num), tokens[num:], idx[num:])


def test_an_expert_is_dead_below_one_percent_of_the_tokens():
    experts = [0] * 196 + [1] * 2 + [2] * 1
    routing = routing_of(experts, num_tokens=200, num_experts=4)
    assert dead_experts(routing) == 2  # E2 with 0.5 % and E3 with none; E1 stands at the limit, with 1 %
    assert dead_experts(routing, share=0.0) == 0
    dropped = routing_of(experts, num_tokens=200, num_experts=4, dropped=[2])
    assert dead_experts(dropped) == 1  # E2 is wanted by 1 %, though it carries out less
    assert load_share(dropped).tolist() == pytest.approx([0.98, 0.01, 0.01, 0])


def test_no_tokens_have_no_load_and_no_dead_experts():
    routing = routing_of([], num_tokens=0, num_experts=3)
    assert dead_experts(routing) == 0
    assert load_share(routing).tolist() == [0, 0, 0]


def test_the_mixture_and_its_twins_see_the_same_points_and_start_alike_around_the_block():
    runs = plane_runs(PRESETS["healthy"], seed=5)
    assert list(runs) == ["MoE", "dense, same active", "dense, same total"]
    moe, *twins = runs.values()
    setting, block = PRESETS["healthy"], moe.model.block
    assert [twin.model.block.d_ff for twin in twins] == [block.top_k * block.d_ff, block.num_experts * block.d_ff]
    for twin in twins:
        assert torch.equal(twin.model.embed.weight, moe.model.embed.weight)
        assert torch.equal(twin.model.head.weight, moe.model.head.weight)
        assert torch.equal(twin._data.get_state(), moe._data.get_state())
        assert twin.knobs.lr == moe.knobs.lr == setting.lr
    assert moe.knobs.router_aux_loss_coef == setting.router_aux_loss_coef


@pytest.mark.parametrize("name", ["noise", "capacity", "rescued"])
def test_a_preset_turns_its_knobs(name):
    knobs, setting = plane_runs(PRESETS[name])["MoE"].knobs, PRESETS[name]
    for knob in KNOBS:
        assert getattr(knobs, knob) == getattr(setting, knob)


def test_a_setting_turns_all_knobs():
    setting = remedy_setting("bias update", "jitter", "capacity", "auxiliary loss", "z-loss", lr=0.3)
    knobs = plane_runs(setting)["MoE"].knobs
    assert set(knobs.names) == {*KNOBS, "expert_bias_rate"}
    assert {name: getattr(knobs, name) for name in knobs.names} == {n: getattr(setting, n) for n in knobs.names}


def test_what_a_run_needs():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^task must have batch\(num, generator\)"):
        Run(model, "blobs")
    with pytest.raises(ValueError, match="^model must be a module with parameters, got Identity$"):
        Run(torch.nn.Identity(), PlaneTask())
    with pytest.raises(ValueError, match=r"^model must return \(logits, \[Routing, ...\]\), got Tensor$"):
        Run(model, PlaneTask()).step()
    with pytest.raises(ValueError, match="^num must be a whole number of at least 1, got 0$"):
        Run(model, PlaneTask()).evaluate(0)


@pytest.mark.parametrize(
    "fields, noisy",
    [
        ({}, False),
        ({"noise_std": 0.5}, True),
        ({"jitter_noise": 0.1}, True),
        ({"router": "learned noise"}, True),
        ({"router": "sigmoid"}, False),
    ],
)
def test_knobs_say_whether_training_routes_otherwise_than_evaluation(fields, noisy):
    run = plane_runs(PlaneSetting(**fields))["MoE"]
    assert run.knobs.is_noisy is noisy
    x, _ = run.task.batch(64, torch.Generator().manual_seed(0))
    with torch.no_grad():
        (training,), (evaluation,) = run.model.train()(x)[1], run.model.eval()(x)[1]
    assert torch.equal(training.router_logits, evaluation.router_logits) is not noisy
