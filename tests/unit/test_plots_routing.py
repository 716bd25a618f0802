"""Who serves which token is drawn as it is, readable in both themes, and HTML says the same as the picture."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from moe_lessons.analysis import expert_shares, trace_text
from moe_lessons.nn import LanguageModel, TopKRouter, TransformerConfig, seeded
from moe_lessons.plots import (
    THEMES,
    ColoredTextPanel,
    LiveFigure,
    SharesMap,
    colored_text,
    colored_trace,
    expert_color,
    expert_shares_heatmap,
    token_path,
)
from moe_lessons.plots.colored_text import BOX, LINE, REST, characters, stripe_on, wrap
from moe_lessons.plots.theme import contrast, ink_on

TEXT = 'if a<b & c: "τηε"\n  x'
EXPERTS = np.arange(len(TEXT.encode())) % 8
LABEL_ROOM = 5  # pixels that a label may differ on another machine


def shares(rows=("english", "code"), num_experts=4) -> pd.DataFrame:
    values = np.random.default_rng(0).dirichlet([0.5] * num_experts, len(rows))
    return pd.DataFrame(values, index=list(rows), columns=[f"E{e}" for e in range(num_experts)])


@pytest.fixture(scope="module")
def trace():
    with seeded(0):
        model = LanguageModel(TransformerConfig(d_model=16, num_layers=3, d_ff=8, num_experts=4, top_k=2))
    return trace_text(model, TEXT)


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


def test_the_style_sheet_has_these_pairs():
    rules = re.findall(
        r"\.e(\d+) \{ background: (.*?); color: (.*?); \}", colored_text("a", [0], num_experts=32).to_html()
    )
    assert [int(expert) for expert, _, _ in rules] == list(range(32))
    for expert, background, color in rules:
        backgrounds = re.findall("#[0-9A-Fa-f]{6}", background)
        assert backgrounds[-1] == expert_color(int(expert))
        assert all(contrast(each, color) >= 4.5 for each in backgrounds)
    assert len({(background, color) for _, background, color in rules}) == 32


# --- shares ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("num_experts", [1, 2, 8, 16])
def test_the_heatmap_shows_the_shares(theme, num_experts):
    table = shares(num_experts=num_experts)
    ax = expert_shares_heatmap(table, "Some title", theme=theme)
    np.testing.assert_array_equal(ax.images[0].get_array(), table)
    assert ax.images[0].get_cmap().name == "cividis" and ax.get_title(loc="left") == "Some title"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["english", "code"]
    assert [text.get_text() for text in ax.texts] == [f"{100 * share:.0f}" for share in table.to_numpy().flat]
    chips = [patch.get_facecolor()[:3] for patch in ax.patches]
    assert chips == [to_rgb(expert_color(expert)) for expert in range(num_experts)]


def test_the_numbers_can_be_read_on_every_share():
    table = pd.DataFrame([[share, 1 - share] for share in np.linspace(0, 1, 101)])
    panel = SharesMap(Figure(figsize=(4, 40)).subplots(), row_names=[""] * 101, num_experts=2)
    panel.update(table)
    for share, texts in zip(table.to_numpy(), panel.numbers, strict=True):
        for value, text in zip(share, texts, strict=True):
            assert contrast(text.get_color(), to_hex(panel.image.cmap(panel.image.norm(value)))) >= 4.5


@pytest.mark.parametrize("num_experts", [2, 8, 16])
def test_the_even_share_is_marked_on_the_colour_bar(num_experts):
    bar = expert_shares_heatmap(shares(num_experts=num_experts)).child_axes[0]
    assert {line.get_ydata()[0] for line in bar.lines} == {1 / num_experts}
    named = dict(zip(bar.get_yticks(), (label.get_text() for label in bar.get_yticklabels())))
    assert named[1 / num_experts] == f"{100 / num_experts:.3g} % even"


def test_small_cells_have_no_numbers():
    assert not expert_shares_heatmap(shares(num_experts=32), ax=Figure(figsize=(4, 3)).subplots()).texts


def test_a_group_without_tokens_is_empty():
    panel = SharesMap(Figure().subplots(), row_names=("a", "b"), num_experts=2)
    panel.update([[0.25, 0.75], [np.nan, np.nan]])
    assert panel.image.get_array().mask.tolist() == [[False, False], [True, True]]
    assert [[text.get_text() for text in row] for row in panel.numbers] == [["25", "75"], ["", ""]]


@pytest.mark.parametrize("theme", THEMES)
def test_the_live_map_is_redrawn_as_new_and_keeps_its_labels_in_the_picture(theme):
    names = ("letter", "continuation byte")

    def draw(*tables):
        figure = LiveFigure([lambda ax, t: SharesMap(ax, t, names, 8)], 1, THEMES[theme], width=330)
        for table in tables:
            figure.panels[0].update(table)
            figure.draw(True)
        return figure

    first, second = shares(names, 8), shares(names, 8)[::-1]
    figure, new = draw(first, second), draw(second)
    assert np.array_equal(figure.pixels(), new.pixels()) and not np.array_equal(draw(first).pixels(), new.pixels())
    box = figure.panels[0].ax.get_tightbbox()
    assert box.x0 > -LABEL_ROOM and box.x1 < 330 + LABEL_ROOM


@pytest.mark.parametrize(
    "bad, message",
    [
        (pd.DataFrame(), r"shares must be a DataFrame .*, got shape \(0, 0\)"),
        ([[1.0]], "got list"),
        (pd.DataFrame([[0.5, 0.6]]), r"sum to 1 in each row, got the sums \[1.1\]"),
        (pd.DataFrame([[1.5, -0.5]]), "at least 0"),
    ],
)
def test_what_are_no_shares(bad, message):
    with pytest.raises(ValueError, match=message):
        expert_shares_heatmap(bad)


def test_values_of_another_shape():
    panel = SharesMap(Figure().subplots(), row_names=("a", "b"), num_experts=2)
    with pytest.raises(ValueError, match=r"values must have the shape \(2, 2\), got \(2, 3\)"):
        panel.update(np.full((2, 3), 1 / 3))


@pytest.mark.parametrize("num_experts", [1, 2])
def test_a_map_of_few_experts_has_room_for_its_title(num_experts):
    ax = expert_shares_heatmap(shares(num_experts=num_experts))
    ax.figure.draw_without_rendering()
    assert ax.get_tightbbox().x1 < ax.figure.bbox.x1 + LABEL_ROOM


def test_the_shares_of_a_trace(trace):
    ax = expert_shares_heatmap(expert_shares(trace, by="layer"))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["layer 0", "layer 1", "layer 2"]
    assert ax.images[0].get_array().shape == (3, 4)


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


def test_lines_end_at_a_break_and_at_the_width():
    places = [(char, x, line) for char, _, _, x, line in wrap("ab\nα c".encode(), 2)]
    assert places == [("a", 0, 0), ("b", 1, 0), ("\n", 0, 1), ("α", 0, 2), (" ", 0, 3), ("c", 1, 3)]


# --- coloured text: HTML ---------------------------------------------------------------------------------


class Spans(HTMLParser):
    """The text of the bytes, and the attributes of each of their spans."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.spans, self.stack = "", [], []
        self.feed(page)
        assert not self.stack  # every tag is closed

    def handle_starttag(self, tag, attributes):
        self.stack.append(dict(attributes).get("class", tag))
        if tag == "span" and "moe-bytes" in self.stack:
            self.spans.append(dict(attributes))

    def handle_endtag(self, tag):
        self.stack.pop()

    def handle_data(self, data):
        self.text += data if "moe-bytes" in self.stack else ""


