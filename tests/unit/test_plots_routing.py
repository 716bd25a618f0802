"""Who serves which token is drawn as it is, and what cannot be drawn is refused."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from moe_lessons.analysis import expert_shares, trace_text
from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.plots import (
    THEMES,
    colored_trace,
    expert_color,
    expert_shares_heatmap,
    figure,
)
from moe_lessons.plots.panels.text import characters, shares_panel
from moe_lessons.plots.theme import ink_on, model_looks

TEXT = 'if a<b & c: "τηε"\n  x'


def shares(rows=("english", "code"), num_experts=4) -> pd.DataFrame:
    values = np.random.default_rng(0).dirichlet([0.5] * num_experts, len(rows))
    return pd.DataFrame(values, index=list(rows), columns=[f"E{e}" for e in range(num_experts)])


@pytest.fixture(scope="module")
def trace():
    with seeded(0):
        model = LanguageModel(TransformerConfig(d_model=16, num_layers=3, d_ff=8, num_experts=4, top_k=2))
    return trace_text(model, TEXT)


def written(ax) -> tuple[list[str], str]:
    """The numbers and the letters in the axes of a text."""
    texts = [text.get_text() for text in ax.texts]
    return [text for text in texts if text.isdecimal()], "".join(text for text in texts if not text.isdecimal())


def contrast(one: str, other: str) -> float:
    """Of two colours, 1 to 21; text wants 4.5 or more (WCAG 2.2, relative luminance)."""
    rgb = np.array([to_rgb(one), to_rgb(other)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return (light + 0.05) / (dark + 0.05)


def test_text_on_an_expert_can_be_read():
    assert all(contrast(ink_on(expert_color(expert)), expert_color(expert)) >= 4.5 for expert in range(8))


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_words_and_lines_can_be_seen_on_the_page(theme):
    shades = [color for color, _, _ in model_looks([f"MoE, E={e}" for e in range(6)], theme).values()]
    assert all(contrast(color, theme.background) >= 4.5 for color in (theme.foreground, theme.muted))
    assert all(contrast(color, theme.background) >= 2.8 for color in (*theme.lines, *shades))


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
    colors = ax.collections[0].to_rgba(ax.collections[0].get_array()).reshape(-1, 4)
    for text, color in zip(ax.texts, colors, strict=True):
        assert contrast(text.get_color(), to_hex(color)) >= 4.5


def test_a_group_without_tokens_is_empty_small_cells_have_no_numbers_and_layers_are_named(trace):
    ax = expert_shares_heatmap(pd.DataFrame([[0.25, 0.75], [np.nan, np.nan]], index=["a", "$b_$" * 10]))
    assert [text.get_text() for text in ax.texts] == ["25", "75"] and ax.collections[0].get_array().mask[1].all()
    ax.figure.draw_without_rendering()
    assert ax.get_tightbbox().x0 > -5 and [label.get_text() for label in ax.get_yticklabels()][1] == "$b_$" * 5 + "$b"
    assert not expert_shares_heatmap(shares(num_experts=32), ax=Figure(figsize=(4, 3)).subplots()).texts
    ax = expert_shares_heatmap(expert_shares(trace, by="layer"))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["layer 0", "layer 1", "layer 2"]


@pytest.mark.parametrize(
    "bad, message",
    [
        (pd.DataFrame(), r"^shares must be a DataFrame .*, got Empty"),
        ([[1.0]], r"got \[\[1.0\]\]"),
        (pd.DataFrame([[0.5, 0.6]]), r"sum to 1 in each row, got the sums \[1.1"),
        (pd.DataFrame([[1.5, -0.5]]), "at least 0"),
    ],
)
def test_what_are_no_shares(bad, message):
    with pytest.raises(ValueError, match=message):
        expert_shares_heatmap(bad)


@pytest.mark.parametrize(
    "data", [b"", "αβ€𝄞x".encode(), TEXT.encode(), b"\xb1a", b"a\xce", b"\xff\xfe", b"\xe2\x82", bytes(range(256))]
)
def test_text_is_cut_into_its_characters_and_what_is_none_into_its_bytes(data):
    found = list(characters(data))
    assert [start for _, start, _ in found] == np.cumsum([0, *(size for _, _, size in found)])[:-1].tolist()
    assert sum(size for _, _, size in found) == len(data)
    for char, start, size in found:
        own = data[start : start + size]
        assert own == char.encode() if char != "�" else size == 1 and own.decode(errors="ignore") == ""


def test_a_tip_says_the_experts_of_a_byte_and_their_weights(trace):
    rows = trace[trace["layer"] == 1].assign(expert0=[2, 1, -1, *[0] * 21], expert1=[0, -1, -1, *[1] * 21])
    (mark,) = colored_trace(rows.assign(weight0=0.75, weight1=0.25), 1, "A title").marks
    assert mark.says == ["E2 0.75, E0 0.25", "E1 0.75", "no expert", *["E0 0.75, E1 0.25"] * 21]
    twice = pd.concat([rows, rows.assign(position=rows.position + 24)])
    short, long = (figure([colored_trace(given, 1, "A title")]) for given in (rows, twice))
    assert long.get_figheight() > short.get_figheight()
    assert short._repr_mimebundle_()[0]["text/plain"] == "Figure: A title"


@pytest.mark.parametrize("layer", range(3))
def test_a_trace_is_coloured_by_the_layer(trace, layer):
    rows = trace[trace["layer"] == layer]
    for given in (trace, trace.sample(frac=1, random_state=0)):
        ax = figure([colored_trace(given, layer)]).axes[0]
        numbers, letters = written(ax)
        assert numbers == rows["expert0"].astype(str).tolist()
        assert letters == TEXT.replace("\n", "↵").replace(" ", "")
        assert ax.get_title(loc="left").endswith(f"in layer {layer}")


def test_traces_that_cannot_be_drawn(trace):
    for bad, message in (
        (pd.concat([trace, trace.assign(sequence=1)]), "trace must be of one text, got several"),
        (trace[:0], "trace must be a table as trace_text makes it, with at least one row, got 0 rows"),
        (trace.drop(columns="expert0"), "trace must be a table as trace_text makes it, .* 'layer'"),
        ([1], "trace must be a table .*, got list"),
    ):
        with pytest.raises(ValueError, match=message):
            colored_trace(bad, 0)
    with pytest.raises(ValueError, match="layer must be one of 0, 1, 2, got 3"):
        colored_trace(trace, 3)
