"""What is drawn. Functions take tensors or numbers and an optional `ax`, and return the axes.

Show a picture in a notebook with `ax.figure`.
"""

from moe_lessons.plots.bench import cost_by_experts, time_ratios
from moe_lessons.plots.colored_text import ColoredText, ColoredTextPanel, colored_text, colored_trace
from moe_lessons.plots.curves import LossCurves, loss_curves, running_mean, seed_sweep
from moe_lessons.plots.heatmap import LayerLoads, TokenExpertHeatmap, layer_loads, token_expert_heatmap
from moe_lessons.plots.live_figure import LiveFigure, Row
from moe_lessons.plots.load import LoadBars, LoadFilm, load_bars, load_film
from moe_lessons.plots.remedies import BalanceQuality, RemedyCurves, RemedyTile, balance_quality
from moe_lessons.plots.routing import SharesMap, expert_shares_heatmap, token_path
from moe_lessons.plots.samples import WrittenText, attention_heatmap, byte_losses, written_text
from moe_lessons.plots.sweeps import distinct_by_batch, loss_against, rate_tolerance, roofline, speed_by_batch
from moe_lessons.plots.table import CostTable, cost_table
from moe_lessons.plots.territory import TerritoryMap, territory_map
from moe_lessons.plots.theme import LIGHT, THEMES, LessonFigure, Panel, Theme, expert_color, expert_hatch

__all__ = [
    "BalanceQuality",
    "LIGHT",
    "THEMES",
    "ColoredText",
    "ColoredTextPanel",
    "CostTable",
    "LayerLoads",
    "LessonFigure",
    "LiveFigure",
    "LoadBars",
    "LoadFilm",
    "LossCurves",
    "Panel",
    "RemedyCurves",
    "RemedyTile",
    "Row",
    "SharesMap",
    "TerritoryMap",
    "Theme",
    "TokenExpertHeatmap",
    "WrittenText",
    "attention_heatmap",
    "balance_quality",
    "byte_losses",
    "colored_text",
    "colored_trace",
    "cost_by_experts",
    "cost_table",
    "distinct_by_batch",
    "expert_color",
    "expert_hatch",
    "expert_shares_heatmap",
    "layer_loads",
    "load_bars",
    "load_film",
    "loss_against",
    "loss_curves",
    "rate_tolerance",
    "roofline",
    "running_mean",
    "seed_sweep",
    "speed_by_batch",
    "territory_map",
    "time_ratios",
    "token_expert_heatmap",
    "token_path",
    "written_text",
]
