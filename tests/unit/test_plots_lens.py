"""Pictures of several models side by side: what is drawn is what was given."""

import pandas as pd
import pytest
import torch

from moe_lessons.nn import TopKRouter, seeded
from moe_lessons.plots.health import bars_by_model, changes, loads_of_models
from moe_lessons.plots.theme import THEMES

TABLE = pd.DataFrame({"experts": [8, 64, 8], "shared": [0, 0, 1]}, index=["Mixtral", "OLMoE", "third"])


def routings(num_layers: int, num_experts: int = 4) -> list:
    with seeded(0):
        return [TopKRouter(8, num_experts, 2)(torch.randn(32, 8)) for _ in range(num_layers)]


@pytest.mark.parametrize("theme", THEMES)
def test_what_is_not_as_in_the_first_row_is_coloured(theme):
    ax = changes(TABLE, "Families", theme=theme)
    assert [round(patch.get_y() + 0.44) for patch in ax.patches] == [1, 2]  # 64, and the shared one
    assert [text.get_text() for text in ax.texts] == ["8", "64", "8", "0", "0", "1"]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(TABLE.index)
    ax.figure.png()


@pytest.mark.parametrize("theme", THEMES)
def test_a_column_for_each_model_and_a_row_for_each_moment(theme):
    figure = loads_of_models({"before": {"a": routings(2), "b": routings(3)}, "after": {"b": routings(3)}}, theme=theme)
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert titles == ["a, before", "b, before", "b, after"]
    figure.png()


@pytest.mark.parametrize("theme", THEMES)
def test_bars_have_the_heights_of_the_tables_on_one_scale(theme):
    table = pd.DataFrame({"trained": [2.0, 1.0], "untrained": [0.5, 0.1]}, index=["a", "b"])
    figure = bars_by_model({"byte": table, "domain": table / 2}, "bits", theme=theme)
    heights = [[round(patch.get_height(), 2) for patch in ax.patches] for ax in figure.axes]
    assert heights == [[2.0, 1.0, 0.5, 0.1], [1.0, 0.5, 0.25, 0.05]]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    figure.png()


def test_nothing_to_draw_is_refused():
    for draw, nothing in ((changes, TABLE[:0]), (loads_of_models, {}), (bars_by_model, {})):
        with pytest.raises(ValueError, match="must (be|have)"):
            draw(nothing)
