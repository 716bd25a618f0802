"""A trace of the routing as a table, its routing maps, and the information of an expert about its tokens."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_lessons.nn import Routing, evaluating, is_moe, muted
from moe_lessons.support.data import data_path
from moe_lessons.support.errors import check_choice, check_seed, check_whole, shown
from moe_lessons.tasks import BYTE_CLASSES, byte_class, encode
from moe_lessons.training.run import check_output

# what an expert may tell of its tokens, and, after the bar, what is known of them before: columns of `_tokens`
ASKED = {
    "token": ("byte",),
    "domain": ("domain",),
    "domain | token": ("domain", "byte"),
    "previous token | token": ("previous", "byte"),
    "domain | both tokens": ("domain", "pair"),
}
REAL_MODELS = {"olmoe": "OLMoE-1B-7B", "mistral": "Mixtral 8x7B"}  # names in real_routing.csv, and here


def trace(model: nn.Module, task, num_per_domain: int = 32) -> pd.DataFrame:
    """Make a row for each token of `task.held_out(num_per_domain)` and each MoE layer of the model, in eval mode.

    sequence, position: where the token stands. byte, byte_class, domain: what it is. layer: the MoE layer, from 0.
    expert0, expert1, …: the experts that served it, the one with the largest weight first, and -1 where it has no more
    of them. weight0, weight1, …: their weights, 0 where there is none. num_experts: E of the layer."""
    if not hasattr(task, "held_out"):
        raise ValueError(f"task must have a held-out part, as a TextTask, got {type(task).__name__} without one")
    ids, _, domain = task.held_out(num_per_domain)
    return _trace(model, ids, np.asarray(domain), task.domains)


def trace_text(model: nn.Module, text: str) -> pd.DataFrame:
    """Make the same of one text, a single sequence whose domain is called 'text'."""
    if not isinstance(text, str) or not text:
        raise ValueError(f"text must have at least one character, got {text!r}")
    return _trace(model, encode(text)[None], np.zeros(1, dtype=int), ["text"])


@torch.no_grad()
def _trace(model: nn.Module, ids: Tensor, domain: np.ndarray, domains: Iterable[str]) -> pd.DataFrame:
    """Trace ids (B, T), with the domain of each sequence (B,), an index into `domains`."""
    with evaluating(model):
        _, routings = check_output(model(ids.to(next(model.parameters()).device)))
    if not routings:
        raise ValueError(f"model must have at least one layer of experts, got {type(model).__name__} without one")
    return trace_table(_tokens(ids, domain, domains), routings)


def _tokens(ids: Tensor, domain: np.ndarray, domains: Iterable[str]) -> pd.DataFrame:
    """Say of each token of ids (B, T) where it stands and what it is."""
    tokens = pd.MultiIndex.from_product(map(range, ids.shape), names=["sequence", "position"]).to_frame(index=False)
    tokens["byte"] = ids.flatten().numpy()
    tokens["byte_class"] = pd.Categorical.from_codes(byte_class(ids).flatten().numpy(), BYTE_CLASSES)
    tokens["domain"] = pd.Categorical.from_codes(np.repeat(domain, ids.shape[1]), list(domains))
    return tokens


@torch.no_grad()
def muted_losses(model: nn.Module, task, layer: int, num_per_domain: int = 32) -> pd.DataFrame:
    """Mute each expert of one MoE layer in turn: by how many nats the loss at each token of `task.held_out
    (num_per_domain)` rises. A row for each token, with the columns of `trace` that say what it is, and E0, E1, …"""
    ids, targets, domain = task.held_out(num_per_domain)
    moes = [module for module in model.modules() if is_moe(module)]
    moe = moes[check_whole("layer", layer, 0, len(moes) - 1, f"between 0 and {len(moes) - 1}")]
    device = next(model.parameters()).device

    def losses(model: nn.Module) -> Tensor:
        with evaluating(model):
            logits, _ = check_output(model(ids.to(device)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten().to(device), reduction="none").cpu()

    whole = losses(model)
    rises = {f"E{e}": (losses(muted(model, moe, e)) - whole).numpy() for e in range(moe.num_experts)}
    return _tokens(ids, np.asarray(domain), task.domains).assign(**rises)


def trace_table(tokens: pd.DataFrame, routings: Sequence[Routing]) -> pd.DataFrame:
    """Make a row for each layer and token, as in `trace`: what is known of the tokens, and who served them."""
    parts = []
    for layer, routing in enumerate(routings):
        columns = {"token": routing.token_idx, "expert": routing.expert_idx, "weight": routing.weight.float()}
        values = {name: column.cpu().numpy() for name, column in columns.items()}
        parts.append(pd.DataFrame(values).assign(layer=layer))
    served = pd.concat(parts).sort_values("weight", ascending=False)
    served["rank"] = served.groupby(["layer", "token"]).cumcount()
    served = served.set_index(["layer", "token", "rank"])
    places = pd.MultiIndex.from_product([range(len(routings)), tokens.index], names=["layer", "token"])
    columns = [
        served[name].unstack(fill_value=nothing).reindex(places, fill_value=nothing).add_prefix(name)
        for name, nothing in {"expert": -1, "weight": 0.0}.items()
    ]
    table = tokens.join(pd.concat(columns, axis="columns").reset_index("layer"), how="right").reset_index(drop=True)
    return table.assign(num_experts=np.array([routing.num_experts for routing in routings])[table["layer"]])


def real_routing() -> dict[str, dict[int, pd.DataFrame]]:
    """Read real_routing.csv: model -> layer -> how many assignments of each domain (a row) each expert (a column) has.
    Counted by the authors of OLMoE (arXiv:2409.02060): some 200,000 tokens of each domain, K assignments each."""
    found: dict[str, dict[int, pd.DataFrame]] = {}
    for (model, layer), rows in pd.read_csv(data_path("real_routing.csv")).groupby(["model", "layer"]):
        table = rows.pivot(index="domain", columns="expert", values="assignments")
        found.setdefault(REAL_MODELS[model], {})[layer] = table
    return dict(sorted(found.items(), reverse=True))


def routing_counts(trace: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """Count the assignments of a trace as `real_routing` has them: layer -> domains (rows) and experts (columns)."""
    counts = {}
    columns = range(trace["num_experts"].max())
    for layer, assignments in _assignments(trace, "layer", "domain").groupby("layer"):
        counts[layer] = pd.crosstab(assignments["domain"], assignments["expert"]).reindex(columns=columns, fill_value=0)
    return counts


def told_bits(trace: pd.DataFrame) -> pd.DataFrame:
    """Say how many bits an expert tells in each layer (a row): `mutual_information` with the token, here its byte, and
    the domain; and with the previous token and the domain where the token, or both, are known. The first token of a
    sequence does not count."""
    previous = trace.groupby(["layer", "sequence"])["byte"].shift()
    trace = trace.assign(previous=previous, pair=256 * previous + trace["byte"]).dropna(subset="previous")
    rows = {}
    for layer, assignments in _assignments(trace, "layer", "byte", "previous", "pair", "domain").groupby("layer"):
        rows[layer] = [
            mutual_information(assignments[about], assignments["expert"], *(assignments[name] for name in known))
            for about, *known in ASKED.values()
        ]
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(ASKED))


def real_told_bits() -> dict[str, pd.DataFrame]:
    """Read the same of two real models, without previous tokens: model -> a row a layer, from real_tokens.csv."""
    names = {name: name.replace(" | ", "_given_") for name in list(ASKED)[:3]}
    table = pd.read_csv(data_path("real_tokens.csv")).set_index(["model", "layer"])[list(names.values())]
    return {name: table.set_axis(list(names), axis=1).loc[key] for key, name in REAL_MODELS.items()}


def _experts(trace: pd.DataFrame) -> list[str]:
    """Name the columns of the choices, K of them."""
    return list(trace.filter(regex=r"^expert\d"))


def _assignments(trace: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Give a row for each assignment: these columns of its token, and its expert."""
    return trace.melt(list(columns), _experts(trace), value_name="expert").query("expert >= 0")


