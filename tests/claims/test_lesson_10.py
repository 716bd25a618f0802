"""What lesson 10 says under 'What to notice': of the real classes of five families, small, trained as there."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("transformers", minversion="5.18")

from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    Llama4TextConfig,
    MixtralConfig,
    OlmoeConfig,
)

from moe_lessons.analysis import information, trace
from moe_lessons.hub import Lens, RunModel
from moe_lessons.nn import load_balancing_loss, seeded
from moe_lessons.nn.families import FAMILIES, difference
from moe_lessons.tasks import TextTask
from moe_lessons.training import Run

SEEDS = range(3)
SIZES = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 4, "max_position_embeddings": 64, "num_experts_per_tok": 2}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
GROUPS = {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 32}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
CONFIGS = {
    "Mixtral": MixtralConfig(**SIZES, intermediate_size=32, num_local_experts=8),
    "OLMoE": OlmoeConfig(**SIZES, intermediate_size=32, num_experts=8, eos_token_id=None),
    "DeepSeek-V3": DeepseekV3Config(**SIZES, **LATENT, **GROUPS, intermediate_size=64, n_routed_experts=8),
    "gpt-oss": GptOssConfig(
        **SIZES, head_dim=16, intermediate_size=32, num_local_experts=8, rope_parameters=PLAIN_ROPE
    ),
    "Llama 4": Llama4TextConfig(
        **SIZES | {"num_experts_per_tok": 1}, head_dim=16, intermediate_size=32, intermediate_size_mlp=64,
        num_local_experts=8,
    ),
}  # fmt: skip
SETTINGS = {  # name -> family, and what is not as it comes
    **{name: (name, {}) for name in CONFIGS},
    "Mixtral, loss": ("Mixtral", {"aux": 0.1}),
    "DeepSeek-V3, bias": ("DeepSeek-V3", {"bias": 0.01}),
    "Mixtral, larger start": ("Mixtral", {"initializer_range": 0.125}),
}


def small_model(name: str, seed: int = 0, **changes):
    config = type(CONFIGS[name]).from_dict(CONFIGS[name].to_dict() | changes)
    with seeded(seed):
        return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module")
def task() -> TextTask:
    return TextTask(["english", "code", "json", "arithmetic"])


@pytest.fixture(scope="module")
def ids(task) -> torch.Tensor:
    return task.held_out(8)[0]


class Trained(NamedTuple):
    run: Run
    before: pd.DataFrame  # bits, a row for each layer
    after: pd.DataFrame
    shuffled: pd.DataFrame
    dead: np.ndarray  # (steps,) of 8, the mean of the layers


@pytest.fixture(scope="module")
def trained(task) -> dict[str, list[Trained]]:
    """The lesson's models after their 60 steps, from each seed."""
    return {name: [train(task, seed, *setting) for seed in SEEDS] for name, setting in SETTINGS.items()}


def train(task: TextTask, seed: int, family: str, options: dict) -> Trained:
    changes = {key: value for key, value in options.items() if key == "initializer_range"}
    model = RunModel(small_model(family, seed, **changes))
    run = Run(model, task, lr=0.005, batch_size=8, seed=seed, warmup_steps=10, decay_steps=60, max_grad_norm=1.0)
    run.knobs.router_aux_loss_coef, run.knobs.expert_bias_rate = options.get("aux", 0.0), options.get("bias", 0.0)
    before = trace(model, task, 16)
    for _ in range(60):
        run.step()
    after = trace(model, task, 16)
    dead = np.array([record.dead_experts / len(record.load) for record in run.records])
    return Trained(run, information(before), information(after), information(after, shuffled=True), dead)


@pytest.mark.claim("a-family-changes-a-few-settings")
def test_a_family_changes_a_few_settings():
    changed = {name: difference(FAMILIES["Mixtral"], FAMILIES[name])[1] for name in (*CONFIGS, "Qwen3-MoE")}
    changed.pop("Mixtral")
    assert all({"num_experts", "top_k"} <= set(own) for own in changed.values()) and len(changed) == 5
    assert set(changed["Qwen3-MoE"]) == {"num_experts", "top_k"} and max(map(len, changed.values())) <= 7
    others = {key for own in changed.values() for key in own} - {"num_experts", "top_k"}
    assert len(others) >= 6 and all(sum(key in own for own in changed.values()) <= 3 for key in others)


@pytest.mark.claim("real-routers-starve-at-once-and-partly-come-back")
def test_real_routers_starve_at_once_and_partly_come_back(trained):
    for name in CONFIGS:
        for one in trained[name]:
            assert one.dead[0] == 0
            assert one.dead[:20].max() > 3.3
            assert one.dead[-10:].mean() < one.dead[:20].max() - 0.7
        assert np.mean([one.dead[:20].max() - one.dead[-10:].mean() for one in trained[name]]) > 1.3
    worst = [np.mean([trained[name][seed].dead[:20].max() for name in CONFIGS]) for seed in SEEDS]
    assert min(worst) > 4.2 and max(worst) < 6


