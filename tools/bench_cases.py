"""The cases of the benchmark. A case makes functions, which are then timed in turns."""

import copy
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_lessons.nn import (
    DISPATCH,
    LanguageModel,
    MoE,
    TransformerConfig,
    dense_baseline,
    dense_name,
    load_balancing_loss,
    seeded,
    with_baselines,
)

PASSES = FORWARD, TRAINING = "forward", "forward + backward"
AUTO, OURS, FLOP_MATCHED = "MoE, auto", "MoE", dense_name(1)
HF_WAYS = ("eager", "grouped_mm")  # of transformers, to run the experts
HF_WAYS_FEW_TOKENS = (*HF_WAYS, "batched_mm")  # which copies the weights of every assignment
HF_NAMES = {  # of parts of a model: ours -> Mixtral's
    "model.head.": "lm_head.",
    ".embed.": ".embed_tokens.",
    ".attention_norm.": ".input_layernorm.",
    ".ffn_norm.": ".post_attention_layernorm.",
    ".attention.out_proj.": ".self_attn.o_proj.",
    ".attention.": ".self_attn.",
    ".ffn.router.": ".mlp.gate.",
    ".ffn.": ".mlp.",
}

Calls = dict[str, Callable[[], object]]
LayerSizes = namedtuple("LayerSizes", "E K T D F")  # the sizes of an MoE layer, and how many tokens it gets
AS_PLAYGROUND = LayerSizes(E=8, K=2, T=256, D=16, F=4)
COARSE = LayerSizes(E=8, K=2, T=2048, D=256, F=512)  # few large experts, as in Mixtral
FINE = LayerSizes(E=64, K=8, T=2048, D=256, F=128)  # many small ones, as in OLMoE
SPARSE = LayerSizes(E=64, K=2, T=2048, D=128, F=128)
SMALL_MODEL = TransformerConfig(d_model=64, d_ff=64)
WIDE_MODEL = TransformerConfig(d_model=128, d_ff=128)
LARGE_MODEL = TransformerConfig(d_model=512, d_ff=1024, num_layers=4, num_heads=8)  # its experts fit into no cache


@dataclass(frozen=True)
class Case:
    """Functions by name, made when it is their turn. The time of each is divided by that of `baseline`."""

    name: str
    baseline: str
    make: Callable[[], Calls]
    threads: int | None = None  # None: as many as `--threads` says


def all_cases() -> list[Case]:
    """Return the cases in the order of the table."""
    layers = [AS_PLAYGROUND, COARSE, FINE, SPARSE]
    growing = [COARSE._replace(E=E) for E in (8, 16, 32, 64)]
    blocks = [LayerSizes(E, 2, T, 256, 128) for E in (8, 64) for T in (4, 64, 512, 4096)]
    models = {training: [SMALL_MODEL, WIDE_MODEL]}
    models[decoding] = [SMALL_MODEL, LARGE_MODEL, replace(LARGE_MODEL, num_experts=16)]
    cases = []
    for which in PASSES:
        for layer in layers:
            threads = 1 if layer == AS_PLAYGROUND else None
            cases.append(Case(f"{which}, {layer}", FLOP_MATCHED, partial(each_way, layer, which), threads))
        cases.append(Case(f"{which}, more experts, {growing[0]}", "E=8", partial(more_experts, growing, which)))
        cases += [Case(f"{which}, {layer}", AUTO, partial(beside_hf, layer, which)) for layer in blocks]
    for make, configs in models.items():
        for c in configs:
            sizes = f"L={c.num_layers}, D={c.d_model}, F={c.d_ff}, E={c.num_experts}, K={c.top_k}"
            cases.append(Case(f"{make.__name__}, LanguageModel({sizes})", OURS, partial(make, c)))
    return cases


def make_layer(layer: LayerSizes) -> tuple[MoE, Tensor]:
    """Make a layer and its tokens (T, D), the same on every call; the router sends about as many to each expert."""
    with seeded(0):
        return MoE(layer.D, layer.F, layer.E, layer.K), torch.randn(layer.T, layer.D)


def each_way(layer: LayerSizes, which: str) -> Calls:
    """Run the layer with 'auto' and in each way of `DISPATCH`, beside the FLOP-matched dense FFN."""
    moe, x = make_layer(layer)
    calls = {FLOP_MATCHED: one_pass(dense_baseline(moe, "flops"), x, which), AUTO: one_pass(moe, x, which)}
    for way in DISPATCH:
        same = copy.copy(moe)  # with the very weights
        same.dispatch = way
        calls[f"MoE, {way}"] = one_pass(same, x, which)
    return calls


def more_experts(layers: list[LayerSizes], which: str) -> Calls:
    """Run layers of which only the number of experts grows, with 'auto'."""
    return {f"E={layer.E}": one_pass(*make_layer(layer), which) for layer in layers}


