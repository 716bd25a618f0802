"""Pictures. Plot functions take tensors or numbers and return the axes; show a picture with `ax.figure`. Panels of
live views are functions of the view that return marks: see `marks` and `panels`; `still` draws the same marks."""

from moe_lessons.plots.panels import PANELS
from moe_lessons.plots.panels.passages import attention_heatmap, colored_trace, write
from moe_lessons.plots.panels.passages import writing_of as writing
from moe_lessons.plots.still import figure
from moe_lessons.plots.theme import LessonFigure
