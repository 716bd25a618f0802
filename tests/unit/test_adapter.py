"""A Hugging Face model that our runs train: the same numbers as without, and every knob acts."""

import pytest
import torch

pytest.importorskip("transformers", minversion="5.18")

from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from moe_lessons.hub import RunModel
from moe_lessons.nn import load_balancing_loss, seeded
from moe_lessons.plots.panels.shares import layers
from moe_lessons.tasks import TextTask
from moe_lessons.training import Run
from moe_lessons.widgets import LiveRun

SIZES = {"vocab_size": 256, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "intermediate_size": 8}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
DEEPSEEK = LATENT | {"moe_intermediate_size": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}


def mixtral() -> MixtralForCausalLM:
    with seeded(0):
        return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2))


def deepseek() -> DeepseekV3ForCausalLM:
    with seeded(0):
        return DeepseekV3ForCausalLM(
            DeepseekV3Config(**SIZES, **DEEPSEEK, num_experts_per_tok=2, first_k_dense_replace=1)
        )


def llama4() -> Llama4ForCausalLM:
    with seeded(0):
        return Llama4ForCausalLM(Llama4TextConfig(**SIZES, head_dim=8, intermediate_size_mlp=8, num_local_experts=4))


@pytest.fixture(scope="module")
def task() -> TextTask:
    return TextTask(["code", "json"], context=16)


@pytest.fixture(scope="module")
def ids(task) -> torch.Tensor:
    return task.held_out(2)[0]


@pytest.mark.parametrize("make, num_layers, top_k", [(mixtral, 2, 2), (deepseek, 1, 2), (llama4, 2, 1)])
def test_logits_are_those_of_the_model_and_routings_those_of_its_layers(make, num_layers, top_k, ids):
    model = RunModel(make())
    logits, routings = model(ids)
    assert torch.equal(logits, make()(ids).logits)
    assert [tuple(routing.topk_indices.shape) for routing in routings] == [(ids.numel(), top_k)] * num_layers
    assert {id(p) for p in model.parameters()} == {id(p) for p in model.hf_model.parameters()}


@pytest.mark.parametrize("make", [mixtral, llama4])
def test_gradients_are_those_of_the_same_loss_without_it(make, ids):
    ours, theirs = RunModel(make()), make()
    logits, routings = ours(ids)
    loss = logits.square().mean()
    if make is mixtral:  # whose own loss, of one layer, is K times ours
        loss = loss + sum(load_balancing_loss(routing) for routing in routings)
    loss.backward()
    other = theirs(ids).logits.square().mean()
    if make is mixtral:
        scores = theirs(ids, output_router_logits=True).router_logits
        for logits in scores:
            probs = logits.softmax(-1)
            share = torch.zeros_like(probs).scatter(1, probs.topk(2).indices, 1).mean(0) / 2
            other = other + 4 * (share * probs.mean(0)).sum()
    other.backward()
    named = dict(theirs.named_parameters())
    for name, weight in ours.hf_model.named_parameters():
        torch.testing.assert_close(weight.grad, named[name].grad, rtol=1e-4, atol=1e-7)


def test_a_run_trains_it_and_its_knobs_act(task):
    runs = []
    for aux in (0.0, 1.0):
        run = Run(RunModel(mixtral()), task, lr=0.01, batch_size=4)
        run.knobs.router_aux_loss_coef = aux
        losses = [run.step().loss for _ in range(8)]
        runs.append(run)
        assert losses[-1] < losses[0] and run.num_experts == [4, 4] and len(run.records[0].load) == 2
    balance = [run.records[-1].auxiliary["load_balancing_loss"] for run in runs]
    assert balance[1] < balance[0] and "load L1 E3" in runs[0].history
    with pytest.raises(ValueError, match="the bias needs a sigmoid router"):
        runs[0].knobs.expert_bias_rate = 0.01


def test_the_bias_update_moves_the_bias_of_the_real_router(task):
    run = Run(RunModel(deepseek()), task, lr=0.01, batch_size=4)
    run.step()
    bias = run.model.hf_model.model.layers[1].mlp.gate.e_score_correction_bias
    assert not bias.any()
    run.knobs.expert_bias_rate = 0.01
    load = run.step().load[0]
    assert torch.equal(bias.sign(), (0.25 - torch.tensor(load)).sign())


def test_live_panels_draw_it(task):
    run = Run(RunModel(llama4()), task, batch_size=4)
    run.step()
    assert len(layers(LiveRun(run, ("layers",))).marks[0].z) == 2


def test_a_dense_model_is_refused():
    with pytest.raises(ValueError, match="model must have experts"):
        RunModel(LlamaForCausalLM(LlamaConfig(**SIZES)))
