"""What is drawn. Plot functions take tensors or numbers and return the axes.

Show a picture in a notebook with `ax.figure`. Panels of live views are functions of the view that return marks: see
`marks` and `panels`; `still` draws the same marks.
"""

from moe_lessons.plots.language import attention_heatmap, byte_losses, colored_trace
from moe_lessons.plots.panels import PANELS
from moe_lessons.plots.panels._history import RECENT, X_AXES, loss_curve, recent_load, spent
from moe_lessons.plots.panels.block import draw_block
from moe_lessons.plots.panels.plane import token_expert_heatmap
from moe_lessons.plots.panels.shares import layer_loads, tile
from moe_lessons.plots.panels.text import expert_shares_heatmap
from moe_lessons.plots.panels.writing import write
from moe_lessons.plots.panels.writing import writing_of as writing
from moe_lessons.plots.still import draw, figure
from moe_lessons.plots.sweeps import (
    dense_family,
    distinct_by_batch,
    gain_by_model,
    gain_over_twin,
    rate_tolerance,
    roofline,
    seed_sweep,
    speed_by_batch,
)
from moe_lessons.plots.theme import LIGHT, THEMES, LessonFigure, expert_color
