"""The plane, divided among the experts."""

import numpy as np
import torch
from matplotlib.axes import Axes

from moe_lessons.nn import evaluating
from moe_lessons.plots.theme import LIGHT, Panel, Theme, axes_for, expert_image
from moe_lessons.tasks import grid


class TerritoryMap(Panel):
    """Each place in the colour of the expert that the router likes best there, with that expert's number.

    The points on it are tokens: white where the model names the right class, black with a cross where it does not.
    A ring marks the selected one.
    """

    title = "Territory: the first choice of each place"

    def __init__(self, ax: Axes, theme: Theme = LIGHT, num_experts: int = 8):
        super().__init__(ax, theme)
        self.image = ax.imshow(
            np.zeros((2, 2, 3)), extent=(-1, 1, -1, 1), origin="lower", interpolation="nearest", aspect="auto"
        )
        self.numbers = []
        for expert in range(num_experts):
            look = {"marker": rf"$\mathbf{{{expert}}}$", "ms": 9 if expert < 10 else 13, "color": "black", "mew": 0}
            self.numbers += ax.plot([], [], ls="", zorder=3, **look)
        (self.right,) = ax.plot([], [], ls="", marker="o", ms=4, color="white", mec="black", mew=0.6)
        (self.wrong,) = ax.plot([], [], ls="", marker="X", ms=5.5, color="black", mec="white", mew=0.6)
        (self.ring,) = ax.plot([], [], ls="", marker="o", ms=12, mfc="none", mec="#ff4d4d", mew=2.2, clip_on=False)
        self.live = [self.image, *self.numbers, self.right, self.wrong, self.ring, *ax.spines.values()]
        ax.set(xlim=(-1, 1), ylim=(-1, 1), xticks=[-1, 0, 1], yticks=[-1, 0, 1])

    def update(self, expert, points, correct, selected: int | None = None) -> None:
        """expert (R, R): the favourite at each place of a `tasks.grid`; points (T, 2), correct (T,) bool."""
        expert, points, correct = np.asarray(expert), np.asarray(points), np.asarray(correct)
        self.image.set_data(expert_image(expert))
        self.image.set_extent((-1, 1, -1, 1))
        rows, columns = np.indices(expert.shape) / (len(expert) - 1) * 2 - 1
        for number, artist in enumerate(self.numbers):
            inside = expert == number
            if inside.any():  # the place of the territory nearest to its middle: a territory may be bent
                x, y = columns[inside], rows[inside]
                nearest = ((x - x.mean()) ** 2 + (y - y.mean()) ** 2).argmin()
                artist.set_data([x[nearest]], [y[nearest]])
            artist.set_visible(inside.any())
        self.right.set_data(points[correct, 0], points[correct, 1])
        self.wrong.set_data(points[~correct, 0], points[~correct, 1])
        self.ring.set_data(*(([], []) if selected is None else points[selected, :, None]))


@torch.no_grad()
def territory_map(
    model, task, ax: Axes | None = None, theme: str = "light", resolution: int = 96, num_points: int = 64
) -> Axes:
    """Draw which expert of a `PlaneClassifier` is the favourite where, and some points of the task."""
    device = next(model.parameters()).device
    x, y = task.batch(num_points, torch.Generator().manual_seed(1))
    with evaluating(model):
        _, (routing,) = model(grid(resolution).to(device))
        correct = model(x.to(device))[0].argmax(dim=-1).cpu() == y
    ax, colors = axes_for(ax, theme, width=4.2, height=4)
    favourite = routing.router_probs.argmax(dim=-1).cpu().view(resolution, resolution)
    TerritoryMap(ax, colors, routing.num_experts).update(favourite, x, correct)
    return ax
