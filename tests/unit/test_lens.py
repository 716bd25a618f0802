"""`hub.Lens`: what it tells, what it counts, that it leaves nothing behind, and what it says where it cannot."""

import gc
import re
import weakref

import pytest
import torch
from torch import nn

from moe_lessons import plots
from moe_lessons.analysis import expert_shares, information, trace_text
from moe_lessons.hub import Lens, export_model
from moe_lessons.hub.routers import keys_of
from moe_lessons.nn import LanguageModel, MoE, TransformerConfig, apply_capacity, load_balancing_loss, seeded

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
hf_families = pytest.importorskip("hf_families")
IDS = torch.randint(3, 100, (2, 8), generator=torch.Generator().manual_seed(0))
SIZES = TransformerConfig(d_model=32, d_ff=32, num_layers=2)


@pytest.fixture(scope="module")
def mixtral():
    config, kind = hf_families.small("mixtral", "MixtralForCausalLM")
    config.num_hidden_layers = 2
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


# --- what it tells ---


@pytest.mark.parametrize("kind", ["top-k", "sigmoid", "expert choice", "hash"])
def test_of_our_models_it_tells_what_they_return(kind):
    model = LanguageModel(TransformerConfig(d_model=32, d_ff=32, num_layers=3, moe_layers=(0, 2), router=kind))
    with Lens(model) as lens:
        _, routings = model(IDS)
    assert lens.layers == ("layers.0.ffn", "layers.2.ffn")
    assert all(same(a, b) for a, b in zip(lens.routings.values(), routings, strict=True))
    assert not any(routing.router_probs.requires_grad for routing in lens.routings.values())


def test_of_one_model_in_two_forms_it_tells_the_same(ours):
    theirs = seen(export_model(ours), IDS)
    for a, b in zip(theirs.routings.values(), seen(ours, IDS).routings.values(), strict=True):
        assert torch.equal(a.topk_indices, b.topk_indices)
        torch.testing.assert_close(a.router_probs, b.router_probs)
        torch.testing.assert_close(a.topk_weights, b.topk_weights)


def test_the_device_does_not_matter(ours, device):
    model = export_model(ours).to(device)
    for routing, wanted in zip(seen(model, IDS.to(device)).routings.values(), seen(ours, IDS).routings.values()):
        assert torch.equal(routing.tokens_per_expert.cpu(), wanted.tokens_per_expert)


SCORES = {
    "mixtral": torch.softmax,
    "gpt_oss": torch.softmax,
    "phimoe": torch.softmax,
    "deepseek_v3": lambda z, dim: z.sigmoid() / z.sigmoid().sum(dim, keepdim=True),
    "llama4": lambda z, dim: z.sigmoid() / z.sigmoid().sum(dim, keepdim=True),
    "minimax_m2": lambda z, dim: z.sigmoid() / z.sigmoid().sum(dim, keepdim=True),
    "deepseek_v4": lambda z, dim: nn.functional.normalize(nn.functional.softplus(z).sqrt(), p=1, dim=dim),
    "gemma4": torch.softmax,  # whose router gives probabilities for logits
}


@pytest.mark.parametrize("family", SCORES)
def test_probabilities_are_the_routers_own(family):
    model, inputs = hf_families.runnable(family)
    lens = seen(model, **inputs)
    for name, routing in lens.routings.items():
        torch.testing.assert_close(routing.router_probs, SCORES[family](routing.router_logits, dim=-1), msg=name)


def test_tokens_that_skip_the_experts_of_zaya_have_none():
    model, inputs = hf_families.runnable("zaya")
    for module in model.modules():
        if hasattr(module, "balancing_biases"):  # the last class, which stands for no expert, wins now and then
            module.balancing_biases.fill_(0)
    lens = seen(model, **inputs)
    for routing in lens.routings.values():
        assert routing.num_experts == 8 and routing.dropped == 0
    assert sum(len(routing.expert_idx) for routing in lens.routings.values()) < 16 * len(lens.layers)


def test_what_is_full_in_switch_is_dropped_as_by_apply_capacity():
    model, inputs = hf_families.runnable("switch_transformers")
    wide = seen(model, **inputs)
    for module in model.modules():
        if hasattr(module, "expert_capacity"):
            module.expert_capacity = 1  # of each sequence and expert
    lens = seen(model, **inputs)
    name = lens.layers[0]
    routing, whole = lens.routings[name], wide.routings[name]
    assert torch.equal(routing.demand_per_expert, whole.tokens_per_expert) and whole.dropped == 0 < routing.dropped
    for sequence in range(2):
        of = [slice(8 * sequence, 8 * sequence + 8)] * 2
        rows = [whole.topk_indices[of[0]].flatten(), whole.topk_weights[of[1]].flatten()]
        part = whole.all_kept(whole.router_logits[of[0]], whole.router_probs[of[0]], torch.arange(8), *rows)
        kept = apply_capacity(part, 1)
        mine = (routing.token_idx >= 8 * sequence) & (routing.token_idx < 8 * sequence + 8)
        assert torch.equal(routing.token_idx[mine] - 8 * sequence, kept.token_idx)
        assert torch.equal(routing.expert_idx[mine], kept.expert_idx)


