"""The same layer as Hugging Face has it: the block of OLMoE, which has our softmax router and our stacked weights."""

import torch
from torch import nn

from moe_lessons.nn import MoE

IMPLEMENTATIONS = ("eager", "grouped_mm")
DECODING_ONLY = "batched_mm"  # it gathers the weights of every assignment: gigabytes where there are many tokens


def transformers_version() -> str | None:
    """The version of transformers, if one is installed that lets the experts run in several ways (5.18 or newer)."""
    try:
        import transformers
        import transformers.integrations.moe  # noqa: F401
    except ImportError:
        return None
    return transformers.__version__


def hugging_face_blocks(moe: MoE, decoding: bool) -> dict[str, nn.Module]:
    """`OlmoeSparseMoeBlock` on the very weights of `moe` (SwiGLU), once for each implementation of its experts.

    decoding: with `batched_mm`. Empty where transformers is missing.
    """
    if transformers_version() is None:
        return {}
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    weights = {name.replace("router.", "gate."): weight for name, weight in moe.state_dict().items()}
    blocks = {}
    for implementation in (*IMPLEMENTATIONS, *([DECODING_ONLY] if decoding else [])):
        config = OlmoeConfig(
            hidden_size=moe.d_model,
            intermediate_size=moe.d_ff,
            num_experts=moe.num_experts,
            num_experts_per_tok=moe.top_k,
            norm_topk_prob=moe.router.norm_topk_prob,
            experts_implementation=implementation,
            num_attention_heads=1,  # there is no attention in the block; 1 divides every size
            num_key_value_heads=1,
        )
        with torch.device("meta"):  # no memory of its own: it takes our weights
            block = OlmoeSparseMoeBlock(config)
        block.load_state_dict(weights, assign=True)
        blocks[f"HF {implementation}"] = block
    return blocks
