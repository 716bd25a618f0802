"""Which token goes to which expert, as a table of colours."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from moe_lessons.plots.theme import LIGHT, Panel, Theme, axes_for


class TokenExpertHeatmap(Panel):
    """A row for each token, a column for each expert: the colour is the router's probability, a dot says who serves."""

    title = "Router probabilities, • served"

    def __init__(self, ax: Axes, theme: Theme = LIGHT, num_tokens: int = 32, num_experts: int = 8):
        super().__init__(ax, theme)
        self.image = ax.imshow(
            np.zeros((num_tokens, num_experts)), vmin=0, vmax=1, aspect="auto", cmap="cividis", interpolation="nearest"
        )
        (self.dots,) = ax.plot([], [], ls="", marker="o", ms=3.4, color="white", mec="black", mew=0.5)
        self.frame = Rectangle((-0.5, -0.5), num_experts, 1, fill=False, lw=1.8, ec="#ff4d4d", visible=False, zorder=3)
        ax.add_patch(self.frame)
        self.live = [self.image, self.dots, self.frame, *ax.spines.values()]
        self.name_experts(ax.xaxis, num_experts)
        ax.set_yticks(range(0, num_tokens, max(1, num_tokens // 8)))
        ax.set_ylabel("token")

    def update(self, router_probs, token_idx, expert_idx, selected: int | None = None) -> None:
        """router_probs (T, E); the assignments token_idx, expert_idx (A,); the row to frame."""
        self.image.set_data(np.asarray(router_probs))
        self.dots.set_data(expert_idx, token_idx)
        self.frame.set(visible=selected is not None, y=(selected or 0) - 0.5)


def token_expert_heatmap(routing, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Draw the router probabilities (T, E) of a `Routing` and mark the chosen experts."""
    num_tokens, num_experts = routing.router_probs.shape
    ax, colors = axes_for(ax, theme, width=4.8, height=min(1.2 + 0.28 * num_tokens, 6))
    panel = TokenExpertHeatmap(ax, colors, num_tokens, num_experts)
    panel.update(routing.router_probs.detach().cpu(), routing.token_idx.cpu(), routing.expert_idx.cpu())
    bar = ax.figure.colorbar(panel.image, ax=ax, label="router probability")
    bar.ax.tick_params(labelsize=8, colors=colors.muted)
    bar.ax.yaxis.label.set(color=colors.muted, fontsize=8.5)
    return ax