def beside_hf(layer: LayerSizes, which: str) -> Calls:
    """Run the layer with 'auto', and Hugging Face's block with the same weights."""
    sizes = {"d_model": layer.D, "d_ff": layer.F, "num_experts": layer.E, "top_k": layer.K}
    models, theirs = make_models(TransformerConfig(num_layers=1, **sizes))
    x = make_layer(layer)[1][None]  # (1, T, D)
    calls = {AUTO: one_pass(models[OURS].layers[0].ffn, x, which)}
    ways = HF_WAYS_FEW_TOKENS if layer.T <= 16 else HF_WAYS
    return calls | in_each_way(theirs, lambda: one_pass(theirs.model.layers[0].mlp, x, which), ways)


def one_pass(layer: nn.Module, x: Tensor, which: str) -> Callable[[], tuple[Tensor, ...]]:
    """Make a function that runs the layer once: for y, without gradients, or for the gradients of x and all weights."""

    def forward() -> Tensor:
        out = layer(x)
        return out[0] if isinstance(out, tuple) else out  # ours returns its routing too

    if which == FORWARD:
        return torch.no_grad()(lambda: (forward(),))
    wanted = [x.requires_grad_(), *layer.parameters()]
    upstream = torch.ones_like(x)
    return lambda: torch.autograd.grad(forward(), wanted, upstream)


def make_models(config: TransformerConfig, **more) -> tuple[dict[str, LanguageModel], nn.Module]:
    """Make our model and its baselines, by name, and Hugging Face's with equal weights."""
    with seeded(0):
        moe = LanguageModel(config)
    theirs = hf_model(moe, **more)
    return with_baselines(moe), theirs


def training(config: TransformerConfig, num_sequences: int = 32, num_tokens: int = 64) -> Calls:
    """Make training steps on B sequences of T tokens: the mixture, its dense baselines, and Hugging Face's model."""
    models, theirs = make_models(config, output_router_logits=True)
    with seeded(0):
        ids = torch.randint(config.vocab_size, (num_sequences, num_tokens + 1))
    calls = {name: training_step(model, ids) for name, model in models.items()}
    return calls | in_each_way(theirs, lambda: training_step(theirs, ids))


def training_step(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    """Make a step: forward, backward and AdamW, with the auxiliary loss where there is one."""
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].flatten()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-6, fused=True)  # so small that routing stays

    def step() -> None:
        if isinstance(model, LanguageModel):
            logits, routings = model(x)
            balance = sum(load_balancing_loss(routing) for routing in routings)
        else:
            out = model(input_ids=x)
            logits, balance = out.logits, out.aux_loss
        loss = F.cross_entropy(logits.flatten(0, 1), y) + 0.01 * balance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def decoding(config: TransformerConfig) -> Calls:
    """Write tokens, one by one behind a prompt of one, with a KV cache: the same models as in `training`.

    They are sampled, and the head has weights of its own: else an untrained model writes one token again and again,
    and finds its experts in the processor's cache.
    """
    models, theirs = make_models(replace(config, tied_embedding=False))
    ids, new = torch.zeros(1, 1, dtype=torch.long), 48 if config.d_model < 256 else 12
    calls = {name: partial(model.generate, ids, new) for name, model in models.items()}
    how = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": True, "top_k": 0, "pad_token_id": 0}
    how["attention_mask"] = torch.ones_like(ids)
    return calls | in_each_way(theirs, lambda: partial(theirs.eval().generate, ids, **how), HF_WAYS_FEW_TOKENS)


def hf_model(ours: LanguageModel, **more) -> nn.Module:
    """Make a `MixtralForCausalLM` with the sizes and weights of ours. more: other fields of `MixtralConfig`."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = ours.config
    config = MixtralConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.d_model,
        intermediate_size=sizes.d_ff,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        num_local_experts=sizes.num_experts,
        num_experts_per_tok=sizes.top_k,
        max_position_embeddings=sizes.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        rms_norm_eps=sizes.norm_eps,
        tie_word_embeddings=sizes.tied_embedding,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        **more,
    )
    theirs = MixtralForCausalLM(config)
    theirs.load_state_dict(hf_weights(ours))
    return theirs


def hf_weights(ours: LanguageModel) -> dict[str, Tensor]:
    """Return the weights of ours by the names that Mixtral has for them, which keeps queries, keys and values apart."""
    found, num_rows = {}, [n * ours.config.head_dim for n in (ours.config.num_heads, *[ours.config.num_kv_heads] * 2)]
    for name, weight in ours.state_dict().items():
        name = f"model.{name}"
        for part, their_part in HF_NAMES.items():
            name = name.replace(part, their_part)
        if "qkv_proj" in name:
            found |= {name.replace("qkv", one): rows for one, rows in zip("qkv", weight.split(num_rows))}
        else:
            found[name] = weight
    return found


def in_each_way(model: nn.Module, make: Callable[[], Callable], ways: tuple[str, ...] = HF_WAYS) -> Calls:
    """Run what `make` makes of a Hugging Face `model` in each of these implementations of its experts."""
    call = make()

    def run(way: str) -> object:
        model.set_experts_implementation(way)
        return call()

    return {f"HF {way}": partial(run, way) for way in ways}