def expert_shares(trace: pd.DataFrame, by: str = "domain", layer: int | None = None) -> pd.DataFrame:
    """Say how the assignments of each group of tokens lie on the experts: a row for each group, summing to 1. by:
    'domain', 'byte_class' or 'layer'. layer: which one to look at, where there are several; they are never pooled."""
    check_choice("by", by, ("domain", "byte_class", "layer"))
    layers = trace["layer"].unique().tolist()
    if layer is not None:
        trace = trace[trace["layer"] == check_choice("layer", layer, layers)]
    elif by != "layer" and len(layers) > 1:
        raise ValueError(f"layer must be one of {layers} where by is {by!r}, got None")
    served = _assignments(trace, by)
    shares = pd.crosstab(served[by], served["expert"], normalize="index")
    shares = shares.reindex(columns=range(trace["num_experts"].max()), fill_value=0.0).add_prefix("E")
    return shares.set_axis(pd.Index(shares.index, dtype=object), axis="index")


def mutual_information(a: Sequence, b: Sequence | None = None, given: Sequence | None = None) -> float:
    """Estimate I(a; b), or I(a; b | given), in bits: a, b and given are labels, one for each observation. Or `a` alone
    is a table of counts (A, B), or (A, B, G) where the third axis is given.

    I(a; b | g) = H(a, g) + H(b, g) - H(a, b, g) - H(g), with the entropies H of the shares that were counted, corrected
    for their scatter; what is left may be slightly below 0.

    >>> round(mutual_information([0, 1] * 500, [0, 1] * 500), 2)
    1.0
    >>> round(mutual_information([[500, 0], [0, 500]]), 2)
    1.0
    """
    counts = _check_counts(a) if b is None else _counted(a, b) if given is None else _counted(a, b, given)
    of_a, of_b, of_both, of_third = (_entropy(counts.sum(axis)) for axis in (1, 0, (), (0, 1)))
    return float(of_a + of_b - of_both - (of_third if counts.ndim == 3 else 0))


