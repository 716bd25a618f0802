"""A Hugging Face model that our runs train: the same numbers as without, and every knob acts."""

import pytest
import torch

pytest.importorskip("transformers", minversion="5.18")
hf_families = pytest.importorskip("hf_families")

from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func  # noqa: E402

from moe_lessons.hub import RunModel  # noqa: E402
from moe_lessons.nn import load_balancing_loss, seeded  # noqa: E402
from moe_lessons.plots.panels.shares import layers  # noqa: E402
from moe_lessons.tasks import TextTask  # noqa: E402
from moe_lessons.training import Run  # noqa: E402
from moe_lessons.widgets import LiveRun  # noqa: E402

NAMES = {"mixtral": "MixtralForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM", "llama4": "Llama4ForCausalLM"}
TASK = TextTask(["code", "json"], context=16)
IDS = TASK.held_out(2)[0]


def small(family: str):
    """2 layers, the first of DeepSeek's dense; 2 of 8 experts."""
    config, kind = hf_families.small(family, NAMES[family])
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = 2, 256, None
    with seeded(0):
        return kind(config)


@pytest.mark.parametrize("family", NAMES)
def test_logits_gradients_and_routings_are_those_of_the_model(family):
    ours, theirs = RunModel(small(family)), small(family)
    logits, routings = ours(IDS)
    expected = theirs(IDS, output_router_logits=True)
    assert torch.equal(logits, expected.logits) and len(routings) == (1 if family == "deepseek_v3" else 2)
    assert all(routing.topk_indices.shape == (IDS.numel(), 2) for routing in routings)
    loss, other = logits.square().mean(), expected.logits.square().mean()
    if family == "mixtral":  # whose own loss, of one layer, is K times ours
        loss = loss + 2 * sum(load_balancing_loss(routing) for routing in routings)
        other = other + sum(load_balancing_loss_func((scores,), 8, 2) for scores in expected.router_logits)
    loss.backward()
    other.backward()
    assert [id(p) for p in ours.parameters()] == [id(p) for p in ours.hf_model.parameters()]
    for weight, same in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, same.grad, rtol=1e-4, atol=1e-7)


def test_a_run_trains_it_its_knobs_act_and_its_panels_draw_it():
    runs = []
    for aux in (0.0, 1.0):
        run = Run(RunModel(small("mixtral")), TASK, lr=0.01, batch_size=4)
        run.knobs.router_aux_loss_coef = aux
        losses = [run.step().loss for _ in range(8)]
        runs.append(run)
        assert losses[-1] < losses[0] and run.num_experts == [8, 8] and len(run.records[0].load) == 2
    balance = [run.records[-1].auxiliary["load_balancing_loss"] for run in runs]
    assert balance[1] < balance[0] and "load L1 E7" in runs[0].history
    assert len(layers(LiveRun(run, ("layers",))).marks[0].z) == 2
    with pytest.raises(ValueError, match="the bias needs a sigmoid router"):
        runs[0].knobs.expert_bias_rate = 0.01


def test_the_bias_update_moves_the_bias_of_the_real_router():
    run = Run(RunModel(small("deepseek_v3")), TASK, lr=0.01, batch_size=4)
    run.step()
    bias = run.model.hf_model.model.layers[1].mlp.gate.e_score_correction_bias
    assert not bias.any()
    run.knobs.expert_bias_rate = 0.01
    load = run.step().load[0]
    assert torch.equal(bias.sign(), (1 / 8 - torch.tensor(load)).sign())
