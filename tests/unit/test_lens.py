"""`hub.Lens`: what it tells and counts, that it leaves nothing behind, what it says where it cannot."""

import re
from collections import OrderedDict

import pytest
import torch
from torch import nn

from moe_lessons.hub import Lens, export_model
from moe_lessons.nn import LanguageModel, MoE, TransformerConfig, load_balancing_loss, seeded

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
hf_families = pytest.importorskip("hf_families")

IDS = torch.randint(3, 100, (2, 8), generator=torch.Generator().manual_seed(0))
SIZES = TransformerConfig(d_model=32, d_ff=32, num_layers=2)


@pytest.fixture(scope="module")
def mixtral():
    """2 layers, 2 of 8 experts."""
    config, kind = hf_families.small("mixtral", "MixtralForCausalLM")
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = 2, 256, None
    with seeded(0):
        return kind(config).eval()


@pytest.fixture(scope="module")
def ours():
    with seeded(0):
        return LanguageModel(SIZES)


def seen(model, *args, lens: dict | None = None, **inputs) -> Lens:
    with torch.no_grad(), Lens(model, **(lens or {})) as made:
        model(*args, **inputs)
    return made


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
    assert lens.layers == ("layers.0.ffn", "layers.2.ffn")
    assert all(same(a, b) for a, b in zip(lens.routings.values(), routings, strict=True))
    assert not any(routing.router_probs.requires_grad for routing in lens.routings.values())


def test_of_one_model_in_two_forms_it_tells_the_same(ours, device):
    theirs = seen(export_model(ours).to(device), IDS.to(device))
    for a, b in zip(theirs.routings.values(), seen(ours, IDS).routings.values(), strict=True):
        assert torch.equal(a.topk_indices.cpu(), b.topk_indices)
        torch.testing.assert_close(a.router_probs.cpu(), b.router_probs)
        torch.testing.assert_close(a.topk_weights.cpu(), b.topk_weights)


def sigmoid_share(logits, dim):
    return logits.sigmoid() / logits.sigmoid().sum(dim, keepdim=True)


SCORES = {
    **dict.fromkeys(("mixtral", "gpt_oss", "phimoe", "gemma4"), torch.softmax),  # Gemma's has probabilities for logits
    **dict.fromkeys(("deepseek_v3", "minimax_m2"), sigmoid_share),
    "deepseek_v4": lambda z, dim: nn.functional.normalize(nn.functional.softplus(z).sqrt(), p=1, dim=dim),
}


@pytest.mark.parametrize("family", SCORES)
def test_probabilities_are_the_routers_own(family):
    model, inputs = hf_families.runnable(family)
    lens = seen(model, **inputs)
    for name, routing in lens.routings.items():
        torch.testing.assert_close(routing.router_probs, SCORES[family](routing.router_logits, dim=-1), msg=name)


class Adapter(nn.Module):
    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.lora = base_layer, nn.Linear(2, 2)

    def forward(self, x, *args, **kwargs):
        return self.base_layer(x, *args, **kwargs)


def test_experts_and_routers_with_adapters_are_read_as_without():
    model, inputs = hf_families.runnable("mixtral")
    plain = seen(model, **inputs)
    for block in map(model.get_submodule, plain.layers):
        for name in ("experts", "gate", "router"):
            if hasattr(block, name):
                setattr(block, name, Adapter(Adapter(getattr(block, name))))
    for (name, a), (other, b) in zip(plain.routings.items(), seen(model, **inputs).routings.items(), strict=True):
        assert name == other and same(a, b)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count(mixtral, side):
    mask = torch.ones_like(IDS)
    mask[0, :3] = mask[1, :1] = 0
    mask = mask if side == "left" else mask.flip(1)
    padded = seen(mixtral, IDS, attention_mask=mask)
    by_place = seen(mixtral, IDS, mask)
    alone = [seen(mixtral, row[keep != 0][None]) for row, keep in zip(IDS, mask)]
    for name, routing in padded.routings.items():
        assert routing.num_tokens == 12 and same(routing, by_place.routings[name])
        wanted = torch.cat([lens.routings[name].topk_indices for lens in alone])
        assert torch.equal(routing.topk_indices, wanted)
    assert seen(mixtral, IDS, attention_mask=mask, lens={"count_padding": True}).routings[name].num_tokens == 16


