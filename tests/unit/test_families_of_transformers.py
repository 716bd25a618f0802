"""Families of transformers: the lens tells what is carried out and changes nothing, or refuses; `cost` counts what is
there."""

import re
import warnings

import pytest
import torch

from moe_lessons.hub import Lens
from moe_lessons.hub.published import PublishedCount, count_config
from moe_lessons.nn import seeded
from moe_lessons.support.files import read_config

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
hf_families = pytest.importorskip("hf_families")

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def quiet():
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    transformers.logging.set_verbosity(before)


@pytest.mark.parametrize("family", hf_families.NOT_READ)
def test_a_family_that_is_not_read_says_so(family):
    config, kind = hf_families.small(family)
    with pytest.raises(ValueError, match="^model must have experts that are called with "):
        Lens(kind(config))


@pytest.mark.parametrize("family", hf_families.READ)
def test_a_family_is_read_exactly_and_left_as_it_is(family):
    model, inputs = hf_families.runnable(family)
    with torch.no_grad():
        plain = output(model, inputs)
        with Lens(model) as lens:
            seen = output(model, inputs)
    assert torch.equal(plain, seen)
    changed = rows_that_change(model, inputs, lens)
    assert any(rows for own in changed.values() for rows in own.values())
    for name, routing in lens.routings.items():
        torch.testing.assert_close(routing.router_probs.sum(dim=1), torch.ones(16))
        assert routing.router_logits.shape == routing.router_probs.shape
        for expert, rows in changed[name].items():
            served = routing.token_idx[routing.expert_idx == expert]
            assert rows == set(served.tolist()), f"{name}, expert {expert}"


def output(model, inputs) -> torch.Tensor:
    with seeded(1):
        return model(**inputs)[0]


def rows_that_change(model, inputs, lens) -> dict[str, dict[int, set[int]]]:
    """For each layer and expert: the tokens whose result changes where the weights of that expert do."""
    calls, handles = {}, []
    for name in lens.routings:
        note = lambda owner, *inputs, name=name: calls.update({name: inputs})  # noqa: E731
        handles.append(model.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True))
    with torch.no_grad():
        output(model, inputs)
        for handle in handles:
            handle.remove()
        return {name: changes(model.get_submodule(name), *own) for name, own in calls.items()}


def changes(owner, args: tuple, kwargs: dict) -> dict[int, set[int]]:
    experts, found = owner.experts, {}
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
        if parameter.ndim == 3 and len(parameter) >= 8:
            yield parameter[expert]
        elif name.startswith("mlp."):  # of DBRX, all in one
            yield parameter.view(8, -1, parameter.shape[-1])[expert]


UNLIKE = {"doge": 2 / 16, "switch_transformers": 1 / 8, "zaya": 1 / 8}  # else 2 of 8 work
ROUTED = {"doge": r"_embed\.", "jetmoe": r"\.(in|out)put_linear\."}  # names of the experts' weights


def active(family: str, model: torch.nn.Module) -> int:
    """Parameters that a token uses, by their names: all but those of the experts that it does not visit."""
    named = dict(model.named_parameters())
    pattern = ROUTED.get(family, r"(?<!shared_)experts\.")
    routed = {n: p for n, p in named.items() if re.search(pattern, n) and not re.search(r"\.router\.|norm", n)}
    idle = sum(p.numel() for p in routed.values()) * (1 - UNLIKE.get(family, 2 / 8))
    if family == "longcat_flash":  # of 8 + 256 rows, the last 256 are of experts that do nothing
        idle = sum(p.numel() * (1 - 2 / p.shape[0]) for p in routed.values())
    return sum(p.numel() for p in named.values()) - round(idle)


def counted_from(config, name: str, folder) -> PublishedCount:
    (folder / "config.json").write_text(config.to_json_string())
    return count_config(read_config(folder) | {"architectures": [name]})


@pytest.mark.parametrize("family", hf_families.READ | hf_families.NOT_READ)
def test_a_family_is_counted_to_the_last_parameter(family, tmp_path):
    """Against the class itself, and against its parameters' names."""
    config, kind = hf_families.small(family)
    with torch.device("meta"):
        model = kind(config)
    counted = counted_from(config, kind.__name__, tmp_path)
    assert counted.class_name == type(model).__name__
    assert {group.num_experts for group in counted.sizes.groups} == {16 if family == "doge" else 8}
    assert counted.sizes.total == sum(p.numel() for p in model.parameters())
    assert counted.sizes.active == active(family, model) < counted.sizes.total


def numbers_in(part) -> int:
    """How many numbers a cache of transformers holds, wherever they are in it."""
    if isinstance(part, torch.Tensor):
        return part.numel() if part.is_floating_point() else 0
    if isinstance(part, list | tuple):
        return sum(map(numbers_in, part))
    inner = part if isinstance(part, dict) else vars(part) if "transformers." in type(part).__module__ else {}
    return sum(map(numbers_in, inner.values()))


@pytest.mark.parametrize("family", hf_families.CLASSES)
def test_a_cache_is_counted_as_the_running_model_fills_it_or_is_unknown(family, tmp_path):
    config, kind = hf_families.small(family)
    counted = counted_from(config, kind.__name__, tmp_path)
    if counted.sizes.cached is None or config.is_encoder_decoder:
        return
    model, kept = hf_families.runnable(family)[0], []
    for length in (6, 12):  # less than the windows of the small models
        with torch.no_grad():
            out = model(input_ids=torch.randint(3, 100, (1, length)), use_cache=True)
        kept.append(numbers_in(out.get("past_key_values", out.get("cache_params"))))
    assert (kept[1] - kept[0]) / 6 == counted.sizes.cache(1)