def test_html_has_every_character_once():
    assert Spans(colored_text(TEXT, EXPERTS).to_html()).text == TEXT.replace("\n", "↵\n")


def test_html_has_a_span_of_the_right_colour_for_every_byte():
    experts = EXPERTS.copy()
    experts[3] = -1
    spans = Spans(colored_text(TEXT, experts).to_html()).spans
    found = [int(span["class"].split()[0][1:]) if "class" in span else -1 for span in spans]
    assert found == experts.tolist() and all(span.get("data-e", "-1") == str(e) for span, e in zip(spans, experts))


def test_markup_in_a_text_or_a_title_stays_text():
    page = colored_text("<script>&", [0] * 9, title="<b>&").to_html()
    assert Spans(page).text == "<script>&" and "<b>" not in page
    assert all(f">{sign}</span>" in page for sign in ("&lt;", "&gt;", "&amp;"))


def test_tooltips_say_experts_and_weights():
    experts, weights = [[3, 5], [1, 0], [2, -1], [-1, -1]], [[0.62, 0.38], [0.9, 0.1], [1, 0], [0, 0]]
    spans = Spans(colored_text("aα\x00", experts, weights).to_html()).spans
    assert [span["title"] for span in spans] == [
        "E3 0.62, E5 0.38",
        "E1 0.90, E0 0.10; byte 2: E2 1.00",
        "byte 2: E2 1.00",
        "no expert",
    ]
    assert Spans(colored_text("a", [[3, 5]]).to_html()).spans[0]["title"] == "E3, E5"


def test_a_routing_can_be_given_as_it_comes():
    with seeded(0):
        routing = TopKRouter(4, 4, 2)(torch.randn(2, 4))
    assert routing.topk_weights.requires_grad
    text = colored_text("ab", routing.topk_indices, routing.topk_weights)
    np.testing.assert_array_equal(text.weights, routing.topk_weights.tolist())


