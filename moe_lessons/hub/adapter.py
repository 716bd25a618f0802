"""A Hugging Face model as `training.Run` and `analysis.trace` want one: token ids in, logits and routings out."""

import torch
from torch import Tensor, nn

from moe_lessons.hub.routing_lens import Lens
from moe_lessons.nn import Routing, evaluating, is_moe

BIAS = "e_score_correction_bias"  # as DeepSeek-V3 and its heirs call what the bias update moves


class RunModel(nn.Module):
    """A causal language model of Hugging Face that is trained like ours: ids (B, T) -> (logits (B, T, V), routings).

    hf_model: any that a `Lens` can read. It is trained itself, and is at hand as `hf_model`. What it routes stays part
    of the graph, so that all knobs of a run act on it: the balancing losses, and for DeepSeek-V3 the bias update.

    Raises ValueError for a model without experts, as `Lens` does.
    """

    def __init__(self, hf_model: nn.Module):
        super().__init__()
        self.hf_model = hf_model
        ids = torch.zeros(1, 1, dtype=torch.int64, device=next(hf_model.parameters()).device)
        with Lens(hf_model, keep=1) as lens, evaluating(hf_model), torch.no_grad():
            hf_model(ids, use_cache=False)
        blocks = [(hf_model.get_submodule(name), routing) for name, routing in lens.routings.items()]
        self.mixtures = nn.ModuleList(MixtureOf(*own) for own in blocks if not is_moe(own[0]))

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Routing]]:
        with GraphLens(self.hf_model, keep=1) as lens:
            logits = self.hf_model(ids, use_cache=False).logits
        return logits, list(lens.routings.values())


class GraphLens(Lens):
    """A lens whose routings have gradients."""

    hold = staticmethod(lambda value: value)


class MixtureOf(nn.Module):
    """What a run and its panels ask of a mixture: its E and K, and a router, with an `expert_bias` where it has one."""

    def __init__(self, block: nn.Module, routing: Routing):
        super().__init__()
        self.num_experts, self.top_k, self.experts = routing.num_experts, len(routing.expert_idx), ()
        self._owner = [module for module in block.modules() if hasattr(module, BIAS)]  # a list: no child of this module

    @property
    def router(self) -> "MixtureOf":
        return self

    @property
    def expert_bias(self) -> Tensor:
        if not self._owner:
            raise AttributeError("expert_bias")
        return getattr(self._owner[0], BIAS)
