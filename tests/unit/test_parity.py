"""Our layout and our losses are those of Hugging Face. Whole blocks, family by family: test_hub.py."""

import pytest
import torch

from moe_lessons.nn import MoE, TopKRouter, load_balancing_loss, router_z_loss

pytest.importorskip("transformers", reason="needs the extra hf")
from transformers import MixtralConfig, OlmoeConfig  # noqa: E402
from transformers.models.mixtral import modeling_mixtral as mixtral  # noqa: E402
from transformers.models.olmoe import modeling_olmoe as olmoe  # noqa: E402
from transformers.models.switch_transformers import modeling_switch_transformers as switch  # noqa: E402

SIZES = [  # d_model, d_ff, num_experts, top_k, tokens
    (16, 32, 8, 2, 40),
    (7, 9, 5, 3, 11),
    (4, 6, 3, 3, 1),
    (3, 1, 1, 1, 6),
]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: "-".join(map(str, size)))


@sizes
@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_their_weights_load_without_reshaping(family, size):
    """Under the names that theirs have, but for `gate`, which is `router` here."""
    d_model, d_ff, num_experts, top_k, num_tokens = size
    common = {"hidden_size": d_model, "intermediate_size": d_ff, "num_experts_per_tok": top_k}
    common |= {"num_attention_heads": 1, "num_key_value_heads": 1, "experts_implementation": "eager"}
    if family == "mixtral":
        theirs = mixtral.MixtralSparseMoeBlock(MixtralConfig(num_local_experts=num_experts, **common))
    else:
        theirs = olmoe.OlmoeSparseMoeBlock(OlmoeConfig(num_experts=num_experts, norm_topk_prob=False, **common))
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours = MoE(d_model, d_ff, num_experts, top_k, norm_topk_prob=family == "mixtral")
    ours.load_state_dict({name.replace("gate.", "router."): p for name, p in theirs.state_dict().items()})
    x = torch.randn(1, num_tokens, d_model)
    torch.testing.assert_close(ours(x)[0], theirs(x))


@sizes
@pytest.mark.parametrize("padded", [False, True])
def test_load_balancing_loss_is_theirs_over_k(size, padded):
    """Mixtral's counts each of the K choices as a whole one. With padding, only the tokens of the mask count."""
    torch.manual_seed(0)
    _, routing = MoE(*size[:4])(torch.randn(size[4], size[0]))
    mask = torch.arange(size[4]) % 3 != 1 if padded else None
    theirs = mixtral.load_balancing_loss_func((routing.router_logits,), size[2], size[3], mask)
    torch.testing.assert_close(load_balancing_loss(routing, mask), theirs / size[3])


def test_losses_of_switch():
    torch.manual_seed(0)
    _, routing = MoE(4, 8, 5, 1, router=TopKRouter(4, 5, 1))(torch.randn(30, 4))
    theirs = switch.load_balancing_loss_func(routing.router_probs[None], routing.topk_indices[None, :, 0])
    torch.testing.assert_close(load_balancing_loss(routing), theirs)
    torch.testing.assert_close(router_z_loss(routing), switch.router_z_loss_func(routing.router_logits[None]))
