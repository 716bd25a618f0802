"""Published families of mixtures as short specifications, and the same work for a token in finer experts.

`MoE(d_model=…, d_ff=…, **FAMILIES[name])` is a block of that family; what two of them do differently is what their
dictionaries do. What one family has alone is left out (see `hub.variants`), and so is how it was balanced (see
data/published_models.csv)."""

from typing import Any

from moe_lessons.support.errors import check_count, check_positive_int, check_top_k

Arguments = dict[str, Any]  # arguments of `MoE`

# Sizes of: Switch-Base-128, Mixtral 8x7B, DeepSeekMoE-16B, Qwen1.5-MoE-A2.7B, OLMoE-1B-7B, DeepSeek-V3, Qwen3-30B-A3B,
# Llama 4 Scout, gpt-oss-20b.
FAMILIES: dict[str, Arguments] = {
    "Switch": {"num_experts": 128, "top_k": 1, "activation": "relu", "capacity_factor": 1.25},
    "Mixtral": {"num_experts": 8, "top_k": 2, "norm_topk_prob": True},
    "DeepSeekMoE": {"num_experts": 64, "top_k": 6, "shared_experts": 2, "norm_topk_prob": False},
    "Qwen2-MoE": {"num_experts": 60, "top_k": 4, "shared_experts": 4, "norm_topk_prob": False},
    "OLMoE": {"num_experts": 64, "top_k": 8, "norm_topk_prob": False},
    "DeepSeek-V3": {
        "num_experts": 256, "top_k": 8, "shared_experts": 1, "router": "sigmoid", "num_groups": 8, "topk_groups": 4,
        "routed_scaling_factor": 2.5,
    },
    "Qwen3-MoE": {"num_experts": 128, "top_k": 8},
    "Llama 4": {"num_experts": 16, "top_k": 1, "shared_experts": 1, "router": "sigmoid"},
    "gpt-oss": {"num_experts": 32, "top_k": 4, "norm_topk_prob": True},
}  # fmt: skip


def difference(one: Arguments, other: Arguments) -> tuple[Arguments, Arguments]:
    """Return what of each specification is not in the other.

    >>> difference(FAMILIES["Mixtral"], FAMILIES["OLMoE"])
    ({'num_experts': 8, 'top_k': 2, 'norm_topk_prob': True}, {'num_experts': 64, 'top_k': 8, 'norm_topk_prob': False})
    """
    parts = ((one, other), (other, one))
    return tuple({key: value for key, value in a.items() if key not in b or b[key] != value} for a, b in parts)


def finer(num_experts: int, top_k: int, d_ff: int, times: int = 1, shared: int = 0) -> Arguments:
    """Experts that are `times` as fine, of which `shared` serve every token: as many parameters in all and at work for
    a token, but for the router (DeepSeekMoE, arXiv:2401.06066, section 3).

    >>> finer(16, 2, 32, times=4, shared=2)
    {'num_experts': 62, 'top_k': 6, 'd_ff': 8, 'shared_experts': 2}
    """
    check_top_k(top_k, num_experts)
    if d_ff % check_positive_int("times", times):
        raise ValueError(f"times must divide d_ff ({d_ff}), got {times}")
    if check_count("shared", shared) >= top_k * times:
        raise ValueError(f"shared must be below top_k · times ({top_k * times}), got {shared}")
    sizes = {"num_experts": num_experts * times - shared, "top_k": top_k * times - shared, "d_ff": d_ff // times}
    return sizes | ({"shared_experts": shared} if shared else {})