def test_generation_makes_a_call_for_each_token_and_its_mask_is_longer_by_the_cache(mixtral):
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    with Lens(mixtral) as lens:
        out = mixtral.generate(IDS, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert [call["model.layers.0.mlp"].num_tokens for call in lens.calls] == [13, 2, 2, 2]
    text = out[1:, :-1]  # the last one is drawn, and not read
    once = seen(mixtral, text).routings["model.layers.1.mlp"].topk_indices
    steps = [call["model.layers.1.mlp"].topk_indices for call in lens.calls]
    assert torch.equal(torch.cat([steps[0][5:], *(step[1:] for step in steps[1:])]), once)
    assert lens.routings["model.layers.1.mlp"].topk_indices.shape == (19, 2)


@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_accumulated_batches_are_calls_and_recomputation_is_none(mixtral, checkpointing):
    model = mixtral.train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    with Lens(model) as lens:
        for ids in IDS.split(1):
            model(ids, labels=ids).loss.backward()
    model.gradient_checkpointing_disable()
    model.eval().zero_grad()
    assert [[routing.num_tokens for routing in call.values()] for call in lens.calls] == [[8, 8], [8, 8]]
    for name, routing in seen(model, IDS).routings.items():
        assert torch.equal(routing.topk_indices, lens.routings[name].topk_indices)


def test_hooks_are_gone_after_an_exception_and_a_failed_call_is_none(mixtral):
    before, lens = hooks(mixtral), Lens(mixtral)
    assert hooks(mixtral) == before
    with pytest.raises(ZeroDivisionError), torch.no_grad(), lens:
        assert hooks(mixtral) > before
        with pytest.raises(ValueError, match="lens must be left before it is entered again"), lens:
            pass
        mixtral(IDS)
        with pytest.raises(IndexError):
            mixtral(IDS + 1000)
        mixtral(IDS[:, :4])
        raise ZeroDivisionError
    assert hooks(mixtral) == before
    assert [call[lens.layers[0]].num_tokens for call in lens.calls] == [16, 8]
    mixtral(IDS)
    assert len(lens.calls) == 2
    with torch.no_grad(), lens:  # starts anew
        mixtral(IDS)
    assert len(lens.calls) == 1


@pytest.mark.parametrize("padded", [False, True])
def test_balance_is_by_layer_and_the_pooled_loss_is_hugging_faces_over_k(mixtral, padded):
    mask = torch.ones_like(IDS)
    mask[0, 5:] = 0
    inputs = {"attention_mask": mask} if padded else {}
    lens = seen(mixtral, IDS, **inputs)
    with torch.no_grad():
        theirs = mixtral(IDS, output_router_logits=True, **inputs).aux_loss
    assert 2 * lens.pooled_loss() == pytest.approx(theirs.item(), rel=1e-5)
    losses = {name: load_balancing_loss(routing).item() for name, routing in lens.routings.items()}
    assert lens.balance()["load_balancing_loss"].to_dict() == losses


class Parts(nn.Sequential):
    def __init__(self, **parts):
        super().__init__(OrderedDict(parts))

    def forward(self, x, attention_mask=None):
        for part in self:
            x = part(x)[0]
        return x


class Called(nn.Module):
    def forward(self, hidden_states, top_k_index, top_k_weights):
        return hidden_states


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nn.Linear(4, 4), "model must have experts .*, got Linear, which has none$"),
        (lambda: Parts(experts=nn.Linear(4, 4)), r"got Parts, whose Linear are not: load it without quantisation"),
        (lambda: nn.Sequential(Parts(choice=nn.Linear(4, 4), experts=Called())), "router of 0 must .*got choice, expe"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        Lens(make())


def test_a_mask_that_does_not_tell_padding_is_refused(mixtral):
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool).tril()
    said = re.escape("attention_mask must be (B, T), with 0 for padding, got torch.bool of shape (2, 1, 8, 8)")
    with pytest.raises(ValueError, match=f"{said}.*count_padding=True"):
        seen(mixtral, IDS, attention_mask=mask)
    assert len(seen(mixtral, IDS, attention_mask=mask, lens={"count_padding": True}).routings) == 2
    lens = seen(Parts(moe=MoE(4, 4, 4)), torch.randn(2, 8, 4), attention_mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match=re.escape("for the 16 tokens of moe, got (2, 3): count all tokens")):
        _ = lens.routings


def test_who_goes_past_the_hooks_is_told(mixtral):
    with pytest.warns(UserWarning, match="the lens has seen no router at work"), Lens(mixtral) as lens:
        mixtral.forward(IDS)  # as a compiled model does
    assert lens.calls == [] and lens.layers == ("model.layers.0.mlp", "model.layers.1.mlp")
    with pytest.raises(ValueError, match="call the model itself within it"):
        lens.balance()


def test_layers_of_different_sizes_are_not_pooled():
    lens = seen(Parts(one=MoE(4, 4, 4), two=MoE(4, 4, 8)), torch.randn(2, 4))
    assert len(lens.balance()) == 2
    with pytest.raises(ValueError, match=re.escape("one number of experts to be joined, got [4, 8]")):
        lens.pooled_loss()
