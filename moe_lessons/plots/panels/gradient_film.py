"""Who has got a gradient."""

import numpy as np

from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels._history import MOST_PLACES, num_experts
from moe_lessons.plots.panels.film import film_panel


def gradient_film(view) -> Panel:
    """Which share of the gradient norms each expert's weights got, at every step; nothing where all stand still."""
    gradients = view.main_run.expert_gradients
    at = np.arange(len(gradients))[:: -1 - len(gradients) // MOST_PLACES][::-1]  # evenly spread, and the last
    norms = np.array([gradients[i] for i in at]).reshape(len(at), num_experts(view))  # (N, E)
    at, norms = at[norms.sum(axis=1) > 0], norms[norms.sum(axis=1) > 0]
    shares = norms / norms.sum(axis=1, keepdims=True)
    return film_panel(at + 1, shares, view.marks, view.first_x, "Gradient share over time", "gradient norm")
