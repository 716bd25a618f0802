"""`hub.Lens`: what it tells and counts, that it leaves nothing behind, what it says where it cannot."""

import pytest
import torch
import transformers
from torch import nn

from moe_lessons.hub import Lens
from moe_lessons.hub.routing_lens import joined
from moe_lessons.nn import LanguageModel, TransformerConfig, load_balancing_loss, seeded
from tools.bench_cases import hf_model

IDS = torch.randint(3, 100, (2, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def ours():
    with seeded(0):
        return LanguageModel(TransformerConfig(d_model=32, d_ff=32, num_layers=2))


@pytest.fixture(scope="module")
def mixtral(ours):
    """2 layers, 2 of 8 experts."""
    return hf_model(ours).eval()


def seen(model, *args, **inputs) -> dict:
    with torch.no_grad(), Lens(model) as lens:
        model(*args, **inputs)
    return lens.routings


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def same(a, b) -> bool:
    fields = ("router_logits", "router_probs", "token_idx", "expert_idx", "weight")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in fields)


@pytest.mark.parametrize("kind", ["top-k", "sigmoid", "expert choice", "hash"])
def test_of_our_models_it_tells_what_they_return(kind):
    model = LanguageModel(TransformerConfig(d_model=32, d_ff=32, num_layers=3, moe_layers=(0, 2), router=kind))
    with Lens(model) as lens:
        _, routings = model(IDS)
    assert list(lens.routings) == ["layers.0.ffn", "layers.2.ffn"]
    assert all(same(a, b) for a, b in zip(lens.routings.values(), routings, strict=True))
    assert not any(routing.router_probs.requires_grad for routing in lens.routings.values())


def test_of_one_model_in_two_forms_it_tells_the_same(ours, device):
    theirs = seen(hf_model(ours).to(device), IDS.to(device))
    for a, b in zip(theirs.values(), seen(ours, IDS).values(), strict=True):
        assert torch.equal(a.topk_indices.cpu(), b.topk_indices)
        torch.testing.assert_close(a.router_probs.cpu(), b.router_probs)
        torch.testing.assert_close(a.topk_weights.cpu(), b.topk_weights)


def sigmoid_share(logits, dim):
    return logits.sigmoid() / logits.sigmoid().sum(dim, keepdim=True)


SCORES = {
    **dict.fromkeys(("Olmoe", "Qwen3Moe", "GptOss", "Gemma4"), torch.softmax),  # Gemma's has probabilities for logits
    "DeepseekV3": sigmoid_share,
    "DeepseekV4": lambda z, dim: nn.functional.normalize(nn.functional.softplus(z).sqrt(), p=1, dim=dim),
}
SIZES = {  # of which each configuration takes those that it knows
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "head_dim": 8,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "num_experts": 8,
    "num_local_experts": 8, "n_routed_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 0, "n_group": 2,
    "topk_group": 1, "enable_moe_block": True, "top_k_experts": 2, "num_kv_shared_layers": 0, "pad_token_id": 0,
    "mlp_layer_types": ["moe", "moe"],
}  # fmt: skip


@pytest.mark.parametrize("family", SCORES)
def test_probabilities_are_the_routers_own_and_the_output_is_the_same(family):
    kind = getattr(transformers, f"{family}ForCausalLM")
    known = {name for base in kind.config_class.__mro__ for name in getattr(base, "__annotations__", {})}
    with seeded(0), torch.no_grad():
        model = kind(kind.config_class(**{name: size for name, size in SIZES.items() if name in known})).eval()
        for weight in model.parameters():  # some start at what was in memory
            nn.init.normal_(weight, std=0.1)
        with Lens(model) as lens:
            logits = model(IDS, use_cache=False).logits
        assert torch.equal(model(IDS, use_cache=False).logits, logits)
    assert len(lens.routings) == 2
    for name, routing in lens.routings.items():
        torch.testing.assert_close(routing.router_probs, SCORES[family](routing.router_logits, dim=-1), msg=name)


class Adapter(nn.Module):
    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.lora = base_layer, nn.Linear(2, 2)

    def forward(self, x, *args, **kwargs):
        return self.base_layer(x, *args, **kwargs)


def test_experts_and_routers_with_adapters_are_read_as_without(ours):
    model = hf_model(ours).eval()
    plain = seen(model, IDS)
    for block in map(model.get_submodule, plain):
        for name in ("experts", "gate", "router"):
            if hasattr(block, name):
                setattr(block, name, Adapter(Adapter(getattr(block, name))))
    for (name, a), (other, b) in zip(plain.items(), seen(model, IDS).items(), strict=True):
        assert name == other and same(a, b)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count(mixtral, side):
    mask = torch.ones_like(IDS)
    mask[0, :3] = mask[1, :1] = 0
    mask = mask if side == "left" else mask.flip(1)
    padded, by_place = seen(mixtral, IDS, attention_mask=mask), seen(mixtral, IDS, mask)
    alone = [seen(mixtral, row[keep != 0][None]) for row, keep in zip(IDS, mask)]
    for name, routing in padded.items():
        assert routing.num_tokens == 12 and same(routing, by_place[name])
        assert torch.equal(routing.topk_indices, torch.cat([routings[name].topk_indices for routings in alone]))
    others = seen(mixtral, IDS, attention_mask=torch.ones(2, 1, 8, 8, dtype=torch.bool).tril())  # tells no padding
    assert all(routing.num_tokens == 16 for routing in others.values())


def test_the_tokens_of_generation_are_joined_and_its_mask_is_longer_by_the_cache(mixtral):
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    with Lens(mixtral) as lens:
        out = mixtral.generate(IDS, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None)
    joined = lens.routings["model.layers.1.mlp"].topk_indices
    text = out[1:, :-1]  # the last one is drawn, and not read
    once = seen(mixtral, text)["model.layers.1.mlp"].topk_indices
    assert joined.shape == (13 + 3 * 2, 2) and torch.equal(joined[[*range(5, 13), 14, 16, 18]], once)


@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_accumulated_batches_are_joined_and_recomputation_is_not_seen(mixtral, checkpointing):
    model = mixtral.train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    with Lens(model) as lens:
        for ids in IDS.split(1):
            model(ids, labels=ids).loss.backward()
    model.gradient_checkpointing_disable()
    model.eval().zero_grad()
    for name, routing in seen(model, IDS).items():
        assert torch.equal(routing.topk_indices, lens.routings[name].topk_indices)


def test_hooks_are_gone_after_an_exception_and_what_was_seen_before_it_is_there(mixtral):
    before, lens = hooks(mixtral), Lens(mixtral)
    with pytest.raises(ValueError, match="the lens has seen no router"):
        _ = lens.routings
    with pytest.raises(ZeroDivisionError), torch.no_grad(), lens:
        assert hooks(mixtral) > before
        with pytest.raises(ValueError, match="^lens must "), lens:
            pass
        mixtral(IDS)
        with pytest.raises(IndexError):
            mixtral(IDS + 1000)
        mixtral(IDS[:, :4])
        raise ZeroDivisionError
    mixtral(IDS)
    assert hooks(mixtral) == before and {routing.num_tokens for routing in lens.routings.values()} == {24}
    with torch.no_grad(), lens:  # starts anew
        mixtral(IDS)
    assert {routing.num_tokens for routing in lens.routings.values()} == {16}


@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_of_all_layers_is_hugging_faces_over_k(mixtral, padded):
    mask = torch.ones_like(IDS)
    mask[0, 5:] = 0
    with torch.no_grad(), Lens(mixtral) as lens:
        theirs = mixtral(IDS, output_router_logits=True, **{"attention_mask": mask} if padded else {}).aux_loss
    assert 2 * load_balancing_loss(joined(list(lens.routings.values()))) == pytest.approx(theirs.item(), rel=1e-5)


class Called(nn.Module):
    def forward(self, hidden_states, top_k_index, top_k_weights):
        return hidden_states


@pytest.mark.parametrize(
    "model, message",
    [
        (nn.Linear(4, 4), "model must have experts .*, got Linear, which has none$"),
        (nn.ModuleDict({"experts": nn.Linear(4, 4)}), "got ModuleDict, whose Linear are not .quantised"),
        (nn.Sequential(nn.ModuleDict({"a": nn.Linear(4, 4), "experts": Called()})), "router of 0 must .*got a, exp"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        Lens(model)
