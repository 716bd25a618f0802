"""The lens over every family of transformers with experts: it tells what is carried out, and changes nothing.
Of the 76 in 5.24 it reads 74: experts of doge are rows of an embedding, and vitpose_backbone has no router."""

import warnings

import pytest
import torch

from moe_lessons.hub import Lens
from moe_lessons.nn import seeded

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
hf_families = pytest.importorskip("hf_families")
FAMILIES = hf_families.families()
NOT_READ = {"doge", "vitpose_backbone"}


@pytest.fixture(autouse=True, scope="module")
def quiet():
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    transformers.logging.set_verbosity(before)


@pytest.mark.parametrize("family", sorted(NOT_READ & set(FAMILIES)))
def test_a_family_that_is_not_read_says_so(family):
    config, kind = hf_families.small(family, FAMILIES[family][0])
    with pytest.raises(ValueError, match="model must have experts that are called with the choices of a router"):
        Lens(kind(config))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NOT_READ])
def test_a_family_is_read_exactly_and_left_as_it_is(family):
    model, inputs = hf_families.runnable(family)
    if family == "nllb_moe":
        for module in model.modules():  # each expert has room for a quarter of the tokens
            module.moe_eval_capacity_token_fraction = 0.25
    with torch.no_grad():
        plain = output(model, inputs)
        with Lens(model) as lens:
            seen = output(model, inputs)
    assert torch.equal(plain, seen)
    assert lens.layers and len(lens.calls) == 1
    for name, routing in lens.routings.items():
        num_tokens = 10 if "decoder" in name.split(".") else 16
        torch.testing.assert_close(routing.router_probs.sum(dim=1), torch.ones(num_tokens))
        assert routing.num_tokens == num_tokens and routing.router_logits.shape == routing.router_probs.shape
    if family == "nllb_moe":  # 5.24 runs experts 0 and 1 only, whatever the router has chosen: an error of its own
        check_nllb(model, inputs, lens)
    else:
        changed = rows_that_change(model, inputs, lens)
        assert any(rows for layer in changed.values() for rows in layer.values())
        for name, routing in lens.routings.items():
            for expert, rows in changed[name].items():
                named = set(routing.token_idx[routing.expert_idx == expert].tolist())
                assert rows == named, f"{name}, expert {expert}"


def output(model, inputs) -> torch.Tensor:
    with seeded(1):
        return model(**inputs)[0]


def rows_that_change(model, inputs, lens) -> dict[str, dict[int, set[int]]]:
    """For each layer and expert: the tokens whose result changes where the weights of that expert do."""
    calls, handles, owners = {}, [], {}
    for name in lens.layers:
        path, _, turn = name.partition(" (turn ")
        block = owner = model.get_submodule(path)
        if type(block).__name__ == "JetMoeMoA":  # of experts within attention, the attention has a row for each token
            owner = model.get_submodule(path.rpartition(".")[0])
        owners[name] = owner, int(turn[:-1] or 1) - 1, block
        if owner not in calls:
            note = lambda owner, *inputs: calls[owner].append(inputs)  # noqa: E731
            calls[owner], hook = [], owner.register_forward_pre_hook(note, with_kwargs=True)
            handles.append(hook)
    with torch.no_grad():
        output(model, inputs)
        for handle in handles:
            handle.remove()
        return {name: changes(owner, *calls[owner][turn], block) for name, (owner, turn, block) in owners.items()}


def changes(owner, args: tuple, kwargs: dict, block) -> dict[int, set[int]]:
    experts, found = getattr(block, "experts", block), {}
    before = rows(owner, args, kwargs)
    for expert in range(8):
        parts = list(weights_of(experts, expert))
        kept = [part.clone() for part in parts]
        for part in parts:
            part.add_(torch.randn_like(part))
        found[expert] = set((rows(owner, args, kwargs) != before).any(dim=1).nonzero().flatten().tolist())
        for part, old in zip(parts, kept):
            part.copy_(old)
    return found


def rows(owner, args: tuple, kwargs: dict) -> torch.Tensor:
    """(T, D) what a block makes of its tokens. Without a cache, which would grow."""
    with seeded(1):
        out = owner(*args, **kwargs | {key: None for key in kwargs if key in ("cache", "past_key_values")})
    out = out[0] if isinstance(out, tuple) else out
    hidden = args[0] if args else kwargs["hidden_states"]
    return out.reshape(-1, hidden.shape[-1])


def weights_of(experts, expert: int):
    for name, parameter in experts.named_parameters():
        if name.startswith("expert_"):
            if name.startswith(f"expert_{expert}."):
                yield parameter
        elif parameter.ndim == 3 and len(parameter) >= 8:
            yield parameter[expert]
        elif name.startswith("mlp."):  # of DBRX, all in one
            yield parameter.view(8, -1, parameter.shape[-1])[expert]


def check_nllb(model, inputs, lens) -> None:
    """By the logits that the model returns: an expert serves as many as it has room for."""
    with torch.no_grad():
        out = model(**inputs, output_router_logits=True)
    theirs = [*out.encoder_router_logits, *out.decoder_router_logits]
    for logits, routing in zip(theirs, lens.routings.values(), strict=True):
        wanted = logits.topk(2).indices.flatten().bincount(minlength=8)
        assert torch.equal(logits, routing.router_logits) and torch.equal(routing.demand_per_expert, wanted)
        assert torch.equal(routing.tokens_per_expert, wanted.clamp(max=-(-len(logits) // 4))) and routing.dropped
