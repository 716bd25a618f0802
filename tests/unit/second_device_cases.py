"""What test_second_device.py runs in a process of its own: everything that trains, measures or goes on, on a
device that is not the CPU."""

import copy
from functools import partial

import pytest
import second_device
import torch

import nano_moe
from moe_lessons.analysis import balance_by_layer, bytes_per_step, decode_speed, distinct_experts, trace, trace_text
from moe_lessons.analysis.collapse import watched_run, weight_gradients
from moe_lessons.analysis.speedup import measure_work
from moe_lessons.nn import (
    DISPATCH,
    ExpertChoiceRouter,
    HashRouter,
    LanguageModel,
    MoE,
    NoisyTopKRouter,
    SigmoidRouter,
    SoftMoE,
    TopKRouter,
    TransformerConfig,
    apply_capacity,
    load_balancing_loss,
    router_z_loss,
    seeded,
    update_expert_bias,
)
from moe_lessons.tasks import Facts, TextTask
from moe_lessons.training import (
    PRESETS,
    Run,
    SeedBand,
    facts_model,
    plane_runs,
    step_together,
)
from moe_lessons.widgets import BalancingLab, CollapseLab, FactsLab, Playground, RaceLab, RoutingLab

D, E, K, F, T = 8, 4, 2, 4, 12
ROUTERS = TopKRouter, NoisyTopKRouter, SigmoidRouter, ExpertChoiceRouter, lambda *_: HashRouter(E, T, K)
BLOCKS = [partial(MoE, D, F, E, K, router=router) for router in ROUTERS]
BLOCKS += [partial(MoE, D, F, E, K, dispatch=way, capacity_factor=1.0) for way in (*DISPATCH, "auto")]
TEXT = TextTask(["english", "code"], context=16)


@pytest.fixture(scope="module", autouse=True)
def second():
    second_device.register()
    with second_device.On():
        yield


def tokens() -> torch.Tensor:
    return torch.randn(T, D, generator=torch.Generator().manual_seed(0))


def language_model(**changes) -> LanguageModel:
    sizes = {"d_model": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "d_ff": 8, "num_experts": 4, "top_k": 2}
    with seeded(0):
        return LanguageModel(TransformerConfig(**sizes | changes))


def text_run(device: str) -> Run:
    run = Run(language_model().to(device), TEXT, lr=0.003, batch_size=4, max_grad_norm=1.0)
    run.knobs.router_aux_loss_coef = 0.01
    return run


def waits_of(*runs: Run) -> int:
    """How often a step of all runs together would wait, once the first ones are done."""
    step_together(runs)
    second_device.waits.clear()
    step_together(runs)
    return len(second_device.waits)


def test_it_refuses_to_be_mixed_with_the_cpu():
    ours = torch.ones(3).to("second")
    with pytest.raises(RuntimeError, match="same device"):
        ours + torch.ones(3)
    with pytest.raises(TypeError, match="numpy"):
        ours.numpy()
    second_device.waits.clear()
    assert ours.sum().item() == 3 and len(second_device.waits) == 1 and ours.device.type == "second"


@pytest.mark.parametrize("make", BLOCKS)
def test_a_block_and_its_losses(make):
    with seeded(0):
        moe, results = make().eval(), []
    for place in ("cpu", "second"):
        own = copy.deepcopy(moe).to(place)
        y, routing = own(tokens().to(place), torch.arange(T).to(place))
        loss = y.square().mean() + load_balancing_loss(routing) + router_z_loss(routing)
        loss.backward()
        apply_capacity(routing, 2)
        if hasattr(own.router, "expert_bias"):
            update_expert_bias(own.router, routing, 0.01)
        gradients = [p.grad for p in own.parameters() if p.grad is not None]
        assert {each.device.type for each in gradients} == {place}
        results.append([each.detach().to("cpu") for each in (y, loss, *gradients)])
    for here, far in zip(*results, strict=True):
        torch.testing.assert_close(here, far)


def test_a_soft_mixture():
    with seeded(0):
        soft = SoftMoE(D, F, E)
    expected = soft(tokens()[None]).detach()
    y = soft.to("second")(tokens()[None].to("second"))
    torch.testing.assert_close(y.detach().to("cpu"), expected)


def test_a_run_of_text_and_one_of_facts():
    here, there = text_run("cpu"), text_run("second")
    for tolerance in (1e-5, 0.01, 0.01):  # Adam's first step makes much of a gradient that is next to nothing
        assert there.step().loss == pytest.approx(here.step().loss, rel=tolerance)
    assert there.evaluate(8)["loss"] == pytest.approx(here.evaluate(8)["loss"], rel=0.01)
    assert there.model.generate(torch.zeros(1, 4, dtype=torch.long, device="second"), 3).device.type == "second"
    facts = Run(facts_model().to("second"), Facts(250), batch_size=8)
    facts.step()
    assert facts.task.known(facts.model).shape == (250,)


def test_a_step_waits_at_most_twice():
    """Also where a mixture and its two baselines step together, as in the playground."""
    for setting in PRESETS.values():
        assert waits_of(*plane_runs(setting, device="second").values()) <= 2
    assert waits_of(text_run("second")) <= 2


LABS = {
    "playground": lambda: Playground(device="second"),
    "routing": lambda: RoutingLab("json", num_layers=1, d_model=16, num_heads=2, batch_size=4, device="second"),
    "balancing": lambda: BalancingLab(("no balancing", "bias update"), seeds=2, device="second"),
    "collapse": lambda: CollapseLab(device="second"),
    "facts": lambda: FactsLab(4, num_entries=8, device="second"),
    "race": lambda: RaceLab(device="second"),
}


@pytest.mark.parametrize("name", LABS)
def test_a_laboratory(name):
    lab = LABS[name]()
    lab.advance(2)
    lab.go_back()
    assert lab.step == 1 and lab.main_run.device.type == "second" and len(lab.panels()) == len(lab.functions)


def test_a_run_goes_on_from_a_state():
    run, again = text_run("second"), text_run("second")
    run.step()
    again.load_state_dict(run.state_dict())
    assert run.step().loss == again.step().loss


def test_measurements():
    models = {"MoE": language_model(), "dense": language_model(moe_layers=())}
    there = language_model().to("second")
    ids = torch.arange(8).reshape(4, 2)
    both = {name: copy.deepcopy(model).to("second") for name, model in models.items()}
    assert len(decode_speed(both, (1, 2), num_tokens=2, repeats=1)) == 4
    assert len(measure_work(both, 8, (1, 8), repeats=1))
    assert len(distinct_experts(there, ids, (1, 2))) and bytes_per_step(there, 2) == bytes_per_step(models["MoE"], 2)
    assert len(trace(there, TEXT, 2)) and len(trace_text(there, "abc"))
    assert len(balance_by_layer(there(ids.to("second"))[1])) == 2


def test_what_watches_a_collapse():
    run = watched_run(PRESETS["collapse"], device="second")
    run.step()
    assert len(weight_gradients(run)) == 3
    band = SeedBand(PRESETS["collapse"], range(2), device="second")
    assert band.step().dead.shape == (2,) and band.evaluate(64)["loads"].shape == (2, 8)


def test_the_model_in_one_file_trains_and_writes_there(tmp_path, capsys):
    (tmp_path / "text").write_bytes(b"The cat sat on the mat. " * 20)
    sizes = "--d-model 16 --d-ff 8 --layers 1 --heads 2 --context 16 --batch-size 4 --steps 2 --length 9".split()
    nano_moe.main([str(tmp_path / "text"), *sizes, "--device", second_device.NAME])
    assert "\nThe " in capsys.readouterr().out
