"""Bars for each layer: as high as the table says, in its order, named."""

import pandas as pd
import pytest

from moe_lessons.plots.by_layer import bars_by_layer

BITS = pd.DataFrame({"trained": [2.0, 1.5, 1.0], "shuffled": [0.0, 0.1, -0.1]}, index=[0, 1, 2])


def test_each_number_is_a_bar():
    ax = bars_by_layer({"byte": BITS, "domain": BITS.iloc[:2] / 2}, ylabel="bits", title="Bits")
    bars = sorted(ax.patches, key=lambda bar: bar.get_x())
    expected = [*BITS.to_numpy().ravel(), *(BITS.iloc[:2] / 2).to_numpy().ravel()]
    assert [bar.get_height() for bar in bars] == expected
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"layer {i}" for i in (0, 1, 2, 0, 1)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["trained", "shuffled"]
    names = {text.get_text(): text.xy[0] for text in ax.texts}
    middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    assert [names["byte"], names["domain"]] == pytest.approx([sum(middles[:6]) / 6, sum(middles[6:]) / 4])


@pytest.mark.parametrize("tables", [{}, [BITS], {"byte": BITS.iloc[:0]}, {"byte": BITS, "domain": BITS[["trained"]]}])
def test_bad_tables(tables):
    with pytest.raises(ValueError, match="^tables must be one or more tables with a row for each layer and the same"):
        bars_by_layer(tables)
