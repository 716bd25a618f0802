"""Mixtral and OLMoE of Hugging Face with the same weights: the same output, gradients and choices."""

import pytest
import torch
import transformers
from torch import nn
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from moe_lessons.hub import Lens
from moe_lessons.nn import DISPATCH, LanguageModel, MoE, TransformerConfig, seeded
from tools.bench_cases import hf_model

SIZES = [(16, 32, 8, 2, 40), (7, 9, 5, 3, 11), (5, 3, 4, 1, 9), (4, 6, 3, 3, 1)]  # D, F, E, K, tokens
FAMILIES = {  # block, configuration, and whether it divides the K weights by their sum
    "Mixtral": (MixtralSparseMoeBlock, transformers.MixtralConfig, True),
    "OLMoE": (OlmoeSparseMoeBlock, transformers.OlmoeConfig, False),
}


def blocks(family: str, size: tuple) -> tuple[nn.Module, MoE]:
    """A block of Hugging Face with large weights, and ours with the same."""
    (d_model, d_ff, num_experts, top_k, _), (block, config, is_divided) = size, FAMILIES[family]
    names = {"hidden_size": d_model, "intermediate_size": d_ff, "num_experts_per_tok": top_k}
    names |= dict.fromkeys(("num_local_experts", "num_experts"), num_experts)
    names |= dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 1)
    with seeded(0):
        theirs = block(config(**names, experts_implementation="eager"))
        for weight in theirs.parameters():
            nn.init.normal_(weight, std=0.5)
    ours = MoE(d_model, d_ff, num_experts, top_k, norm_topk_prob=is_divided)
    ours.load_state_dict(by_our_names(theirs.state_dict()))
    return theirs, ours


def by_our_names(weights: dict) -> dict:
    return {name.replace("gate.", "router."): weight for name, weight in weights.items()}


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, largest: float):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(theirs.abs().max().item(), largest))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_has_the_same_output_gradients_and_choices(family, size, device):
    theirs, ours = (block.to(device) for block in blocks(family, size))
    torch.manual_seed(0)
    x = torch.randn(1, size[4], size[0], device=device, requires_grad=True)
    with Lens(theirs) as lens:
        y = theirs(x)
    weights, upstream = by_our_names(dict(theirs.named_parameters())), torch.randn_like(y)
    expected = torch.autograd.grad(y, [x, *weights.values()], upstream)
    for ours.dispatch in (*DISPATCH, "auto"):
        my_y, routing = ours(x)
        mine = torch.autograd.grad(my_y, [x, *(ours.get_parameter(name) for name in weights)], upstream)
        for one, other in zip((my_y, *mine), (y, *expected), strict=True):  # at K = 1 some gradients are but rounding
            assert_near(one, other, y.abs().max().item())
    assert torch.equal(lens.routings[""].topk_indices, routing.topk_indices)
    torch.testing.assert_close(lens.routings[""].router_probs, routing.router_probs)


@pytest.mark.parametrize("changes", [{}, {"tied_embedding": False, "num_kv_heads": 1, "top_k": 3}, {"num_kv_heads": 4}])
def test_a_whole_mixtral_has_the_same_logits(changes):
    with seeded(0):
        ours = LanguageModel(TransformerConfig(d_model=32, d_ff=24, num_layers=2, norm_eps=0.1, **changes)).eval()
        for name, weight in ours.named_parameters():  # large, so that neither attention nor routing is near uniform
            nn.init.uniform_(weight, 0.5, 1.5) if "norm" in name else nn.init.normal_(weight, std=0.3)
    ids = torch.randint(256, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = hf_model(ours).eval()(ids).logits
        assert_near(ours(ids)[0], logits, 0.0)
