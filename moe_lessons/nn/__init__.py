"""The layers that are taught: the dense FFN, the router, the experts, their mixture, and a model of such mixtures.

Read it in this order: ffn · routing · balancing · experts · dispatch · moe · baselines · attention · transformer, and
soft_moe beside them. Shapes are written with the same letters everywhere: T tokens, E experts, K experts for each
token, D d_model, F d_ff, C capacity, A assignments."""

from moe_lessons.nn.attention import Attention, KVCache
from moe_lessons.nn.balancing import apply_capacity, load_balancing_loss, router_z_loss, update_expert_bias
from moe_lessons.nn.baselines import dense_baseline, dense_name, is_moe, with_baselines
from moe_lessons.nn.dispatch import DISPATCH, choose_dispatch
from moe_lessons.nn.experts import Experts
from moe_lessons.nn.ffn import ACTIVATIONS, FeedForward
from moe_lessons.nn.moe import MoE, muted
from moe_lessons.nn.routing import (
    ExpertChoiceRouter,
    FrozenRouter,
    HashRouter,
    NoisyTopKRouter,
    Routing,
    SigmoidRouter,
    TopKRouter,
)
from moe_lessons.nn.seeding import evaluating, seeded, torch_threads
from moe_lessons.nn.soft_moe import SoftMoE
from moe_lessons.nn.transformer import LanguageModel, TransformerConfig