class Adapter(nn.Module):
    """As LoRA wraps a module."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.lora = base_layer, nn.Linear(2, 2)

    def forward(self, x, *args, **kwargs):
        return self.base_layer(x, *args, **kwargs)


@pytest.mark.parametrize("family", ["mixtral", "llama4", "jetmoe"])
def test_experts_and_routers_with_adapters_are_read_as_without(family):
    model, inputs = hf_families.runnable(family)
    plain = seen(model, **inputs)
    for block in map(model.get_submodule, plain.layers):
        for name in ("experts", "gate", "router"):
            if hasattr(block, name):
                setattr(block, name, Adapter(Adapter(getattr(block, name))))
    for (name, a), (other, b) in zip(plain.routings.items(), seen(model, **inputs).routings.items(), strict=True):
        assert name == other and same(a, b)


# --- which calls and tokens count ---


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


def test_each_side_of_an_encoder_decoder_has_its_own_mask():
    model, inputs = hf_families.runnable("switch_transformers")
    masks = {"attention_mask": torch.ones(2, 8), "decoder_attention_mask": torch.ones(2, 5)}
    masks["attention_mask"][0, 6:] = 0
    masks["decoder_attention_mask"][1, 2:] = 0
    lens = seen(model, **inputs, **masks)
    assert [routing.num_tokens for routing in lens.routings.values()] == [14, 7]


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
    assert [{name: r.num_tokens for name, r in call.items()} for call in lens.calls] == [
        dict.fromkeys(lens.layers, 8)
    ] * 2
    whole = seen(model, IDS)
    for name, routing in lens.routings.items():
        assert torch.equal(routing.topk_indices, whole.routings[name].topk_indices)


def test_keep_is_how_many_calls_are_remembered(mixtral):
    with torch.no_grad(), Lens(mixtral, keep=2) as lens:
        for length in (2, 3, 4):
            mixtral(IDS[:, :length])
    assert [call[lens.layers[0]].num_tokens for call in lens.calls] == [6, 8]
    with torch.no_grad(), lens:  # starts anew
        mixtral(IDS)
    assert len(lens.calls) == 1


def test_a_layer_that_runs_again_in_a_call_is_there_again(ours):
    looped = Looped(ours)
    lens = seen(looped, IDS)
    assert lens.layers[:2] == ("block.layers.0.ffn", "block.layers.1.ffn")
    assert lens.layers[2:] == ("block.layers.0.ffn (turn 2)", "block.layers.1.ffn (turn 2)")
    assert same(lens.routings[lens.layers[0]], lens.routings[lens.layers[2]])


class Looped(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, ids):
        return self.block(ids)[0] + self.block(ids)[0]


# --- nothing stays behind ---


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


class Saved:
    def __init__(self, tensor):
        self.tensor = tensor


def test_the_graph_is_not_kept(mixtral):
    """What a graph has saved for its backward pass goes with the output, though the lens still has the routings."""
    saved: list[weakref.ref] = []

    def pack(tensor):
        made = Saved(tensor.detach())
        saved.append(weakref.ref(made))
        return made

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda made: made.tensor), Lens(mixtral) as lens:
        logits = mixtral(IDS).logits
    assert any(ref() is not None for ref in saved)
    del logits
    gc.collect()
    assert all(ref() is None for ref in saved) and len(lens.calls) == 1


# --- what is made of it ---


def test_balance_has_a_row_for_each_layer(mixtral):
    lens = seen(mixtral, IDS)
    table = lens.balance()
    assert table.index.tolist() == ["model.layers.0.mlp", "model.layers.1.mlp"]
    losses = [load_balancing_loss(routing).item() for routing in lens.routings.values()]
    assert table["load_balancing_loss"].tolist() == losses


@pytest.mark.parametrize("padded", [False, True])
def test_the_pooled_loss_is_hugging_faces_over_k(mixtral, padded):
    mask = torch.ones_like(IDS)
    mask[0, 5:] = 0
    inputs = {"attention_mask": mask} if padded else {}
    lens = seen(mixtral, IDS, **inputs)
    with torch.no_grad():
        theirs = mixtral(IDS, output_router_logits=True, **inputs).aux_loss
    assert 2 * lens.pooled_loss() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_trace_is_that_of_our_models(ours):
    text = "alpha beta gamma"
    ids = torch.tensor([list(text.encode())])
    wanted = trace_text(ours, text)
    for model in (ours, export_model(ours)):
        table = Lens(model).trace(ids)
        names = ["sequence", "position", "byte", "byte_class", "domain", "layer", "expert0", "expert1"]
        assert table[names].astype(str).equals(wanted[names].astype(str))
        assert table.attrs == wanted.attrs
    assert len(expert_shares(table, by="layer")) == 2 and len(information(table)) == 2


def test_a_trace_leaves_padding_out_and_names_domains(mixtral):
    mask = torch.ones_like(IDS)
    mask[0, 5:] = 0
    lens = Lens(mixtral)
    table = lens.trace(IDS, ["code", "prose"], attention_mask=mask)
    assert table.groupby(["layer", "domain"], observed=True).size().tolist() == [5, 8, 5, 8]
    assert table["byte"].tolist() == [*IDS[0, :5].tolist(), *IDS[1].tolist()] * 2
    with pytest.raises(ValueError, match="domains must be 2 names, one for each sequence, got 1"):
        lens.trace(IDS, ["code"])
    routings = seen(mixtral, IDS, attention_mask=mask).routings
    assert table["expert0"].tolist() == torch.cat([r.topk_indices[:, 0] for r in routings.values()]).tolist()


class Tokenizer:
    def decode(self, ids):
        return {3: " 7", 4: "=", 5: " "}[ids[0]]


def test_a_tokenizer_says_what_a_token_begins_with(mixtral):
    table = Lens(mixtral).trace(torch.tensor([[3, 4, 5]]), tokenizer=Tokenizer())
    assert table["byte_class"].tolist() == ["digit", "operator", "space"] * 2


def test_loads_are_drawn_as_those_of_our_models(mixtral):
    ax = plots.layer_loads(list(seen(mixtral, IDS).routings.values()))
    assert ax.get_ylabel() == "layer"


# --- what it says ---


class Hidden(nn.Module):
    """A block whose experts are called as Hugging Face's are, with its router elsewhere."""

    def __init__(self):
        super().__init__()
        self.choice, self.experts = nn.Linear(4, 4), Called()


