"""Who sends what to whom: the rows that an all-to-all takes from each rank to each other."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from torch import Tensor

from moe_lessons.plots.still import two_ways
from moe_lessons.plots.theme import LIGHT, LessonFigure, annotate, dress, ink_on, short_number, styled


def plot_exchange(traffic: Tensor | Mapping[str, Tensor], title: str = "") -> Axes:
    """Draw how many rows (tokens' copies) each rank sends to each, of a matrix or of several, side by side.

    traffic: rows (N, N), from the first index to the second, as `parallel.exchange.rank_traffic` counts them, or title
    -> such a matrix. The colours depart from an even share, which is white; what is framed stays on its rank. Under a
    column: what that rank receives, and the title says how many times the mean the busiest has. Returns the last axes.

    >>> plot_exchange({"even": np.full((4, 4), 8), "uneven": np.eye(4) * 32}).get_title(loc="left")
    'uneven: busiest rank 1 × the mean'
    """
    matrices = traffic if isinstance(traffic, Mapping) else {title: traffic}
    rows = {name: np.asarray(matrix, dtype=float) for name, matrix in matrices.items()}
    most = max(2, *(matrix.max() / matrix.mean() for matrix in rows.values()))
    drawn = LessonFigure(4.8, 3.9) if len(rows) == 1 else LessonFigure(0.8 + 3.1 * len(rows), 3.75)
    places = drawn.subplots(1, len(rows), squeeze=False)[0]
    for ax, (name, matrix) in zip(places, rows.items()):
        N, received = len(matrix), matrix.sum(axis=0)
        busiest = f"busiest rank {received.max() / received.mean():.3g} × the mean"
        dress(ax, LIGHT, f"{name}: {busiest}".removeprefix(": "), "to rank", "from rank")
        share = matrix / matrix.mean()  # 1 is even
        mesh = two_ways(ax, [np.arange(N + 1)] * 2, share, 1, most, LIGHT)
        for sender, receiver in np.ndindex(matrix.shape):
            color, text = ink_on(to_hex(mesh.to_rgba(share[sender, receiver]))), short_number(matrix[sender, receiver])
            annotate(ax, text, (receiver + 0.5, sender + 0.5), ha="center", color=color)
        for rank in range(N):
            ax.add_patch(Rectangle((rank + 0.05, rank + 0.05), 0.9, 0.9, fill=False, ec=LIGHT.foreground, lw=1.4))
        ax.set_xticks(np.arange(N) + 0.5, [f"{rank}\n{short_number(own)}" for rank, own in enumerate(received)])
        ax.set_yticks(np.arange(N) + 0.5, range(N))
        ax.set(aspect="equal", ylim=(N, 0))
    bar = styled(drawn.colorbar, LIGHT, mesh, ax=places, aspect=30, pad=0.02, shrink=0.8)
    bar.set_ticks([0, 1, most], labels=["0", "1 ×\neven", f"{most:.3g} ×"])
    return ax
