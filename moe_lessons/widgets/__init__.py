"""What is touched: live training, the playground, the laboratories of balancing and of routing, and a calculator."""

from moe_lessons.widgets.decoding import DecodingCalculator
from moe_lessons.widgets.laboratory import BalancingLab
from moe_lessons.widgets.live import LiveRun
from moe_lessons.widgets.panels import PANELS, LivePanel
from moe_lessons.widgets.playground import Playground
from moe_lessons.widgets.predict import Prediction
from moe_lessons.widgets.routing_lab import RoutingLab

__all__ = [
    "PANELS",
    "BalancingLab",
    "DecodingCalculator",
    "LivePanel",
    "LiveRun",
    "Playground",
    "Prediction",
    "RoutingLab",
]
