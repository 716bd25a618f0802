"""Hugging Face blocks, converted: the same output and gradients, for every family and every dispatch."""

import copy
import importlib
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from moe_lessons.hub import BLOCKS, convert_block
from moe_lessons.nn import DISPATCH, MoE, TopKRouter, load_balancing_loss, router_z_loss

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
from transformers.models.mixtral import modeling_mixtral as mixtral  # noqa: E402
from transformers.models.switch_transformers import modeling_switch_transformers as switch  # noqa: E402

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative to the largest number of a tensor
SIZES = [(16, 32, 8, 2, 40), (7, 9, 5, 3, 11), (5, 3, 4, 1, 9), (4, 6, 3, 3, 1)]  # D, F, E, K, tokens
ONE_GROUP = {"n_group": 1, "topk_group": 1}
SWITCH_FULL = {"expert_capacity": 2, "router_bias": True, "dense_act_fn": "gelu"}
KINDS = {  # a family in one of its configurations: block, configuration, what is special
    "mixtral": ("MixtralSparseMoeBlock", "MixtralConfig", {}),
    "olmoe": ("OlmoeSparseMoeBlock", "OlmoeConfig", {"norm_topk_prob": False}),
    "qwen2": ("Qwen2MoeSparseMoeBlock", "Qwen2MoeConfig", {"shared_expert_intermediate_size": 5}),
    "qwen2 divided": ("Qwen2MoeSparseMoeBlock", "Qwen2MoeConfig", {"norm_topk_prob": True}),
    "qwen3": ("Qwen3MoeSparseMoeBlock", "Qwen3MoeConfig", {"norm_topk_prob": True}),
    "deepseek": ("DeepseekV3MoE", "DeepseekV3Config", ONE_GROUP | {"n_shared_experts": 2}),
    "deepseek raw": ("DeepseekV3MoE", "DeepseekV3Config", ONE_GROUP | {"norm_topk_prob": False}),
    "deepseek groups": ("DeepseekV3MoE", "DeepseekV3Config", {"n_group": 4, "topk_group": 2}),
    "gpt-oss": ("GptOssMLP", "GptOssConfig", {}),
    "llama4": ("Llama4TextMoe", "Llama4TextConfig", {}),
    "switch": ("SwitchTransformersSparseMLP", "SwitchTransformersConfig", {}),
    "switch full": ("SwitchTransformersSparseMLP", "SwitchTransformersConfig", SWITCH_FULL),
}


def hf_block(kind: str, size=SIZES[0], dtype=torch.float32, std=0.5, **special) -> nn.Module:
    """A standalone block with every parameter and buffer filled: it starts as memory that was never written."""
    block_name, config_name, own = KINDS[kind]
    config_class = getattr(transformers, config_name)
    code = importlib.import_module(config_class.__module__.replace("configuration_", "modeling_"))
    d_model, d_ff, num_experts, top_k, _ = size
    names = {"hidden_size": d_model, "num_experts_per_tok": top_k, "num_attention_heads": 1, "num_key_value_heads": 1}
    names |= dict.fromkeys(["intermediate_size", "moe_intermediate_size", "d_ff"], d_ff)
    names["shared_expert_intermediate_size"] = 3
    experts = ["num_local_experts", "n_routed_experts"] if "deepseek" in kind else ["num_local_experts", "num_experts"]
    names |= dict.fromkeys(experts, num_experts)
    names |= {"experts_implementation": "eager", "dropout_rate": 0.0, "router_jitter_noise": 0.0}
    block = getattr(code, block_name)(config_class(**names | own | special)).to(dtype)
    for tensor in [*block.parameters(), *block.buffers()]:
        nn.init.normal_(tensor, std=std)
    return block


