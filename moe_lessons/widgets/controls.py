"""The controls beside a live view, in one style."""

from typing import Any

import ipywidgets as W

from moe_lessons.errors import is_whole

MOST_SEED = 9999
# of `training.Knobs`: the description of its slider, its stops or the end of its range from 0, and what it does
KNOBS: dict[str, tuple[str, tuple[float, ...] | float, str]] = {
    "router_aux_loss_coef": (
        "Auxiliary loss",
        (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        "Coefficient of the load-balancing loss in what is minimised; no unit",
    ),
    "noise_std": (
        "Noise (std)",
        3.0,
        "Standard deviation of the Gaussian noise on the router's logits, in training only",
    ),
    "jitter_noise": (
        "Jitter ε",
        1.0,
        "The router's input is scaled at random, by 1 − ε to 1 + ε, in training only",
    ),
    "capacity_factor": (
        "Capacity (×)",
        (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0),
        "Capacity factor: places of each expert, in multiples of its even share; what is over is dropped",
    ),
    "router_z_loss_coef": (
        "z-loss",
        (0.0, 0.0001, 0.001, 0.01, 0.1, 1.0),
        "Coefficient of the router z-loss, which keeps the router's scores small; no unit",
    ),
    "expert_bias_rate": (
        "Bias rate",
        (0.0, 0.0001, 0.001, 0.003, 0.01, 0.03, 0.1),
        "How far each step moves the bias of an expert that had too little or too much; no unit",
    ),
    "lr": (
        "Learning rate",
        (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
        "Of Adam, for all models; no unit",
    ),
}


def knob_slider(name: str) -> W.Widget:
    """The slider of one of the `KNOBS`; where it has stops, 0 reads 'off'."""
    description, values, tooltip = KNOBS[name]
    if isinstance(values, tuple):
        return stops(description, values, tooltip)
    return W.FloatSlider(min=0, max=values, step=0.05, description=description, tooltip=tooltip)


def seed_box(tooltip: str, description: str = "Seed") -> W.BoundedIntText:
    """A box for a seed."""
    return W.BoundedIntText(min=0, max=MOST_SEED, description=description, tooltip=tooltip)


def check_seed(seed: int) -> int:
    """The seed if its box can show it, else ValueError."""
    if not is_whole(seed, 0, MOST_SEED):
        raise ValueError(f"seed must be a whole number from 0 to {MOST_SEED}, got {seed!r}")
    return int(seed)


def limit(slider: W.Widget, control: W.Widget) -> None:
    """Have a slider reach as far as the value of another control, and move along where it stands beyond it."""
    control.observe(lambda change: setattr(slider, "max", change["new"]), "value")


def in_columns(widgets: list[W.Widget], label_width: int = 88) -> None:
    """Have all labels as wide as each other, and the widgets as wide as there is room."""
    for widget in widgets:
        widget.style.description_width, widget.layout.width = f"{label_width}px", "auto"


def heading(text: str) -> W.HTML:
    """What the controls under it have in common."""
    return W.HTML(f'<div class="moe-group">{text}</div>')


def choice(description: str, options: tuple[str, ...], tooltip: str) -> W.Dropdown:
    """A list to choose from."""
    return W.Dropdown(options=options, description=description, tooltip=tooltip)


def stops(description: str, values: tuple[float, ...], tooltip: str) -> W.SelectionSlider:
    """A slider over chosen numbers, written as plain decimals; 0 reads 'off'."""
    return W.SelectionSlider(options=_named(values), description=description, tooltip=tooltip)


def _named(stops: tuple[float, ...]) -> list[tuple[str, float]]:
    return [("off" if stop == 0 else f"{stop:g}", stop) for stop in stops]


def move(widget: W.Widget, value: Any) -> None:
    """Move a control to a value; a slider reaches further then if it has to. None is 'off'."""
    if isinstance(widget, W.SelectionSlider):
        value, stops = value or 0.0, [stop for _, stop in widget.options]
        if value not in stops:
            widget.options = _named(tuple(sorted({*stops, value})))
    elif hasattr(widget, "max"):
        widget.min, widget.max = min(widget.min, value), max(widget.max, value)
    widget.value = value
