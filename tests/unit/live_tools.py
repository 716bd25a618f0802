"""What tests of live views share: an event loop, buttons, and a page that answers."""

import asyncio
import functools
import time

import numpy as np
import torch
from torch import nn

from moe_lessons.nn import FeedForward, TopKRouter, is_moe
from moe_lessons.training.knobs import KNOBS
from moe_lessons.widgets import BalancingLab, CollapseLab, FactsLab, Playground, RoutingLab
from moe_lessons.widgets.picture import descendants

ENDLESS = 10**6  # steps; a test that trains so many has forgotten to stop
TEXT = {"d_model": 16, "num_heads": 2, "num_layers": 2, "d_ff": 8, "num_experts": 4, "batch_size": 4}
LABS = {
    "Playground": Playground,
    "RoutingLab": lambda task=("code", "json"), **own: RoutingLab(task, **TEXT | {"panels": ("loss", "domains")} | own),
    "BalancingLab": lambda methods=("no balancing", "z-loss"), **own: BalancingLab(methods, **{"seeds": 1} | own),
    "CollapseLab": CollapseLab,
    "FactsLab": lambda num_experts=4, **own: FactsLab(num_experts, **{"num_entries": 250} | own),
}


class MyMoE(nn.Module):
    """A learner's mixture, as small as it can be: no noise, no capacity, experts in a list of modules."""

    def __init__(self, d_model, d_ff, num_experts, top_k):
        super().__init__()
        self.d_model, self.d_ff, self.num_experts, self.top_k = d_model, d_ff, num_experts, top_k
        self.router = TopKRouter(d_model, num_experts, top_k)
        self.experts = nn.ModuleList(FeedForward(d_model, d_ff) for _ in range(num_experts))

    def forward(self, x):
        routing, y = self.router(x), torch.zeros_like(x)
        for expert, ffn in enumerate(self.experts):
            mine = routing.expert_idx == expert
            tokens = routing.token_idx[mine]
            y = y.index_add(0, tokens, routing.weight[mine][:, None] * ffn(x[tokens]))
        return y, routing


def written(*points: tuple[float, float, int]) -> str:
    """Write points (x, y, class) of one's own as a page does."""
    codes = [(label * 201 + round(100 * (y + 1))) * 201 + round(100 * (x + 1)) for x, y, label in points]
    return "".join(np.base_repr(code, 36).lower().zfill(4) for code in codes)


def on_a_loop(test):
    return functools.wraps(test)(lambda *args, **kwargs: asyncio.run(test(*args, **kwargs)))


async def until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def ended(view) -> None:
    view.pause()
    await view.finished()


def work(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def button(view, name: str):
    found = [child for child in descendants(view) if getattr(child, "description", "") == name]
    assert len(found) == 1, f"{len(found)} controls {name}"
    return found[0]


def words(view) -> str:
    """What the page says under the picture: the words, the reading and the trouble."""
    said = view.canvas.words
    return " ".join(said.get(name, "") for name in ("words", "reading", "trouble"))


def status(view) -> str:
    return view.canvas.words["state"]


def mark(view, place: int, kind: type, number: int = 0):
    """A mark of the panel that was shown last at a place: the one of its kind with that number."""
    return [mark for mark in view.canvas.panels[place].marks if isinstance(mark, kind)][number]


def hear(canvas, content) -> None:
    canvas._handle_custom_msg(content, [])


def click(view, kind: str, index) -> None:
    hear(view.canvas, {"pick": kind, "index": index})


def a_page(canvas, behind: float) -> None:
    """Have a canvas a page that draws one picture of `behind` at once and says so."""

    def send(content, buffers=None):
        if content.get("answer"):
            hear(canvas, {"drawn": content["frame"], "behind": behind})

    canvas.send = send
    hear(canvas, {"hello": True})


def losses(lab) -> dict[str, list[float]]:
    return {name: [record.loss for record in run.records] for name, run in lab.runs.items()}


def assert_consistent(lab) -> None:
    """Controls, models and knobs are as the values say; what does nothing is off, and says why."""
    in_force, idle = lab.in_force(lab.state.values), lab.idle(lab.state.values)
    for name, widget in lab.inputs.items():
        assert (widget.value or None) == (in_force[name] or None), name  # 'off' is 0 or None
        assert widget.disabled == (name in idle) and idle.get(name, "") in widget.tooltip
        assert name not in KNOBS or idle.get(name, "") in lab._idle.value
    if lab.spec.live and not hasattr(lab, "tiles"):
        assert all(getattr(lab.main_run.knobs, name) == in_force[name] for name in lab.spec.live)
        assert {run.knobs.lr for run in lab.runs.values()} == {lab.state.values["lr"]}
        assert lab.main_run.seed == lab.state.values["seed"]
        for moe in filter(is_moe, lab.main_run.model.modules()):
            sizes = {"num_experts", "top_k", "d_ff"} & set(lab.state.values)
            assert all(getattr(moe, name) == lab.state.values[name] for name in sizes)