class InFloat64(TorchFunctionMode):
    """Within it, what asks torch for float32 gets float64: their routers compute in float32 whatever their type."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args, kwargs = tree_map(lambda v: torch.float64 if v is torch.float32 else v, (args, kwargs or {}))
        return func(*args, **kwargs)


def output_of(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with InFloat64() if x.dtype == torch.float64 else nullcontext():
        out = block(x)
    return (out[0] if isinstance(out, tuple) else out).view(x.shape)


def gradients_of(block: nn.Module) -> dict[str, torch.Tensor]:
    """The gradients of their parameters in our layout: as a layout is linear, a gradient converts like a weight."""
    holder = copy.deepcopy(block)
    with torch.no_grad():
        for ours, theirs in zip(holder.parameters(), block.parameters()):
            ours.copy_(torch.zeros_like(theirs) if theirs.grad is None else theirs.grad)
    return dict(convert_block(holder).named_parameters())


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, name: str, least: float = 0.0):
    assert ours.dtype == theirs.dtype, name
    limit = TOLERANCE[theirs.dtype] * max(theirs.abs().max().item(), least)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=limit, msg=lambda text: f"{name}: {text}")


def assert_same_output_and_gradients(theirs: nn.Module, x: torch.Tensor) -> MoE:
    ours = convert_block(theirs)
    x_theirs = x.clone().requires_grad_()
    y_theirs = output_of(theirs, x_theirs)
    cotangent = torch.randn_like(x)
    y_theirs.backward(cotangent)
    expected = gradients_of(theirs)
    size_of_y = y_theirs.abs().max().item()  # at K = 1 a renormalised router has no gradient, only its rounding
    for ours.dispatch in (*DISPATCH, "auto"):
        ours.zero_grad()
        x_ours = x.clone().requires_grad_()
        y, _ = ours(x_ours)
        y.backward(cotangent)
        assert_same(y, y_theirs, f"y, {ours.dispatch}")
        assert_same(x_ours.grad, x_theirs.grad, f"gradient of x, {ours.dispatch}", size_of_y)
        for name, parameter in ours.named_parameters():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert_same(grad, expected[name].detach(), f"gradient of {name}, {ours.dispatch}", size_of_y)
    return ours


def can_run(kind: str, size) -> bool:
    """Whether their block can: the router of DeepSeek wants groups of equal size, of two experts at least."""
    groups = KINDS[kind][2].get("n_group", 1)
    return "deepseek" not in kind or (size[2] % groups == 0 and size[2] // groups >= 2)


@pytest.mark.parametrize("kind, size", [(k, size) for k in KINDS for size in SIZES if can_run(k, size)], ids=str)
def test_a_block_has_the_same_output_and_gradients(kind, size, device):
    torch.manual_seed(0)
    x = 2 * torch.randn(1, size[4], size[0], dtype=torch.float64, device=device)  # large: for the clamps of gpt-oss
    ours = assert_same_output_and_gradients(hf_block(kind, size, torch.float64).to(device), x)
    assert {tensor.device.type for tensor in [*ours.parameters(), *ours.buffers()]} == {device}


@pytest.mark.parametrize("capacity", [1, 3, 64])
def test_switch_counts_its_capacity_in_each_sequence(capacity):
    """Their experts take `capacity` tokens of each sequence, first come, first served: (E,) a sequence, as counted."""
    torch.manual_seed(2)
    theirs, x = hf_block("switch", expert_capacity=capacity), torch.randn(3, 20, 16)
    ours = assert_same_output_and_gradients(theirs, x)
    routing = ours(x)[1]
    chosen = theirs.router.classifier(x).argmax(-1)  # (B, T)
    wanted = torch.stack([torch.bincount(sequence, minlength=8) for sequence in chosen])  # (B, E)
    assert torch.equal(routing.tokens_per_expert, wanted.clamp(max=capacity).sum(0))
    assert torch.equal(routing.dropped_per_expert, (wanted - capacity).clamp(min=0).sum(0))
    torch.testing.assert_close(ours(x[0])[0], ours(x)[0][0])  # (T, D) is one sequence
    assert ours(x[:, :0])[0].shape == (3, 0, 16) and ours(x[0, 0])[0].shape == (16,)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_weights_keep(kind):
    theirs = hf_block(kind, dtype=torch.bfloat16, router_jitter_noise=0.3).eval()
    kept, state = copy.deepcopy(theirs.state_dict()), torch.get_rng_state()
    list(theirs.experts.parameters())[0].requires_grad_(False)
    list(theirs.experts.parameters())[-1].requires_grad_(False)
    ours = convert_block(theirs)
    assert torch.equal(torch.get_rng_state(), state) and not ours.training and not ours.router.training
    assert all(tensor.dtype == torch.bfloat16 for tensor in [*ours.parameters(), *ours.buffers()])
    frozen = [name for name, p in ours.named_parameters() if not p.requires_grad]
    assert len(frozen) == (0 if "switch" in kind else 2)  # of several, as in Switch, all of them would have to be
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert getattr(ours.router, "jitter_noise", 0) == (0.3 if kind.split()[0] in ("mixtral", "switch") else 0)
    assert ours(torch.randn(2, 4, 16, dtype=torch.bfloat16))[0].dtype == torch.bfloat16
    with torch.no_grad():
        for tensor in [*ours.parameters(), *ours.buffers()]:
            tensor.zero_()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(
    "kind, path, value, message",
    [
        ("mixtral", "experts.down_proj", (7, 16, 32), r"experts.down_proj .* \(8, 16, 32\) .* got \(7, 16, 32\)"),
        ("gpt-oss", "experts.limit", 6.0, "limit of hf_block.experts must be 7.0, got 6.0"),
        ("olmoe", "experts.down_proj", torch.float8_e4m3fn, "16 bits or more, not quantised ones, got torch.float8_e4"),
        ("qwen3", "experts.act_fn", nn.GELU(), "activation of hf_block must be SiLU or SiLUActivation, got GELU"),
        ("deepseek", "gate.num_group", None, "DeepSeek-V3 block of transformers 5.18 or later.*num_group"),
    ],
)
def test_what_our_block_lacks(kind, path, value, message):
    theirs = hf_block(kind)
    owner, _, name = path.rpartition(".")
    module = theirs.get_submodule(owner)
    if isinstance(value, tuple | torch.dtype):
        made = torch.randn(value) if isinstance(value, tuple) else getattr(module, name).to(value)
        value = nn.Parameter(made, requires_grad=False)
    delattr(module, name) if value is None else setattr(module, name, value)
    with pytest.raises(ValueError, match=message):
        convert_block(theirs)


def test_another_block_is_refused():
    for bad in (nn.Linear(3, 4), type("GptOssMLP", (nn.Module,), {})()):
        with pytest.raises(ValueError, match=f"hf_block must be .* got {type(bad).__name__}$"):
            convert_block(bad)
    assert {block for block, _, _ in KINDS.values()} == set(BLOCKS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("padded", [False, True])
def test_load_balancing_loss_is_theirs_over_k(size, padded):
    """Mixtral's counts each of the K choices as a whole one. With padding, only the tokens of the mask count."""
    torch.manual_seed(0)
    _, routing = MoE(*size[:4])(torch.randn(size[4], size[0]))
    mask = torch.arange(size[4]) % 3 != 1 if padded else None
    theirs = mixtral.load_balancing_loss_func((routing.router_logits,), size[2], size[3], mask)
    routing = routing.of_tokens(mask.nonzero()[:, 0]) if padded else routing
    torch.testing.assert_close(load_balancing_loss(routing), theirs / size[3])


def test_losses_of_switch():
    torch.manual_seed(0)
    _, routing = MoE(4, 8, 5, 1, router=TopKRouter(4, 5, 1))(torch.randn(30, 4))
    theirs = switch.load_balancing_loss_func(routing.router_probs[None], routing.topk_indices[None, :, 0])
    torch.testing.assert_close(load_balancing_loss(routing), theirs)
    torch.testing.assert_close(router_z_loss(routing), switch.router_z_loss_func(routing.router_logits[None]))
