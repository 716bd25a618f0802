"""A mixture on thousands of devices, on paper: memory, bytes and the time of a step, and beside it what was published.

What a dense model costs too (pipeline bubbles, summing the gradients, small kernels) is in one figure, `UTILISATION`.
On top comes what only a mixture has: the exchange of tokens, and the busiest device."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_lessons.analysis.counting import published_models
from moe_lessons.analysis.inference import union_law
from moe_lessons.analysis.roofline import CACHE_BYTES, WEIGHT_BYTES, machines, published_sizes
from moe_lessons.support.data import data_path
from moe_lessons.support.errors import check_choice, check_number, check_positive_int, check_whole

# Share of the bfloat16 peak that a large dense model reaches in training, all its own waiting included: the middle of
# the 38 to 43 % of Llama 3 405B on 8,192 and 16,384 H100 (arXiv:2407.21783, table 4). Set before the comparison.
UTILISATION = 0.40
# Bytes of a weight in training, mixed precision with Adam: the weight in bfloat16, its gradient in float32; a float32
# copy and two moments, which the replicas of the weight share (ZeRO stage 1: arXiv:1910.02054, sections 3 and 5)
TRAINED_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 2, 4, 12
NODE, COMBINE_BYTES = 8, 2  # devices of a node; of each number on its way back from the experts


def copies_sent(top_k: int, group: int, node_limit: int | None = None) -> tuple[float, float]:
    """Count how many times a layer sends a token one way: to devices of the same node, and to other nodes.

    The experts lie on `group` devices, all as likely. Each of the K copies goes by itself or, with a node_limit, once
    to each node it visits, at most so many (DeepSeek-V3, arXiv:2412.19437, section 3.2.2)."""
    node, nodes = min(NODE, group), -(-group // NODE)
    if node_limit is None:
        return top_k * (node - 1) / group, top_k * (group - node) / group
    visited = union_law(min(check_positive_int("node_limit", node_limit), nodes), 1, top_k)
    return top_k * (node - 1) / node, visited * (nodes - 1) / nodes


@dataclass(frozen=True)
class Plan:
    """The bytes that one device holds and sends in a step, and its seconds. inside, between: the exchange with
    its node and with others, both at the same time; hidden: what passes beside the arithmetic. limit: what takes
    longest."""

    tokens: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    cache: float
    bytes_inside: float
    bytes_between: float
    compute: float
    inside: float
    between: float
    hidden: float
    limit: str

    @property
    def memory(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.cache

    @property
    def exchange(self) -> float:
        return max(self.inside, self.between)

    @property
    def seconds(self) -> float:
        return self.compute + self.exchange - self.hidden


def plan(
    model: str, *, machine="NVIDIA H100 SXM", devices=64, expert_parallel=8, pipeline_parallel=1,
    inside="NVLink 4 (H100)", between="InfiniBand NDR (400 Gb/s)", tokens_per_device=4096, tokens_at_once=None,
    context=4096, phase="training", weights="bfloat16", dispatch_bytes=2, node_limit=None, imbalance=1.0, overlap=0.0,
) -> Plan:  # fmt: skip
    """Plan a step of a model of `published_models` on devices of `machines`.

    expert_parallel: so many devices share the experts (N). inside, between: links in a node of 8 and between nodes, of
    data/interconnects.csv. tokens_at_once: of one exchange; None: all. phase: 'training', or reading prompts,
    'prefill', or 'decoding' a token in each of tokens_per_device texts. weights: of `WEIGHT_BYTES`, where nothing is
    trained. dispatch_bytes: of a number on its way to an expert. node_limit: see `copies_sent`. imbalance: rows of the
    busiest device over the mean; the others wait for it. overlap: share of the exchange beside the arithmetic.

    >>> made = plan("DeepSeek-V3", devices=2048, expert_parallel=64, pipeline_parallel=16, node_limit=4)
    >>> made.limit, round(made.memory / 1e9)
    ('arithmetic', 150)
    """
    sizes = published_sizes()[check_choice("model", model, published_sizes())]
    d_model = int(published_models().set_index("name").d_model[model])
    N, P, T = expert_parallel, check_positive_int("pipeline_parallel", pipeline_parallel), tokens_per_device
    most = min((group.num_experts for group in sizes.groups), default=1)
    check_whole("expert_parallel", N, 1, most, f"between 1 and the number of experts ({most})")
    if check_positive_int("devices", devices) % (N * P):
        raise ValueError(f"devices must be a multiple of expert_parallel × pipeline_parallel ({N * P}), got {devices}")
    at_once = min(check_positive_int("tokens_per_device", T), check_positive_int("tokens_at_once", tokens_at_once or T))
    check_choice("phase", phase, ("training", "prefill", "decoding"))
    check_choice("weights", weights, WEIGHT_BYTES)
    row = machines().loc[check_choice("machine", machine, machines().index)]
    check_number("imbalance", imbalance, 1)
    check_number("overlap", overlap, most=1)
    is_trained, is_decoded = phase == "training", phase == "decoding"
    each = TRAINED_BYTES if is_trained else WEIGHT_BYTES[weights]

    # Weights: N devices share the experts, and what the pipeline leaves to a device it holds of all else
    routed = sum(group.layers * group.size for group in sizes.groups)
    experts = sum(group.layers * group.expert * -(-group.num_experts // N) for group in sizes.groups) / P
    dense = (sizes.total - routed) / P
    shared = (experts * N + dense) * P / devices  # its part of the replicas

    # The exchange: in training 4·L·T·K·(N−1)/N·D·itemsize bytes a step, there and back, forward and backward
    layers, passes = sum(group.layers for group in sizes.groups), 2 if is_trained else 1
    copies = sum(group.layers * np.array(copies_sent(group.top_k, N, node_limit)) for group in sizes.groups)
    sent = imbalance * passes * T * d_model * (dispatch_bytes + COMBINE_BYTES) * copies
    links = pd.read_csv(data_path("interconnects.csv"), index_col="name").fillna({"latency": 0.0})
    links = links.loc[[check_choice("inside", inside, links.index), check_choice("between", between, links.index)]]
    messages = 2 * passes * layers * -(-T // at_once) * (sent > 0)
    seconds = links.latency.to_numpy() * messages + sent / links.bytes_per_second.to_numpy()

    # Arithmetic: 2 FLOPs for a weight and token, 6 in training; a token looks back on half of its text on average
    flops = (3 if is_trained else 1) * T * sizes.flops(context if is_decoded else context // 2)
    of_experts = (6 if is_trained else 2) * T * sum(g.layers * g.top_k * g.matrix for g in sizes.groups)
    paces = [((flops + (imbalance - 1) * of_experts) / (UTILISATION * row.bf16_flops_per_second), "arithmetic")]
    cache = T * CACHE_BYTES[weights] * sizes.cache(context) if is_decoded else 0.0
    if is_decoded:  # reads the weights that the tokens of all N devices meet, and the cache
        met = sum(g.layers * g.expert * union_law(g.num_experts, g.top_k, T * N) / N for g in sizes.groups)
        paces.append(((each * (dense - sizes.looked_up + met) + cache) / row.bytes_per_second, "memory"))
    compute, limit = max(paces)
    limit = limit if compute >= max(seconds) else f"links {'inside' if seconds[0] >= seconds[1] else 'between'} nodes"

    # Activations: the backward needs what each product and norm of a token was given. In a layer: two norms and what
    # they give, 4 D; queries, keys, values and their sum, half of the FLOPs of a score and its value; of each expert
    # input, output, and within it as many as it has weights, over D. With a pipeline of P a device has 1/P of the
    # layers and P microbatches on their way (arXiv:2104.04473, section 2.2): as many again
    kept = sum(layer.layers * (4 * d_model + layer.flops) for layer in sizes.cached or ()) + sizes.shared / d_model
    kept += sum(group.layers * group.top_k * (2 * d_model + group.expert / d_model) for group in sizes.groups)
    return Plan(
        tokens=T,
        weights=each * (experts + dense),
        gradients=GRADIENT_BYTES * (experts + dense) if is_trained else 0.0,
        optimizer=OPTIMIZER_BYTES * shared if is_trained else 0.0,
        activations=2 * at_once * kept if is_trained else 0.0,
        cache=cache,
        bytes_inside=float(sent[0]),
        bytes_between=float(sent[1]),
        compute=float(compute),
        inside=float(seconds[0]),
        between=float(seconds[1]),
        hidden=float(min(overlap * max(seconds), compute)),
        limit=limit,
    )


def check_published() -> pd.DataFrame:
    """Set the planner beside what DeepSeek published of DeepSeek-V3: a row for each figure of published_systems.csv.
    Nothing is fitted: one `UTILISATION`, and the links' published rates, for all."""
    table = pd.read_csv(data_path("published_systems.csv")).convert_dtypes()
    layouts = table.loc[:, "machine":"weights"]
    made = [plan("DeepSeek-V3", **layout.dropna()) for _, layout in layouts.iterrows()]
    training, prefill, decoding = made
    hours = 14.8e12 / training.tokens * training.seconds / 3600  # of devices, for 14.8 T tokens
    table["planned"] = [hours, prefill.tokens / prefill.seconds, decoding.seconds]
    table["error_percent"] = 100 * (table.planned / table.published - 1)
    return table.drop(columns=layouts.columns)
