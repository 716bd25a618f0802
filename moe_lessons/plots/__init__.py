"""What is drawn. Functions take tensors or numbers and an optional `ax`, and return the axes.

Show a picture in a notebook with `ax.figure`.
"""

from moe_lessons.plots.curves import LossCurves, loss_curves, running_mean
from moe_lessons.plots.heatmap import TokenExpertHeatmap, token_expert_heatmap
from moe_lessons.plots.live_figure import LiveFigure
from moe_lessons.plots.load import LoadBars, LoadFilm, load_bars, load_film
from moe_lessons.plots.table import CostTable, cost_table
from moe_lessons.plots.territory import TerritoryMap, territory_map
from moe_lessons.plots.theme import LIGHT, THEMES, LessonFigure, Panel, Theme, expert_color, expert_hatch

__all__ = [
    "LIGHT",
    "THEMES",
    "CostTable",
    "LessonFigure",
    "LiveFigure",
    "LoadBars",
    "LoadFilm",
    "LossCurves",
    "Panel",
    "TerritoryMap",
    "Theme",
    "TokenExpertHeatmap",
    "cost_table",
    "expert_color",
    "expert_hatch",
    "load_bars",
    "load_film",
    "loss_curves",
    "running_mean",
    "territory_map",
    "token_expert_heatmap",
]
