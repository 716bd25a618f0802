"""Our block with the weights of a Hugging Face block gives the same output, the same gradients, the same losses."""

import pytest
import torch

from moe_lessons.nn import DISPATCH, MoE, load_balancing_loss, router_z_loss

pytest.importorskip("transformers", reason="needs the extra hf")
from transformers import MixtralConfig, OlmoeConfig  # noqa: E402
from transformers.models.mixtral import modeling_mixtral as mixtral  # noqa: E402
from transformers.models.olmoe import modeling_olmoe as olmoe  # noqa: E402
from transformers.models.switch_transformers import modeling_switch_transformers as switch  # noqa: E402

SIZES = [  # d_model, d_ff, num_experts, top_k, tokens
    (16, 32, 8, 2, 40),
    (7, 9, 5, 3, 11),
    (5, 3, 4, 1, 9),
    (4, 6, 3, 3, 1),
    (3, 1, 1, 1, 6),
]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: "-".join(map(str, size)))


def hf_block(kind: str, size, norm: bool) -> torch.nn.Module:
    """A standalone block, every parameter filled: it starts as memory that was never written."""
    d_model, d_ff, num_experts, top_k, _ = size
    common = {"hidden_size": d_model, "intermediate_size": d_ff, "num_experts_per_tok": top_k}
    common |= {"num_attention_heads": 1, "num_key_value_heads": 1, "experts_implementation": "eager"}
    if kind == "mixtral":
        block = mixtral.MixtralSparseMoeBlock(MixtralConfig(num_local_experts=num_experts, **common))
    else:
        block = olmoe.OlmoeSparseMoeBlock(OlmoeConfig(num_experts=num_experts, norm_topk_prob=norm, **common))
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block


@sizes
@pytest.mark.parametrize("kind, norm", [("mixtral", True), ("olmoe", False), ("olmoe", True)])
@pytest.mark.parametrize("way", DISPATCH)
def test_same_output_and_gradients(kind, norm, size, way):
    torch.manual_seed(0)
    theirs = hf_block(kind, size, norm)
    ours = MoE(*size[:4], norm_topk_prob=norm, dispatch=way)
    ours.load_state_dict({name.replace("gate.", "router."): p for name, p in theirs.state_dict().items()})

    x = torch.randn(1, size[4], size[0], requires_grad=True)
    x_theirs = x.detach().clone().requires_grad_()
    y, y_theirs = ours(x)[0], theirs(x_theirs)
    torch.testing.assert_close(y, y_theirs)

    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    y_theirs.backward(cotangent)
    torch.testing.assert_close(x.grad, x_theirs.grad)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name.replace("gate.", "router.")).grad, parameter.grad)


@sizes
def test_load_balancing_loss_is_theirs_over_k(size):
    """Mixtral's counts each of the K choices as a whole one."""
    _, routing = MoE(*size[:4])(torch.randn(size[4], size[0]))
    theirs = mixtral.load_balancing_loss_func((routing.router_logits,), size[2], size[3])
    torch.testing.assert_close(load_balancing_loss(routing), theirs / size[3])


def test_losses_of_switch():
    _, routing = MoE(4, 8, 5, 1)(torch.randn(30, 4))
    theirs = switch.load_balancing_loss_func(routing.router_probs[None], routing.topk_indices[None, :, 0])
    torch.testing.assert_close(load_balancing_loss(routing), theirs)
    torch.testing.assert_close(router_z_loss(routing), switch.router_z_loss_func(routing.router_logits[None]))
