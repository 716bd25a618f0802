"""What is touched: live training, the playground, the collapse laboratory, and a calculator."""

from moe_lessons.widgets.laboratory import BalancingLab
from moe_lessons.widgets.live import LiveRun
from moe_lessons.widgets.panels import PANELS, LivePanel
from moe_lessons.widgets.playground import Playground
from moe_lessons.widgets.predict import Prediction

__all__ = ["PANELS", "BalancingLab", "LivePanel", "LiveRun", "Playground", "Prediction"]
