"""Who sends what to whom: the rows that an all-to-all takes from each rank to each other."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm, to_hex
from matplotlib.patches import Rectangle
from torch import Tensor

from moe_lessons.plots.still import DIRECTIONS
from moe_lessons.plots.theme import THEMES, LessonFigure, annotate, axes_for, dress, ink_on, short_number, styled


def plot_exchange(traffic: Tensor | Mapping[str, Tensor], title: str = "", ax=None, theme: str = "light") -> Axes:
    """Rank × rank: how many rows (tokens' copies) each rank sends to each, of a matrix or of several, side by side.

    traffic: rows (N, N), from the first index to the second, as `parallel.exchange.rank_traffic` counts them, or title
    -> such a matrix. The colours depart from an even share, which is white; what is framed stays on its rank. Under a
    column: what that rank receives, and the title says how many times the mean the busiest has. Returns the last axes.

    >>> plot_exchange({"even": np.full((4, 4), 8), "uneven": np.eye(4) * 32}).get_title(loc="left")
    'uneven: busiest rank 1 × the mean'
    """
    matrices = traffic if isinstance(traffic, Mapping) else {title: traffic}
    rows = {name: np.asarray(matrix, dtype=float) for name, matrix in matrices.items()}
    for matrix in rows.values():
        if matrix.ndim != 2 or len(set(matrix.shape)) != 1 or not (matrix >= 0).all() or not matrix.sum():
            raise ValueError(f"traffic must be rows of at least 0, not all 0, of shape (N, N), got {matrix.shape}")
    if not rows or (ax is not None and len(rows) > 1):
        raise ValueError(f"traffic must be one matrix where axes are given, got {len(rows)}")
    most = max(matrix.max() / matrix.mean() for matrix in rows.values())
    if ax is None and len(rows) > 1:
        drawn = LessonFigure(0.8 + 3.1 * len(rows), 3.75, THEMES[theme])
        places = [drawn.add_subplot(1, len(rows), i + 1) for i in range(len(rows))]
    else:
        places = [ax or axes_for(None, theme, 4.8, 3.9)[0]]
    ink = THEMES[theme]
    low, high = DIRECTIONS[theme]
    shades = LinearSegmentedColormap.from_list("two ways", [low, ink.background, high])
    for ax, (name, matrix) in zip(places, rows.items()):
        N, received = len(matrix), matrix.sum(axis=0)
        named = f"{name}: " if name else ""
        dress(ax, ink, f"{named}busiest rank {received.max() / received.mean():.3g} × the mean", "to rank", "from rank")
        share = matrix / matrix.mean()  # 1 is even
        mesh = ax.pcolormesh(share, cmap=shades, norm=TwoSlopeNorm(1, 0, max(most, 2)), edgecolors=ink.grid, lw=1)
        for sender, receiver in np.ndindex(matrix.shape) if N <= 8 else ():
            color, text = ink_on(to_hex(mesh.to_rgba(share[sender, receiver]))), short_number(matrix[sender, receiver])
            annotate(ax, text, (receiver + 0.5, sender + 0.5), ink, ha="center", color=color)
        for rank in range(N):
            ax.add_patch(Rectangle((rank + 0.05, rank + 0.05), 0.9, 0.9, fill=False, ec=ink.foreground, lw=1.4))
        said = [f"{rank}\n{short_number(own)}" if N <= 8 else f"{rank}" for rank, own in enumerate(received)]
        ax.set_xticks(np.arange(N) + 0.5, said)
        ax.set_yticks(np.arange(N) + 0.5, range(N))
        ax.set(aspect="equal", ylim=(N, 0))
    bar = styled(ax.figure.colorbar, ink, mesh, ax=places, aspect=30, pad=0.02, shrink=0.8)
    bar.set_ticks([0, 1, max(most, 2)], labels=["0", "1 ×\neven", f"{max(most, 2):.3g} ×"])
    return ax
