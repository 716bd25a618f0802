"""What is taught: the dense FFN, the router, the experts, the mixture that they make, and a model of such mixtures.

Shapes are written with the same letters everywhere: T tokens, E experts, K experts for each token, D d_model,
F d_ff, C capacity, A assignments.
"""

from moe_lessons.nn.attention import Attention, KVCache
from moe_lessons.nn.balancing import (
    apply_capacity,
    expert_capacity,
    load_balancing_loss,
    router_z_loss,
    update_expert_bias,
)
from moe_lessons.nn.dispatch import DISPATCH, choose_dispatch, describe_dispatch
from moe_lessons.nn.experts import Experts, muted
from moe_lessons.nn.ffn import ACTIVATIONS, FeedForward
from moe_lessons.nn.moe import MoE
from moe_lessons.nn.routers import ExpertChoiceRouter, HashRouter, SigmoidRouter
from moe_lessons.nn.routing import NoisyTopKRouter, Routing, SwitchRouter, TopKRouter
from moe_lessons.nn.seeding import evaluating, seeded, torch_threads
from moe_lessons.nn.soft_moe import SoftMoE
from moe_lessons.nn.transformer import LanguageModel, TransformerConfig
from moe_lessons.nn.twins import dense_twin, is_moe

__all__ = [
    "ACTIVATIONS",
    "Attention",
    "DISPATCH",
    "ExpertChoiceRouter",
    "Experts",
    "FeedForward",
    "HashRouter",
    "KVCache",
    "LanguageModel",
    "MoE",
    "NoisyTopKRouter",
    "Routing",
    "SigmoidRouter",
    "SoftMoE",
    "SwitchRouter",
    "TopKRouter",
    "TransformerConfig",
    "apply_capacity",
    "choose_dispatch",
    "dense_twin",
    "describe_dispatch",
    "evaluating",
    "expert_capacity",
    "is_moe",
    "load_balancing_loss",
    "muted",
    "router_z_loss",
    "seeded",
    "torch_threads",
    "update_expert_bias",
]