class Called(nn.Module):
    def forward(self, hidden_states, top_k_index, top_k_weights):
        return hidden_states


class Packed(nn.Module):
    """As quantised experts are called."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Linear(4, 4)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: "gpt2", "model must be a torch module, got str"),
        (lambda: nn.Linear(4, 4), "model must have experts .*, got Linear, which has none: it is dense"),
        (Packed, r"model must have experts .*, got Packed, whose Linear are not: load it without quantisation"),
        (lambda: nn.Sequential(Hidden()), "router of 0 must stand beside its experts, .*got choice, experts"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        Lens(make())


@pytest.mark.parametrize("name", ["finegrained_fp8.FP8Experts", "mxfp4.Mxfp4GptOssExperts"])
def test_quantised_experts_are_found_by_the_same_structure(name):
    module, _, kind = name.partition(".")
    kind = getattr(pytest.importorskip(f"transformers.integrations.{module}"), kind)
    assert keys_of(object.__new__(kind)) == ("top_k_index", "top_k_weights")


def test_a_mask_that_does_not_tell_padding_is_refused_before_the_model_runs(mixtral):
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool).tril()
    said = re.escape("attention_mask must be (B, T), with 0 for padding, got torch.bool of shape (2, 1, 8, 8)")
    with pytest.raises(ValueError, match=f"{said}.*count_padding=True"):
        seen(mixtral, IDS, attention_mask=mask)
    routing = seen(mixtral, IDS, attention_mask=mask, lens={"count_padding": True}).routings["model.layers.0.mlp"]
    assert torch.equal(routing.topk_indices, seen(mixtral, IDS).routings["model.layers.0.mlp"].topk_indices)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.moe = MoE(4, 4, 4)

    def forward(self, x, attention_mask=None):
        return self.moe(x)


@pytest.mark.parametrize("shape", [(2, 3), (3, 8)])
def test_a_mask_of_other_tokens_is_refused(shape):
    lens = seen(Masked(), torch.randn(2, 8, 4), attention_mask=torch.ones(shape))
    with pytest.raises(ValueError, match=re.escape(f"for the 16 tokens of moe, got {shape}: count all tokens")):
        _ = lens.routings


def test_what_is_not_a_number_of_calls_is_refused(mixtral):
    with pytest.raises(ValueError, match="keep must be a whole number of at least 1, got 0"):
        Lens(mixtral, keep=0)


def test_who_goes_past_the_hooks_is_told(mixtral):
    with pytest.warns(UserWarning, match="the lens has seen no router at work"), Lens(mixtral) as lens:
        mixtral.forward(IDS)  # as a compiled model does
    assert lens.calls == [] and lens.layers == ("model.layers.0.mlp", "model.layers.1.mlp")
    with pytest.raises(ValueError, match="call the model itself within it"):
        lens.balance()


def test_layers_of_different_sizes_are_not_pooled():
    model = nn.Sequential(Masked(), Masked())
    model[1].moe = MoE(4, 4, 8)
    lens = seen(Two(model), torch.randn(2, 4))
    assert len(lens.balance()) == 2
    with pytest.raises(ValueError, match=re.escape("one number of experts to be joined, got [4, 8]")):
        lens.pooled_loss()


class Two(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def forward(self, x):
        return self.parts[1](self.parts[0](x)[0])