@pytest.mark.claim("the-loss-is-off-unless-you-ask")
def test_the_loss_is_off_unless_you_ask(ids, trained):
    for name in CONFIGS:
        for seed in SEEDS:
            model = small_model(name, seed)
            with torch.no_grad(), Lens(model) as lens:
                alone, asked = (model(ids, labels=ids, output_router_logits=on) for on in (False, True))
            if name in ("DeepSeek-V3", "Llama 4"):
                assert getattr(asked, "aux_loss", None) is None and alone.loss == asked.loss
                continue
            assert getattr(alone, "aux_loss", None) is None
            assert asked.aux_loss.item() == pytest.approx(2 * lens.pooled_loss(), rel=1e-5)
            added = model.router_aux_loss_coef * asked.aux_loss
            assert added > 0 and asked.loss.item() == pytest.approx((alone.loss + added).item(), abs=2e-6)
    for one in trained["DeepSeek-V3"]:
        assert all(mixture.expert_bias.eq(0).all() for mixture in one.run.model.mixtures)
    assert all(one.run.model.mixtures[0].expert_bias.abs().max() > 0.05 for one in trained["DeepSeek-V3, bias"])


@pytest.mark.claim("a-remedy-or-a-larger-start-helps")
def test_a_remedy_or_a_larger_start_helps(trained):
    end = {name: [one.dead[-10:].mean() for one in runs] for name, runs in trained.items()}
    for name in ("Mixtral, loss", "Mixtral, larger start"):
        assert all(plain - other > 1 for plain, other in zip(end["Mixtral"], end[name]))
    assert max(end["DeepSeek-V3, bias"]) < 0.3 < min(end["DeepSeek-V3"])
    for seed in SEEDS:
        loss = {name: trained[name][seed].run.evaluate(128)["loss"] for name in ("Mixtral", "Mixtral, larger start")}
        assert loss["Mixtral"] - loss["Mixtral, larger start"] > 0.3


@pytest.mark.claim("the-pooled-loss-sees-no-collapse")
def test_the_pooled_loss_sees_no_collapse(ids):
    for seed in SEEDS:
        model = small_model("gpt-oss", seed, num_hidden_layers=4, layer_types=["full_attention"] * 4)
        biases = [layer.mlp.router.bias for layer in model.model.layers]
        for i, bias in enumerate(biases):
            bias.data[2 * i : 2 * i + 2] += 2.0
        with Lens(model) as lens:
            theirs = model(ids, output_router_logits=True).aux_loss / 2
        assert lens.balance()["dead"].eq(6).all() and lens.balance()["load_balancing_loss"].min() > 2.6
        assert abs(theirs - 1) < 0.01 and lens.pooled_loss() == pytest.approx(theirs.item(), rel=1e-5)
        by_layer = torch.stack([load_balancing_loss(routing) for routing in RunModel(model)(ids)[1]]).mean()
        pooled, own = (
            max(gradient.abs().max() for gradient in torch.autograd.grad(loss, biases)) for loss in (theirs, by_layer)
        )
        assert own > 0.05 and pooled < own / 100


@pytest.mark.claim("real-experts-divide-the-bytes-before-they-are-trained")
def test_real_experts_divide_the_bytes_before_they_are_trained(trained):
    for name in CONFIGS:
        for one in trained[name]:
            before, after = one.before.mean(), one.after.mean()
            assert before["byte | domain"] > 1.2 and before["domain | byte"] < 0.35
            assert after["byte | domain"] < before["byte | domain"] - 0.3
            assert one.shuffled[["byte | domain", "domain | byte"]].abs().max().max() < 0.03
        if name != "Mixtral":
            both = pd.concat([one.after for one in trained[name]])
            assert both["byte | domain"].mean() > 1.4 * both["domain | byte"].mean()
    mixtral = pd.concat([one.after for one in trained["Mixtral"]])
    assert mixtral["byte | domain"].mean() < 1.2 * mixtral["domain | byte"].mean()
    for one in trained["Mixtral, larger start"]:
        assert one.after["byte | domain"].mean() > one.before["byte | domain"].mean() + 0.25
        assert one.after["byte | domain"].mean() > 2 * one.after["domain | byte"].mean()


@pytest.mark.claim("softmax-before-or-after-is-the-same")
@torch.no_grad()
def test_softmax_before_or_after_is_the_same():
    for seed in SEEDS:
        x, weights = torch.randn(50, 64, generator=torch.Generator().manual_seed(seed)), {}
        matrix = 20 * small_model("Mixtral", seed).model.layers[0].mlp.gate.weight
        for name in ("Mixtral", "gpt-oss", "OLMoE"):
            block = small_model(name).model.layers[0].mlp
            router = block.router if name == "gpt-oss" else block.gate
            router.weight.copy_(matrix)
            if name == "gpt-oss":
                router.bias.zero_()
            weights[name] = router(x)[1].float()
        assert (weights["gpt-oss"] - weights["Mixtral"]).abs().max() < 1e-5
        assert (
            weights["Mixtral"].sum(dim=1).sub(1).abs().max() < 1e-5 and 0.5 < weights["OLMoE"].sum(dim=1).mean() < 0.95
        )
