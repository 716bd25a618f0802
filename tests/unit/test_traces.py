"""Traces against loops over the routing, and information against tables whose answer is known."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lessons.analysis import (
    agreement,
    expert_shares,
    information,
    mutual_information,
    repeats,
    trace,
    trace_text,
)
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
        assert dict(zip(experts[row], weights[row])) == pytest.approx(
            served | {-1: 0.0} if -1 in experts[row] else served
        )


def test_a_token_has_as_many_experts_as_served_it(task):
    served = trace(model_of(router="expert choice", top_k=1), task, 3).filter(regex="^expert").to_numpy()
    assert (served[:, 0] < 0).any() and (served[:, 1] >= 0).any()  # none for some, two and more for others
    assert list(trace(model_of(top_k=1), task, 3).filter(regex="^expert")) == ["expert0"]


def test_only_some_layers_with_experts(task):
    assert trace(model_of(moe_layers=(1,)), task, 2)["layer"].unique().tolist() == [0]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_traced_in_eval_mode_and_put_back(training, task):
    model = model_of(router="gaussian noise").train(training)
    first, second = trace(model, task, 2), trace(model, task, 2)
    pd.testing.assert_frame_equal(first, second)  # no noise
    assert model.training is training
    assert all(weight.grad is None for weight in model.parameters())


def test_a_model_that_fails_is_put_back_too(task):
    model = model_of(max_positions=8)
    with pytest.raises(ValueError, match="at most max_positions"):
        trace(model, task, 2)
    assert model.training


def test_the_trace_of_a_text():
    model = model_of()
    table = trace_text(model, "aβ 7")
    assert table.query("layer == 1")["byte"].tolist() == encode("aβ 7").tolist()
    assert table.query("layer == 0")["byte_class"].tolist() == [
        "letter", "lead byte", "continuation byte", "space", "digit",
    ]  # fmt: skip
    assert table["domain"].unique().tolist() == ["text"]
    with torch.no_grad():
        _, routings = model.eval()(encode("aβ 7")[None])
    for layer, routing in enumerate(routings):
        mine = table[table["layer"] == layer]
        assert mine[["expert0", "expert1"]].to_numpy().tolist() == routing.topk_indices.tolist()


def test_bad_input_of_a_trace(task):
    with pytest.raises(ValueError, match="^model must have at least one layer of experts, got LanguageModel without"):
        trace(model_of(moe_layers=()), task, 2)
    with pytest.raises(ValueError, match="^task must have a held-out part, as a TextTask, got PlaneTask without one$"):
        trace(model_of(), PlaneTask("blobs"))
    with pytest.raises(ValueError, match="^num_per_domain must be a whole number of at least 1, got 0$"):
        trace(model_of(), task, 0)
    for model in (5, None):
        with pytest.raises(ValueError, match="^model must be a language model, got (int|NoneType)$"):
            trace(model, task)
    for text in ("", b"abc", None):
        with pytest.raises(ValueError, match="^text must have at least one character, got"):
            trace_text(model_of(), text)
    with pytest.raises(ValueError, match="at most max_positions"):
        trace_text(model_of(max_positions=4), "12345")


@pytest.mark.parametrize("function", [expert_shares, information, repeats, lambda table: agreement(table, table)])
def test_bad_input_of_what_reads_a_trace(function):
    with pytest.raises(ValueError, match="^trace must have at least one token, got none$"):
        function(table_of([0, 1]).iloc[:0])
    with pytest.raises(ValueError, match="^trace must be a table that `trace` or `trace_text` made, got list$"):
        function([0, 1])


@pytest.mark.parametrize(
    "function, column",
    [
        (expert_shares, "domain"),
        (lambda table: expert_shares(table, by="byte_class"), "byte_class"),
        (information, "byte"),
        (repeats, "sequence"),
        (lambda table: agreement(table, table), "position"),
    ],
)
def test_a_trace_that_lacks_a_column(function, column):
    with pytest.raises(ValueError, match=f"^trace must be a table that .* made, got one without {column}$"):
        function(table_of([0, 1]).drop(columns=column))


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


def test_shares_of_one_layer_need_no_choice():
    table = table_of([0, 2, 2, 1], domain=["a", "a", "b", "b"])
    assert expert_shares(table).to_numpy().tolist() == [[0.5, 0, 0.5], [0, 0.5, 0.5]]
    assert expert_shares(table, by="layer").to_numpy().tolist() == [[0.25, 0.25, 0.5]]


def test_bad_input_of_shares(task):
    table = trace(model_of(), task, 2)
    with pytest.raises(ValueError, match="^by must be one of 'domain', 'byte_class', 'layer', got 'topic'$"):
        expert_shares(table, by="topic")
    with pytest.raises(ValueError, match=r"^layer must be one of \[0, 1\] where by is 'domain', got None$"):
        expert_shares(table)
    with pytest.raises(ValueError, match="^layer must be one of 0, 1, got 2$"):
        expert_shares(table, layer=2)
    table.attrs.clear()
    with pytest.raises(ValueError, match=r"^trace must have E as attrs\['num_experts'\], got none: "):
        expert_shares(table, layer=0)


# --- information -------------------------------------------------------------------------------------------


def of_counts(counts) -> tuple[np.ndarray, ...]:
    """Labels that occur together as often as the entries of a table say, one array for each of its axes."""
    return tuple(
        np.repeat(index, np.ravel(counts)) for index in np.indices(np.shape(counts)).reshape(np.ndim(counts), -1)
    )


@pytest.mark.parametrize(
    "counts, bits",
    [
        ([[5, 0], [0, 5]], 1.0),
        ([[5, 5], [5, 5]], 0.0),
        ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], 2.0),
        ([[3, 0], [0, 1]], 2 - 0.75 * math.log2(3)),  # H(1/4)
        ([[1, 1], [0, 2]], 1 + (2 - 0.75 * math.log2(3)) - 1.5),  # H(a) + H(b) - H(a, b)
        ([[2, 6]], 0.0),
    ],
)
def test_information_of_a_table(counts, bits):
    assert mutual_information(*of_counts(counts), corrected=False) == pytest.approx(bits, abs=1e-12)


def test_exclusive_or_tells_only_together():
    a, b, c = of_counts([[[3, 0], [0, 3]], [[0, 3], [3, 0]]])  # c = a xor b
    assert mutual_information(a, c, corrected=False) == pytest.approx(0)
    assert mutual_information(a, c, given=b, corrected=False) == pytest.approx(1)


tables = st.lists(st.integers(0, 20), min_size=24, max_size=24).filter(lambda counts: sum(counts) > 1)


@settings(max_examples=30)
@given(tables)
def test_information_is_symmetric_bounded_and_blind_to_names(counts):
    a, b, c = of_counts(np.reshape(counts, (2, 3, 4)))
    for corrected in (True, False):
        once = mutual_information(a, b, c, corrected)
        assert once == pytest.approx(mutual_information(b, a, c, corrected))
        assert once == pytest.approx(mutual_information(-a, np.array(list("xyz"))[b], c, corrected))
    entropy = mutual_information(b, b, corrected=False)
    shares = np.bincount(b) / len(b)
    assert entropy == pytest.approx(-sum(p * math.log2(p) for p in shares if p > 0), abs=1e-12)
    assert -1e-9 < mutual_information(a, b, corrected=False) < entropy + 1e-9


@settings(max_examples=30)
@given(tables)
def test_given_a_third_it_is_the_mean_within_each_of_its_values(counts):
    a, b, c = of_counts(np.reshape(counts, (2, 3, 4)))
    within = sum((c == k).mean() * mutual_information(a[c == k], b[c == k], corrected=False) for k in np.unique(c))
    assert mutual_information(a, b, given=c, corrected=False) == pytest.approx(within, abs=1e-9)


@settings(max_examples=30)
@given(tables)
def test_the_correction_is_the_jackknife(counts):
    a, b, _ = of_counts(np.reshape(counts, (2, 3, 4)))
    a, b = a[:40], b[:40]
    plug_in, size = mutual_information(a, b, corrected=False), len(a)
    without = (
        [mutual_information(np.delete(a, i), np.delete(b, i), corrected=False) for i in range(size)]
        if size > 1
        else [0]
    )
    assert mutual_information(a, b) == pytest.approx(size * plug_in - (size - 1) * np.mean(without), abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_the_correction_takes_the_scatter_away(seed):
    rng = np.random.default_rng(seed)
    a, b, c = (rng.integers(0, size, 6000) for size in (8, 60, 6))
    scatter = (8 - 1) * (60 - 1) / (2 * 6000 * math.log(2))  # what Miller's formula expects
    assert mutual_information(a, b, corrected=False) == pytest.approx(scatter, rel=0.25)
    assert abs(mutual_information(a, b)) < 0.01 < scatter
    assert mutual_information(a, b, given=c, corrected=False) > 0.25
    assert abs(mutual_information(a, b, given=c)) < 0.07


def test_the_correction_comes_closer_to_the_truth():
    rng = np.random.default_rng(0)
    joint = rng.dirichlet(np.full(240, 0.5)).reshape(8, 30)
    truth = (joint * np.log2(joint / joint.sum(axis=1, keepdims=True) / joint.sum(axis=0))).sum()
    draws = [np.divmod(rng.choice(240, size=3000, p=joint.ravel()), 30) for _ in range(30)]
    error = [np.mean([mutual_information(a, b, corrected=c) for a, b in draws]) - truth for c in (True, False)]
    assert abs(error[0]) < 0.01 and error[1] > 0.03


@pytest.mark.parametrize("labels", [([], []), ([1, 2], [1]), ([1, 2], [1, 2], [1])])
def test_bad_labels(labels):
    with pytest.raises(ValueError, match="^labels must be as many in each argument, at least one, got"):
        mutual_information(*labels)


@pytest.mark.parametrize("labels", [("ab", "cd"), (None, None), ([1, 2], [[1], [2]])])
def test_labels_that_are_in_no_row(labels):
    with pytest.raises(ValueError, match="^labels must be in one row, got the shapes "):
        mutual_information(*labels)


def test_information_of_a_trace(task):
    table = trace(model_of(), task, 6)
    bits, control = information(table), information(table, shuffled=True)
    assert list(bits) == ["byte", "byte class", "domain", "byte | domain", "domain | byte"]
    assert bits.index.tolist() == [0, 1]
    np.testing.assert_allclose(bits["byte"] + bits["domain | byte"], bits["domain"] + bits["byte | domain"])
    for layer, mine in table.groupby("layer"):
        for column, name in {"byte": "byte", "byte class": "byte_class", "domain": "domain"}.items():
            assert bits.loc[layer, column] == mutual_information(mine["expert0"], mine[name])
    assert bits["byte"].min() > 0.3 and bits["byte class"].min() > 0.1
    assert control.abs().max().max() < 0.2 < bits["byte"].min()
    pd.testing.assert_frame_equal(control, information(table, shuffled=True, seed=0))
    assert not control.equals(information(table, shuffled=True, seed=1))


def test_an_expert_for_each_domain_and_one_for_each_byte():
    byte, domain = [65, 66, 65, 66] * 50, ["a", "a", "b", "b"] * 50
    row = information(table_of([0, 0, 1, 1] * 50, domain, byte)).loc[0]
    assert row.to_dict() == pytest.approx(
        {"byte": 0, "byte class": 0, "domain": 1, "byte | domain": 0, "domain | byte": 1}, abs=0.01
    )
    row = information(table_of([0, 1, 0, 1] * 50, domain, byte)).loc[0]
    assert row.to_dict() == pytest.approx(
        {"byte": 1, "byte class": 0, "domain": 0, "byte | domain": 1, "domain | byte": 0}, abs=0.01
    )


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


@pytest.mark.parametrize("seed", range(3))
def test_repeats_where_only_the_domain_decides(seed):
    """Tokens that draw their expert from the shares of their domain repeat as often as chance within it says."""
    rng = np.random.default_rng(seed)
    domain = np.repeat(["a", "b"], 3200)
    expert = np.where(domain == "a", rng.choice(4, 6400, p=[0.7, 0.1, 0.1, 0.1]), rng.choice(4, 6400))
    row = repeats(table_of(expert, domain, sequence=np.arange(6400) // 64)).loc[0]
    assert row["repeated"] == pytest.approx(row["chance_in_domain"], abs=0.02)
    assert row["repeated"] > row["chance"] + 0.03


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


def test_agreement_of_two_models(task):
    one, other = (trace(model_of(seed), task, 4) for seed in (0, 1))
    table = agreement(one, other)
    assert table.index.tolist() == [0, 1] and (table["shuffled"].abs() < 0.02).all()
    assert (table["agreement"] > 0.02).all()  # untrained routers, too, both see the byte
    np.testing.assert_allclose(agreement(one, one)["agreement"], 1)
    np.testing.assert_allclose(agreement(one, other)["agreement"], agreement(other, one)["agreement"])


def test_agreement_wants_the_same_tokens(task):
    one = trace(model_of(), task, 2)
    for other in (trace(model_of(), task, 3), trace_text(model_of(), "abc"), one[one["layer"] == 0]):
        with pytest.raises(ValueError, match="^trace_a and trace_b must be of the same tokens and layers, got"):
            agreement(one, other)