def shuffled_counts(counts: Sequence, seed: int = 0) -> np.ndarray:
    """Deal the columns of a table of counts (A, B) out to its rows at random: the control of `mutual_information`, with
    the sums of each row and each column as they were."""
    counts = _check_counts(counts, (2,))
    rng = np.random.default_rng(check_seed(seed))
    left = counts.sum(axis=0)
    rows = []
    for size in counts.sum(axis=1):
        rows.append(rng.multivariate_hypergeometric(left, size, method="marginals"))
        left = left - rows[-1]
    return np.array(rows)


def _check_counts(counts: Sequence, dimensions: tuple[int, ...] = (2, 3)) -> np.ndarray:
    """Return counts as whole numbers (A, B), or (A, B, G), or raise ValueError."""
    given = np.asarray(counts)
    is_read = given.dtype.kind in "biuf" and given.ndim in dimensions
    if not is_read or not given.any() or (given < 0).any() or (given % 1 != 0).any():
        axes = " or ".join(map(str, dimensions))
        wanted = f"whole numbers of at least 0, not all 0, with {axes} axes"
        raise ValueError(f"counts must be {wanted}, got {given.dtype} of shape {given.shape}: {shown(counts)}")
    return given.astype(np.int64)


def _counted(*labels: Sequence) -> np.ndarray:
    """Count how often labels, one sequence for each axis, occur together."""
    codes, names = zip(*(pd.factorize(np.asarray(each), use_na_sentinel=False) for each in labels))
    shape = tuple(map(len, names))
    return np.bincount(np.ravel_multi_index(codes, shape), minlength=math.prod(shape)).reshape(shape)


def _entropy(counts: np.ndarray) -> float:
    """Estimate the entropy in bits of what was counted so often; that of one kind is 0."""
    # H = log N - Σ (n / N) log n; the jackknife (S. Zahl, Jackknifing an index of diversity, 1977) has g(n) for log n
    n = np.append(counts.sum(), counts[counts > 0])  # N, and each n
    g = n * np.log2(n) - (n - 1) * np.log2(np.maximum(n - 1, 1))
    return g[0] - (n[1:] / n[0] * g[1:]).sum()
