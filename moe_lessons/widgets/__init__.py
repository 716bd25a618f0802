"""Live views, laboratories. Read `spec`, `picture`, `loop`, `live`, `laboratory`, then `playground`."""

from moe_lessons.widgets.balancing_lab import BalancingLab
from moe_lessons.widgets.kernel import prepare_kernel
from moe_lessons.widgets.laboratory import Lab
from moe_lessons.widgets.live import LiveRun
from moe_lessons.widgets.parameter_map import ParameterMap
from moe_lessons.widgets.picture import Picture, draw_block
from moe_lessons.widgets.playground import Playground
from moe_lessons.widgets.recording import RoutersView, StreamView
from moe_lessons.widgets.routing_lab import RoutingLab
from moe_lessons.widgets.small_labs import CollapseLab, FactsLab, RaceLab
from moe_lessons.widgets.speedup_map import SpeedupMap

prepare_kernel()
