"""A whole language model: a training step and the writing of tokens, beside dense twins and beside Hugging Face's."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_lessons.analysis.timing import Ratio, rounds_within, take_turns
from moe_lessons.bench.hugging_face import hugging_face_models
from moe_lessons.bench.sizes import Reading, Writing
from moe_lessons.nn import LanguageModel, dense_twin, load_balancing_loss, seeded

PROMPT = 1  # token: a longer prompt would be read at once, by nearly all experts
AUX_COEF = 0.01


def time_model(plan: Reading | Writing, device: torch.device, seconds: float) -> dict:
    """The time of each rival over that of our mixture of experts, in turns: above 1, ours is faster.

    Rivals: the dense twins ('active' alone where a model is trained), and Hugging Face's Mixtral with the same weights
    in each of its implementations, where transformers is installed.
    """
    with seeded(0):
        model = LanguageModel(plan.config).to(device)
        ids = torch.randint(plan.config.vocab_size, shape_of(plan)).to(device)
    twins = ("active",) if isinstance(plan, Reading) else ("active", "total")
    models = {"MoE": model} | {f"dense, equal {match}": dense_twin(model, match).to(device) for match in twins}
    if plan.hugging_face:
        models |= hugging_face_models(model, decoding=isinstance(plan, Writing))
    make = training_step if isinstance(plan, Reading) else partial(writer, new_tokens=plan.new_tokens)
    calls = {name: make(each, ids) for name, each in models.items()}
    for call in calls.values():
        call()
    functions = list(calls.values())
    times = take_turns(functions, rounds_within(seconds * len(functions), functions))
    ratios = {name: asdict(Ratio.of(one, times[0])) for name, one in zip(list(calls)[1:], times[1:])}
    return {"plan": str(plan), **asdict(plan), "over_moe": ratios}


def shape_of(plan: Reading | Writing) -> tuple[int, int]:
    return (plan.num_sequences, plan.num_tokens + 1) if isinstance(plan, Reading) else (1, PROMPT)


def training_step(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    """Forward, backward and AdamW, with the auxiliary loss where there is one."""
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].flatten()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-6, fused=True)  # so small that routing stays

    def step() -> None:
        if isinstance(model, LanguageModel):
            logits, routings = model(x)
            balance = sum(load_balancing_loss(routing) for routing in routings)
        else:
            out = model(input_ids=x)
            logits, balance = out.logits, out.aux_loss
        loss = F.cross_entropy(logits.flatten(0, 1), y) + AUX_COEF * balance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def writer(model: nn.Module, ids: Tensor, new_tokens: int) -> Callable[[], Tensor]:
    """Continues the prompt greedily with a KV cache: (1, T + N)."""
    if isinstance(model, LanguageModel):
        return lambda: model.generate(ids, new_tokens, temperature=0)
    model.eval().config.output_router_logits = False
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "pad_token_id": 0}
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **length)