def test_the_legend_names_every_expert():
    page = colored_text("a", [0], num_experts=5).to_html()
    assert re.findall(r">(E\d+)<", page) == ["E0", "E1", "E2", "E3", "E4"]


# --- coloured text: the picture --------------------------------------------------------------------------


def test_a_static_page_gets_a_picture_and_no_html(monkeypatch):
    text = colored_text(TEXT, EXPERTS, title="A title")
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")
    data, metadata = text._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"} and data["text/plain"] == "Figure: A title"
    assert data["image/png"].startswith(b"\x89PNG") and metadata["image/png"]["alt"] == "A title"
    monkeypatch.setenv("MOE_LESSONS_STATIC", "0")
    data, _ = text._repr_mimebundle_()
    assert set(data) == {"text/html", "text/plain"} and data["text/plain"] == "Figure: A title"


@pytest.mark.parametrize("theme", THEMES)
def test_the_picture_has_a_box_of_the_right_colour_for_every_byte(theme):
    experts = EXPERTS.copy()
    experts[3] = -1
    panel = ColoredTextPanel(Figure().subplots(), THEMES[theme], 8, width=6, lines=5)
    panel.update(TEXT, experts)
    found = [to_hex(color) for color in panel.boxes.get_facecolors()]
    assert found == [expert_color(e).lower() for e in experts if e >= 0]
    boxes = np.array([path.get_extents().extents for path in panel.boxes.get_paths()])
    width, height = panel.ax.get_xlim()[1], panel.ax.get_ylim()[0]
    assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    for i, (left, top, right, bottom) in enumerate(boxes):
        others = np.delete(boxes, i, axis=0)
        beside = (others[:, 2] <= left) | (others[:, 0] >= right) | (others[:, 3] <= top) | (others[:, 1] >= bottom)
        assert beside.all()


def test_letters_stand_in_their_boxes():
    panel, gap = ColoredTextPanel(Figure().subplots(), num_experts=8), LINE - BOX
    for char in "MWg|@ÅΩ(_":
        panel.update(char, [1] * len(char.encode()))
        letters, boxes = (path.get_extents() for path in (panel.inks["#000000"].get_path(), panel.boxes.get_paths()[0]))
        assert boxes.x0 - 0.05 < letters.x0 and -gap < letters.y0 and letters.y1 < boxes.y1
        assert letters.x1 < 1 + (REST if len(char.encode()) > 1 else 0)


def test_ink_is_by_the_colour_of_the_expert_and_that_of_the_page_without_one():
    panel = ColoredTextPanel(Figure().subplots(), THEMES["dark"])
    for expert, ink in ((0, "#ffffff"), (1, "#000000"), (-1, "")):
        panel.update("a", [expert])
        assert [name for name, patch in panel.inks.items() if len(patch.get_path().vertices)] == [ink]
    assert to_hex(panel.inks[""].get_facecolor()) == THEMES["dark"].foreground


def test_experts_from_8_on_are_striped():
    panel = ColoredTextPanel(Figure().subplots(), num_experts=32)
    stripes = {}
    for expert in (0, 8, 16, 24):
        panel.update("a", [expert])
        stripes[expert] = str(panel.stripes.get_segments())
    assert stripes[0] == "[]" and len(set(stripes.values())) == 4


def test_only_so_many_lines_are_shown_and_the_next_text_replaces_them():
    panel = ColoredTextPanel(Figure().subplots(), width=4, lines=2)
    panel.update("abcdefghij", [0] * 10)
    assert len(panel.boxes.get_paths()) == 8
    panel.update("ab", [1, 2])
    assert [to_hex(c) for c in panel.boxes.get_facecolors()] == [expert_color(e).lower() for e in (1, 2)]


def test_a_longer_text_makes_a_higher_picture_with_all_of_it():
    short, long = (colored_text("ab\n" * n, [0] * 3 * n).draw() for n in (2, 8))
    assert long.figure.get_figheight() > short.figure.get_figheight()
    assert len(long.collections[-2].get_paths()) == 24


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
    text = colored_trace(trace, layer)
    rows = trace[trace["layer"] == layer]
    assert text.data.decode() == TEXT and text.num_experts == 4
    np.testing.assert_array_equal(text.experts, rows[["expert0", "expert1"]])
    np.testing.assert_allclose(text.weights, rows[["weight0", "weight1"]])
    shuffled = colored_trace(trace.sample(frac=1, random_state=0), layer)
    np.testing.assert_array_equal(shuffled.experts, text.experts)


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
    axes = Figure().subplots(3)
    assert expert_shares_heatmap(shares(), "", axes[0], theme) is axes[0]
    assert token_path(trace, 0, ax=axes[1], theme=theme) is axes[1]
    assert colored_text("a", [0]).draw(ax=axes[2], theme=theme) is axes[2]
    with pytest.raises(ValueError, match="theme must be one of"):
        token_path(trace, 0, theme="pink")
