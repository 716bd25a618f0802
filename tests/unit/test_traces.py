"""Traces against loops over the routing, and information against tables whose answer is known."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_lessons.analysis import agreement, expert_shares, information, mutual_information, repeats, trace, trace_text
from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.nn.transformer import ROUTERS
from moe_lessons.tasks import BYTE_CLASSES, PlaneTask, TextTask, byte_class, encode

SMALL = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 8, "num_experts": 4}


def model_of(seed: int = 0, **options) -> LanguageModel:
    with seeded(seed):
        return LanguageModel(TransformerConfig(**SMALL | options))


@pytest.fixture(scope="module")
def task() -> TextTask:
    return TextTask(["english", "json"], context=32)


def table_of(expert, domain="text", byte=0, sequence=0, layer=0) -> pd.DataFrame:
    """A trace by hand, one expert for each token."""
    table = pd.DataFrame({"sequence": sequence, "byte": byte, "domain": domain, "layer": layer, "expert0": expert})
    table["position"] = table.groupby("sequence").cumcount()
    table["byte_class"] = [BYTE_CLASSES[i] for i in byte_class(torch.tensor(table["byte"].to_numpy()))]
    table.attrs["num_experts"] = max(expert) + 1
    return table


# --- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity_factor", [None, 0.5])
@pytest.mark.parametrize("router", ROUTERS)
def test_a_trace_says_what_the_routing_says(router, capacity_factor, task):
    model = model_of(router=router, capacity_factor=capacity_factor)
    table = trace(model, task, num_per_domain=3)
    x, _, domain = task.held_out(3)
    with torch.no_grad():
        _, routings = model.eval()(x)
    assert len(table) == 2 * x.numel() and table.attrs["num_experts"] == 4
    assert table["domain"].cat.categories.tolist() == ["english", "json"]
    assert table["byte_class"].cat.categories.tolist() == list(BYTE_CLASSES)
    experts, weights = (table.filter(regex=f"^{name}").to_numpy() for name in ("expert", "weight"))
    assert ((experts < 0) == (weights == 0)).all() and (np.diff(weights, axis=1) <= 0).all()
    for row in range(0, len(table), 7):
        at = table.iloc[row]
        sequence, position, routing = at["sequence"], at["position"], routings[at["layer"]]
        assert at["byte"] == x[sequence, position] and at["domain"] == task.domains[domain[sequence]]
        assert at["byte_class"] == BYTE_CLASSES[byte_class(x[sequence, position])]
        mine = (routing.token_idx == sequence * 32 + position).nonzero().flatten().tolist()
        served = {routing.expert_idx[a].item(): routing.weight[a].item() for a in mine}
        assert {e: w for e, w in zip(experts[row], weights[row]) if e >= 0} == pytest.approx(served)


def test_a_token_has_as_many_experts_as_served_it(task):
    served = trace(model_of(router="expert choice", top_k=1), task, 3).filter(regex="^expert").to_numpy()
    assert (served[:, 0] < 0).any() and (served[:, 1] >= 0).any()  # none for some, two and more for others
    assert list(trace(model_of(top_k=1), task, 3).filter(regex="^expert")) == ["expert0"]


def test_the_model_is_traced_in_eval_mode_and_put_back(task):
    model = model_of(router="gaussian noise", max_positions=32).train()
    pd.testing.assert_frame_equal(trace(model, task, 2), trace(model, task, 2))  # no noise
    with pytest.raises(ValueError, match="at most max_positions"):
        trace_text(model, 33 * "a")
    assert model.training and all(weight.grad is None for weight in model.parameters())


def test_the_trace_of_a_text():
    table = trace_text(model_of(), "aβ 7")
    assert table.query("layer == 1")["byte"].tolist() == encode("aβ 7").tolist()
    kinds = ["letter", "lead byte", "continuation byte", "space", "digit"]
    assert table.query("layer == 0")["byte_class"].tolist() == kinds
    assert table["domain"].unique().tolist() == ["text"]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda task: trace(model_of(moe_layers=()), task), "^model must have at least one layer of experts, got"),
        (lambda task: trace(5, task), "^model must be a language model, got int$"),
        (lambda task: trace(model_of(), PlaneTask()), "^task must have a held-out part, as a TextTask, got PlaneTask"),
        (lambda task: trace_text(model_of(), ""), "^text must have at least one character, got ''$"),
    ],
)
def test_bad_input_of_a_trace(call, message, task):
    with pytest.raises(ValueError, match=message):
        call(task)


READERS = {
    "domain": expert_shares,
    "byte_class": lambda table: expert_shares(table, by="byte_class"),
    "byte": information,
    "sequence": repeats,
    "position": lambda table: agreement(table, table),
}


@pytest.mark.parametrize("column", READERS)
def test_bad_input_of_what_reads_a_trace(column):
    function, table = READERS[column], table_of([0, 1])
    with pytest.raises(ValueError, match="^trace must have at least one token, got none$"):
        function(table.iloc[:0])
    with pytest.raises(ValueError, match="^trace must be a table that `trace` or `trace_text` made, got list without"):
        function([0, 1])
    with pytest.raises(ValueError, match=f"^trace must be a table that .* made, got DataFrame without {column}$"):
        function(table.drop(columns=column))


# --- shares ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["domain", "byte_class", "layer"])
def test_shares_against_a_count(by, task):
    table = trace(model_of(router="expert choice"), task, 3)
    layer = None if by == "layer" else 1
    shares = expert_shares(table, by, layer)
    assert list(shares) == ["E0", "E1", "E2", "E3"]
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    rows = table if layer is None else table[table["layer"] == layer]
    for group, mine in rows.groupby(by, observed=True):
        experts = mine.filter(regex="^expert").to_numpy()
        for expert in range(4):
            assert shares.loc[group, f"E{expert}"] == pytest.approx((experts == expert).sum() / (experts >= 0).sum())
    assert len(shares) == rows[by].nunique()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"by": "topic"}, "^by must be one of 'domain', 'byte_class', 'layer', got 'topic'$"),
        ({}, r"^layer must be one of \[0, 1\] where by is 'domain', got None$"),
        ({"layer": 2}, "^layer must be one of 0, 1, got 2$"),
    ],
)
def test_bad_input_of_shares(arguments, message):
    table = table_of([0, 1], layer=[0, 1])
    with pytest.raises(ValueError, match=message):
        expert_shares(table, **arguments)
    table.attrs.clear()
    with pytest.raises(ValueError, match=r"^trace must have E as attrs\['num_experts'\], got none: "):
        expert_shares(table, layer=0)


# --- information -------------------------------------------------------------------------------------------


def of_counts(counts) -> tuple[np.ndarray, ...]:
    """Labels that occur together as often as the entries of a table say, one array for each of its axes."""
    return tuple(np.repeat(axis.ravel(), np.ravel(counts)) for axis in np.indices(np.shape(counts)))


tables = st.lists(st.integers(0, 20), min_size=24, max_size=24).filter(lambda counts: sum(counts) > 1)


@given(tables)
def test_information_is_that_of_the_formula_symmetric_and_blind_to_names(counts):
    counts = np.reshape(counts, (2, 3, 4))
    a, b, c = of_counts(counts)
    both = counts.sum(axis=2) / counts.sum()
    of_a, of_b = both.sum(axis=1), both.sum(axis=0)
    parts = [p * math.log2(p / of_a[i] / of_b[j]) for (i, j), p in np.ndenumerate(both) if p > 0]
    assert mutual_information(a, b, corrected=False) == pytest.approx(sum(parts), abs=1e-12)
    entropy = -sum(p * math.log2(p) for p in of_b if p > 0)
    assert mutual_information(b, b, corrected=False) == pytest.approx(entropy, abs=1e-12)
    for corrected in (True, False):
        once = mutual_information(a, b, c, corrected)
        assert once == pytest.approx(mutual_information(b, a, c, corrected))
        assert once == pytest.approx(mutual_information(-a, np.array(list("xyz"))[b], c, corrected))


@given(tables)
def test_the_correction_is_the_jackknife(counts):
    a, b, _ = (labels[::12] for labels in of_counts(np.reshape(counts, (2, 3, 4))))  # of all cells
    size = len(a)
    left = [(np.delete(a, i), np.delete(b, i)) for i in range(size)] if size > 1 else [([0], [0])]
    without = np.mean([mutual_information(*labels, corrected=False) for labels in left])
    expected = size * mutual_information(a, b, corrected=False) - (size - 1) * without
    assert mutual_information(a, b) == pytest.approx(expected, abs=1e-8)


def test_the_correction_takes_the_scatter_away():
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(0, size, 6000) for size in (8, 60, 6))
    scatter = (8 - 1) * (60 - 1) / (2 * 6000 * math.log(2))  # what Miller's formula expects
    assert mutual_information(a, b, corrected=False) == pytest.approx(scatter, rel=0.25)
    assert abs(mutual_information(a, b)) < 0.01 < scatter
    assert abs(mutual_information(a, b, given=c)) < 0.07


def test_information_of_a_trace(task):
    table = trace(model_of(), task, 6)
    bits, control = information(table), information(table, shuffled=True)
    assert list(bits) == ["byte", "byte class", "domain", "byte | domain", "domain | byte"]
    assert bits.index.tolist() == [0, 1]
    np.testing.assert_allclose(bits["byte"] + bits["domain | byte"], bits["domain"] + bits["byte | domain"])
    for layer, mine in table.groupby("layer"):
        for column, name in {"byte": "byte", "byte class": "byte_class", "domain": "domain"}.items():
            assert bits.loc[layer, column] == mutual_information(mine["expert0"], mine[name])
    assert control.abs().max().max() < 0.2 < bits["byte"].min()


def test_tokens_without_an_expert_are_left_out():
    expert, domain = np.array([0, 0, 1, 1] * 20), np.array(["a", "a", "b", "b"] * 20)
    whole = table_of([*expert, *[-1] * 40], [*domain, *["a"] * 40])
    pd.testing.assert_frame_equal(information(whole), information(table_of(expert, domain)))
    assert repeats(table_of([0, -1, 0, 0, -1, 1])).loc[0, "repeated"] == 1  # one pair only
    assert agreement(whole, whole).loc[0, "agreement"] == pytest.approx(1)
    assert expert_shares(whole).loc["a"].tolist() == [1, 0]


# --- repeats -----------------------------------------------------------------------------------------------


def test_repeats_by_hand():
    expert = [0, 0, 1, 1, 1, 1, 1, 0]
    table = table_of(expert, domain=["a"] * 4 + ["b"] * 4, sequence=[0] * 4 + [1] * 4)
    row = repeats(table).loc[0]
    assert row["repeated"] == 4 / 6  # 3 and 4 are no neighbours: another sequence begins
    assert row["chance"] == pytest.approx((3 / 8) ** 2 + (5 / 8) ** 2)
    assert row["chance_in_domain"] == pytest.approx((0.5 + (0.75**2 + 0.25**2)) / 2)
    pd.testing.assert_frame_equal(repeats(table.sample(frac=1, random_state=0)), repeats(table))  # in any order


# --- agreement ---------------------------------------------------------------------------------------------


def test_agreement_does_not_ask_for_numbers():
    rng = np.random.default_rng(0)
    expert = rng.integers(0, 4, 4000)
    row = agreement(table_of(expert), table_of((expert + 1) % 4)).loc[0]
    assert row["agreement"] == pytest.approx(1, abs=1e-3) and abs(row["shuffled"]) < 0.01
    merged = agreement(table_of(expert), table_of(expert // 2)).loc[0, "agreement"]
    assert merged == pytest.approx(2 / 3, abs=0.01)  # 1 bit of 2 and 1
    assert abs(agreement(table_of(expert), table_of(rng.integers(0, 4, 4000))).loc[0, "agreement"]) < 0.01


def test_where_both_have_collapsed_there_is_nothing_to_agree_on():
    collapsed, split = table_of([0] * 40), table_of([0, 1] * 20)
    assert agreement(collapsed, collapsed).loc[0].isna().all()
    assert agreement(collapsed, split).loc[0].tolist() == pytest.approx([0, 0])


def test_agreement_wants_the_same_tokens(task):
    one = trace(model_of(), task, 2)
    for other in (trace(model_of(), task, 3), trace_text(model_of(), "abc"), one[one["layer"] == 0]):
        with pytest.raises(ValueError, match="^trace_a and trace_b must be of the same tokens and layers, got"):
            agreement(one, other)
