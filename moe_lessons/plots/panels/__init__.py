"""The panels of live views by name. Each is a function of the view that is called up to 30 times a second while a model
trains, so it never walks over all records: see `_history`."""

from collections.abc import Callable
from typing import Any

from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels import block, compared, passages, shares

PANELS: dict[str, Callable[[Any], Panel]] = {
    "block": block.block,
    "answer": compared.answer,
    "balance": compared.balance,
    "cost": compared.cost,
    "dead": compared.dead,
    "facts known": compared.facts_known,
    "loss": compared.loss,
    "quality": compared.quality,
    "classes": passages.classes,
    "domains": passages.domains,
    "text": passages.text,
    "writing": passages.writing,
    "film": shares.film,
    "heatmap": shares.heatmap,
    "layers": shares.layers,
    "load": shares.load,
    "route": shares.route,
    "territory": shares.territory,
}
