"""Which token goes to which expert, and how busy the experts of each layer are, as tables of colours."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from moe_lessons.plots.theme import LIGHT, Panel, Theme, axes_for
from moe_lessons.training import DEAD_SHARE


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


class LayerLoads(Panel):
    """A row for each MoE layer, a column for each expert: the colour is its load in multiples of the even share.

    A cross marks a dead expert; where no loads are known yet, all is blank. Rows are read one by one: two layers that
    have collapsed onto different experts are not even together.
    """

    title = "Load of each layer, × dead"
    hottest = 3.0  # multiples of the even share

    def __init__(self, ax: Axes, theme: Theme = LIGHT, num_layers: int = 1, num_experts: int = 8):
        super().__init__(ax, theme)
        look = {"vmin": 0, "vmax": self.hottest, "aspect": "auto", "cmap": "cividis", "interpolation": "nearest"}
        self.image = ax.imshow(np.ma.masked_all((num_layers, num_experts)), **look)
        (self.dead,) = ax.plot([], [], ls="", marker="x", ms=6, mew=1.6, color="#ff4d4d")
        self.live = [self.image, self.dead, *ax.spines.values()]
        self.name_experts(ax.xaxis, num_experts)
        ax.set_yticks(range(num_layers))
        ax.set_ylabel("layer")

    def update(self, loads, dead) -> None:
        """loads (layers, E): shares that sum to 1 in each layer; dead (layers, E): whether each expert is dead."""
        loads = np.asarray(loads)
        self.image.set_data(loads * loads.shape[1])
        layers, experts = np.nonzero(dead)
        self.dead.set_data(experts, layers)

    def clear(self) -> None:
        """Show no loads: none are known."""
        self.image.set_data(np.ma.masked_all(self.image.get_array().shape))
        self.dead.set_data([], [])


def layer_loads(routings, ax: Axes | None = None, theme: str = "light") -> Axes:
    """Draw the load of each expert in each layer: `routings` has one `Routing` for each. See `LayerLoads`."""
    if not routings:
        raise ValueError("routings must have at least one Routing, got none")
    if len({routing.num_experts for routing in routings}) > 1:
        raise ValueError(f"routings must have one number of experts, got {[r.num_experts for r in routings]}")
    ax, colors = axes_for(ax, theme, width=5.2, height=1.2 + 0.3 * len(routings))
    panel = LayerLoads(ax, colors, len(routings), routings[0].num_experts)
    demand = np.array([routing.demand_per_expert.tolist() for routing in routings])  # (layers, E)
    tokens = np.array([[routing.num_tokens] for routing in routings])  # (layers, 1)
    panel.update(demand / demand.sum(axis=1, keepdims=True).clip(min=1), demand < DEAD_SHARE * tokens)
    bar = ax.figure.colorbar(panel.image, ax=ax, label="× even share", extend="max")
    bar.ax.tick_params(labelsize=8, colors=colors.muted)
    bar.ax.yaxis.label.set(color=colors.muted, fontsize=8.5)
    return ax
