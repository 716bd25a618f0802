"""Who serves which token is drawn as it is, in both themes, and what cannot be drawn is refused."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from moe_lessons.analysis import expert_shares, trace_text
from moe_lessons.analysis.traces import trace as trace_held_out
from moe_lessons.nn import LanguageModel, TopKRouter, TransformerConfig, seeded
from moe_lessons.plots import (
    PANELS,
    THEMES,
    colored_text,
    colored_trace,
    expert_color,
    expert_shares_heatmap,
    figure,
    token_path,
)
from moe_lessons.plots.panels.domains import shares_panel
from moe_lessons.plots.panels.text import LINES, WIDTH, characters, first_lines
from moe_lessons.plots.theme import contrast, ink_on, stripe_on
from moe_lessons.tasks import TextTask
from moe_lessons.training import Run

TEXT = 'if a<b & c: "τηε"\n  x'
EXPERTS = np.arange(len(TEXT.encode())) % 8


def shares(rows=("english", "code"), num_experts=4) -> pd.DataFrame:
    values = np.random.default_rng(0).dirichlet([0.5] * num_experts, len(rows))
    return pd.DataFrame(values, index=list(rows), columns=[f"E{e}" for e in range(num_experts)])


@pytest.fixture(scope="module")
def trace():
    with seeded(0):
        model = LanguageModel(TransformerConfig(d_model=16, num_layers=3, d_ff=8, num_experts=4, top_k=2))
    return trace_text(model, TEXT)


@pytest.fixture(scope="module")
def view() -> SimpleNamespace:
    """What the routing laboratory gives its panels."""
    with seeded(0):
        model = LanguageModel(TransformerConfig(d_model=16, num_layers=2, d_ff=8, num_experts=4))
    run = Run(model, TextTask(["english", "greek"], context=48))
    return SimpleNamespace(main_run=run, layer=1, traced=trace_held_out(model, run.task, 12))


# --- readable colours ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "one, other, ratio", [("#000000", "#ffffff", 21), ("#777777", "#ffffff", 4.48), ("red", "red", 1)]
)
def test_contrast_is_that_of_the_guidelines(one, other, ratio):
    assert contrast(one, other) == contrast(other, one) == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize("expert", range(8))
def test_text_on_an_expert_and_on_its_stripes_can_be_read(expert):
    color = expert_color(expert)
    assert contrast(ink_on(color), color) >= 4.5
    assert contrast(ink_on(color), stripe_on(color)) >= 4.5


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_words_and_lines_can_be_seen_on_the_page(theme):
    assert all(contrast(color, theme.background) >= 4.5 for color in (theme.foreground, theme.muted))
    assert all(contrast(color, theme.background) >= 2.8 for color in theme.lines)


# --- shares ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("num_experts", [1, 2, 8, 16])
def test_the_map_shows_the_shares_in_percent(theme, num_experts):
    table = shares(num_experts=num_experts)
    (cells,) = shares_panel(table).marks
    np.testing.assert_allclose(cells.z, table, rtol=1e-6)
    assert cells.even == 1 / num_experts and cells.most == min(1, 4 / num_experts)
    ax = expert_shares_heatmap(table, "Some title", theme=theme)
    assert ax.get_title(loc="left") == "Some title"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["english", "code"]
    assert [text.get_text() for text in ax.texts] == [f"{100 * share:.0f}" for share in table.to_numpy().flat]
    image = ax.images[0].get_array()
    for text, color in zip(ax.texts, image.reshape(-1, 3), strict=True):
        assert contrast(text.get_color(), to_hex(color)) >= 4.5


def test_small_cells_have_no_numbers():
    assert not expert_shares_heatmap(shares(num_experts=32), ax=Figure(figsize=(4, 3)).subplots()).texts


def test_a_group_without_tokens_is_empty():
    ax = expert_shares_heatmap(pd.DataFrame([[0.25, 0.75], [np.nan, np.nan]], index=["a", "b"]))
    assert [text.get_text() for text in ax.texts] == ["25", "75", "", ""]
    assert np.allclose(ax.images[0].get_array()[1], 1)


def test_a_long_name_is_shortened_and_all_stays_in_the_picture():
    ax = expert_shares_heatmap(shares(("x" * 40, "$a_b$"), 2))
    ax.figure.draw_without_rendering()
    assert ax.get_tightbbox().x0 > -5 and ax.get_tightbbox().x1 < ax.figure.bbox.x1 + 5
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x" * 21 + "…", "$a_b$"]


@pytest.mark.parametrize(
    "bad, message",
    [
        (pd.DataFrame(), r"shares must be a DataFrame .*, got shape \(0, 0\)"),
        ([[1.0]], "got list"),
        (pd.DataFrame([[0.5, 0.6]]), r"sum to 1 in each row, got the sums \[1.1"),
        (pd.DataFrame([[1.5, -0.5]]), "at least 0"),
    ],
)
def test_what_are_no_shares(bad, message):
    with pytest.raises(ValueError, match=message):
        expert_shares_heatmap(bad)


def test_the_shares_of_a_trace(trace):
    ax = expert_shares_heatmap(expert_shares(trace, by="layer"))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["layer 0", "layer 1", "layer 2"]


def test_domains_and_classes_show_the_layer_of_the_view(view):
    for name, by in (("domains", "domain"), ("classes", "byte_class")):
        panel = PANELS[name](view)
        wanted = expert_shares(view.traced, by, 1)
        assert [text for _, text in panel.y.ticks] == wanted.index.tolist() and panel.title.endswith("layer 1")
        np.testing.assert_allclose(panel.marks[0].z, wanted, rtol=1e-5)


# --- text ------------------------------------------------------------------------------------------------


def test_text_has_the_beginning_of_a_line_of_each_domain_with_its_experts(view):
    panel = PANELS["text"](view)
    (text,) = panel.marks
    assert text.names == ("english", "greek") and panel.width == 6 and panel.title.endswith("layer 1")
    data = "".join(text.texts).encode()
    assert sum(text.sizes) == len(text.experts) == len(data.replace("�".encode(), b"?"))
    table = view.traced[view.traced["layer"] == 1]
    start = 0
    for passage, name in zip(text.texts, text.names):
        rows = table[table["domain"] == name]
        found = bytes(rows["byte"].tolist())
        sizes = [len(char.encode()) if char != "�" else 1 for char in passage]
        experts, place = text.experts[start : start + sum(sizes)], found.find(passage.rstrip("�").encode())
        assert place >= 0 and (place % 48 == 0 or found[place - 1 : place] == b"\n")
        assert experts.tolist() == rows["expert0"].tolist()[place : place + len(experts)]
        start += sum(sizes)


@pytest.mark.parametrize("text, seen", [("short", "short"), ("a\n" * 9, "a\n" * 3), ("x" * 200, "x" * 108)])
def test_about_three_lines_are_shown(text, seen):
    assert text.encode()[: first_lines(text.encode())].decode() == seen and LINES * WIDTH == 108


# --- characters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "plain", "αβ€𝄞x", TEXT])
def test_text_is_cut_into_its_characters(text):
    found = list(characters(text.encode()))
    assert [char for char, _, _ in found] == list(text)
    assert [size for _, _, size in found] == [len(char.encode()) for char in text]


@pytest.mark.parametrize("data", [b"\xb1a", b"a\xce", b"\xff\xfe", b"\xe2\x82", bytes(range(256))])
def test_bytes_that_are_no_text_come_one_by_one(data):
    found = list(characters(data))
    assert [start for _, start, _ in found] == np.cumsum([0, *(size for _, _, size in found)])[:-1].tolist()
    assert sum(size for _, _, size in found) == len(data)
    assert all(char == "�" or char.encode() == data[start : start + size] for char, start, size in found)


def test_a_text_is_a_picture_with_a_name_of_all_its_bytes():
    short, long = (figure([colored_text("ab\n" * n, [0, 1, 2] * n, title="A title")]) for n in (2, 8))
    assert long.get_figheight() > short.get_figheight()
    data, metadata = short._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"} and data["text/plain"] == "Figure: A title"
    numbers = [text.get_text() for text in long.axes[0].texts if text.get_text().isdecimal()]
    assert numbers == ["0", "1", "2"] * 8


def test_a_tip_says_the_experts_of_a_byte_and_their_weights():
    (mark,) = colored_text("abα", [[2, 0], [1, -1], [-1, -1], [0, 1]], [[0.75, 0.25], [1, 0], [0, 0], [0.5, 0.5]]).marks
    assert mark.says == ["E2 0.75, E0 0.25", "E1 1.00", "no expert", "E0 0.50, E1 0.50"]
    assert colored_text("a", [3]).marks[0].says == ["E3"]


def test_a_routing_can_be_given_as_it_comes():
    with seeded(0):
        routing = TopKRouter(4, 4, 2)(torch.randn(2, 4))
    assert routing.topk_weights.requires_grad
    made = colored_text("ab", routing.topk_indices, routing.topk_weights)
    numbers = [text.get_text() for text in figure([made]).axes[0].texts if text.get_text().isdecimal()]
    assert numbers == [str(e) for e in routing.topk_indices[:, 0].tolist()]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("", []), "text must be a str or bytes with at least one character, got ''"),
        ((7, [1]), "text must be a str or bytes"),
        (("aα", [0, 1]), r"experts must have one row for each of the 3 bytes, got shape \(2,\)"),
        (("ab", np.zeros((2, 0), int)), r"experts must have one row for each of the 2 bytes, got shape \(2, 0\)"),
        (("ab", [0, 8], None, 8), r"experts must be whole numbers from -1 to 7, got \[0, 8\]"),
        (("ab", [0, -2]), "experts must be whole numbers from -1, got"),
        (("ab", [0.5, 1.0]), "experts must be whole numbers"),
        (("ab", [0, 1], [[0.5, 0.5]]), r"weights must have the shape \(2,\) of the experts, got \(1, 2\)"),
        (("ab", [0, 1], None, 0), "num_experts must be a whole number of at least 1, got 0"),
    ],
)
def test_text_that_cannot_be_coloured(arguments, message):
    with pytest.raises(ValueError, match=message):
        colored_text(*arguments)


# --- traces ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", range(3))
def test_a_trace_is_coloured_by_the_layer(trace, layer):
    rows = trace[trace["layer"] == layer]
    for given in (trace, trace.sample(frac=1, random_state=0)):
        made = colored_trace(given, layer)
        ax = figure([made]).axes[0]
        texts = [text.get_text() for text in ax.texts]
        assert [text for text in texts if text.isdecimal()] == rows["expert0"].astype(str).tolist()
        assert "".join(t for t in texts if not t.isdecimal()) == TEXT.replace("\n", "↵").replace(" ", "")
        assert ax.get_title(loc="left").endswith(f"in layer {layer}")


def test_traces_that_cannot_be_drawn(trace):
    with pytest.raises(ValueError, match=r"layer must be one of \[0, 1, 2\], got None"):
        colored_trace(trace)
    with pytest.raises(ValueError, match="layer must be one of 0, 1, 2, got 3"):
        colored_trace(trace, 3)
    for draw in (lambda bad: colored_trace(bad, 0), lambda bad: token_path(bad, 0)):
        with pytest.raises(ValueError, match="trace must be of one text, got several"):
            draw(pd.concat([trace, trace.assign(sequence=1)]))
        with pytest.raises(ValueError, match="trace must be of one text, got no token"):
            draw(trace[:0])
        with pytest.raises(ValueError, match=r"got \['expert0'\] missing"):
            draw(trace.drop(columns="expert0"))
        with pytest.raises(ValueError, match="got list missing"):
            draw([1])


def test_a_path_needs_every_layer_and_a_number_of_neighbours(trace):
    with pytest.raises(ValueError, match="^trace must have the same positions in each layer, got fewer in some$"):
        token_path(trace.iloc[:-1], 2)
    for neighbours in (-3, "a", 1.5):
        with pytest.raises(ValueError, match="^neighbours must be a whole number"):
            token_path(trace, 2, neighbours)
    assert not token_path(trace, 2, neighbours=0).collections[0].get_segments()


@pytest.mark.parametrize("theme", THEMES)
def test_the_path_of_a_token_has_its_experts_and_weights(trace, theme):
    ax = token_path(trace, 5, theme=theme)
    rows = trace[trace["position"] == 5].sort_values("layer")
    chosen = {(x, e) for x, pair in enumerate(rows[["expert0", "expert1"]].to_numpy().tolist()) for e in pair}
    dots = [collection for collection in ax.collections if isinstance(collection, PathCollection)]
    dots = {tuple(dot.get_offsets()[0].astype(int).tolist()): dot for dot in dots}
    assert set(dots) == chosen
    for (x, expert), dot in dots.items():
        row = rows.iloc[x]
        weight = row["weight0"] if row["expert0"] == expert else row["weight1"]
        assert dot.get_sizes()[0] == pytest.approx(40 + 260 * weight)
        assert to_hex(dot.get_facecolor()[0]) == expert_color(expert).lower()
        assert f"{weight:.2f}" in {text.get_text() for text in ax.texts if text.xy == (x, expert)}
    pale, lines = ax.collections[:2]
    assert len(pale.get_segments()) == 6 and len(lines.get_segments()) == 2 * 4  # 3 layers, 2 × 2 lines between two
    weights = rows[["weight0", "weight1"]].to_numpy()  # (layers, K)
    products = [np.outer(here, after).ravel() for here, after in zip(weights, weights[1:])]
    np.testing.assert_allclose(lines.get_linewidths(), 8 * np.concatenate(products))


def test_the_path_says_where_the_token_stands(trace):
    ax = token_path(trace, TEXT.encode().index("η".encode()) + 1)
    assert "byte 2 of 'η'" in ax.get_title(loc="left")
    rest, here = (text.get_text() for text in ax.texts[:2])
    assert here.strip() == "η" and rest[here.index("η")] == " "
    assert rest.replace(" ", "") == TEXT.replace("η", "").replace("\n", "↵").replace(" ", "")


def test_a_token_that_no_expert_serves_somewhere(trace):
    dropped = trace.copy()
    here = (dropped["position"] == 5) & (dropped["layer"] == 1)
    dropped.loc[here, ["expert0", "expert1"]] = -1
    assert len(token_path(dropped, 5).collections[1].get_segments()) == 0


@pytest.mark.parametrize("position", [-1, 1000, None])
def test_a_position_that_is_not_there(trace, position):
    with pytest.raises(ValueError, match=f"position must be from 0 to {len(TEXT.encode()) - 1}, got {position}"):
        token_path(trace, position)


@pytest.mark.parametrize("theme", THEMES)
def test_every_plot_draws_into_given_axes(trace, theme):
    axes = Figure().subplots(2)
    assert expert_shares_heatmap(shares(), "", axes[0], theme) is axes[0]
    assert token_path(trace, 0, ax=axes[1], theme=theme) is axes[1]
    with pytest.raises(ValueError, match="theme must be one of"):
        token_path(trace, 0, theme="pink")
