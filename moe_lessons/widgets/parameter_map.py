"""The parameters of a published mixture as a map, and which of them one token after another meets."""

from typing import Any

import ipywidgets as W
import numpy as np
import torch

from moe_lessons.analysis.roofline import published_sizes
from moe_lessons.plots.marks import Axis, Boxes, Line, Panel, Rule
from moe_lessons.plots.panels.block import EXPERT, FRAME, GREY, INK, box
from moe_lessons.plots.theme import short_number
from moe_lessons.support.static import static_mode
from moe_lessons.widgets.recording import Player

SAID = "Colour: this token. Pale grey: earlier tokens. Framed: not used yet. Black: no expert, used by every token."
PASSING_TOKENS = 16
STILLS = 1, 8, 16


class ParameterMap(Player):
    """Let one token after another meet the parameters of Mixtral 8x7B. A box is about as large as its share: on the
    left what every token meets, then the experts, a row for each layer. Which K experts of a layer a token meets is
    drawn from `seed`, all as likely: any K count the same. A static page shows three of the tokens, side by side.

    >>> ParameterMap().sentence()
    'Of 46.7 B parameters token 16 uses 12.9 B (27.6 %), and tokens 1 to 16 together 46.2 B (98.9 %).'
    """

    FRAME = 0.8

    def __init__(self, seed: int = 0):
        self.sizes, self.seed = published_sizes()["Mixtral 8x7B"], seed
        (self.group,) = self.sizes.groups
        size = PASSING_TOKENS, self.group.layers, self.group.num_experts
        best = torch.rand(size, generator=torch.Generator().manual_seed(seed)).topk(self.group.top_k).indices
        self.meets = torch.zeros(size, dtype=torch.bool).scatter(2, best, True)
        met = self.meets.cumsum(dim=0).bool().sum(dim=(1, 2)).numpy()  # (N,) by all tokens so far
        self.together = self.sizes.total - self.group.layers * self.group.size + self.group.expert * met
        slider = W.IntSlider(PASSING_TOKENS, 1, PASSING_TOKENS, description="token", tooltip="Which token passes")
        super().__init__("Mixtral 8x7B", slider, PASSING_TOKENS, first=1)
        self.play()

    def __repr__(self) -> str:
        return f"ParameterMap(seed={self.seed})"  # on a static page, too

    def drawn(self, token: int, title: str, **options: Any) -> Panel:
        """The map while this token, of 1 to 16, passes."""
        layers, E = self.meets.shape[1:]
        met = (2 * self.meets[token - 1] + self.meets[: token - 1].any(dim=0)).tolist()  # 0 not yet, 1 earlier
        left = 1 - layers * self.group.size / self.sizes.total  # the share of what every token meets
        wide, says = (1 - left) / E, f"{short_number(self.group.expert)} parameters"
        boxes = [box(left / 2, layers / 2, 0.8 * left, layers, fill=INK)]
        for layer, row in enumerate(met):
            for e, kind in enumerate(row):
                place = left + (e + 0.5) * wide, layer + 0.5, 0.9 * wide, 0.8
                fill = (FRAME, GREY, EXPERT, EXPERT)[kind]
                boxes.append(box(*place, fill=fill, expert=e, says=f"layer {layer}: {says}"))
        x = Axis(ticks=[(left + (e + 0.5) * wide, f"E{e}") for e in range(E)])
        y = Axis(layers, 0, "layer", [(n + 0.5, str(n)) for n in range(0, layers, 4)])
        return Panel(title, [Boxes(*zip(*boxes))], x, y, **options)

    def panels(self) -> list[Panel]:
        shown, size = {self.slider.value: SAID}, {"width": 7, "height": 380}
        title = "Mixtral 8x7B: the parameters that a token uses (random choices)"
        if static_mode():
            shown, size = dict.fromkeys(STILLS, ""), size | {"width": 3}
            title = "Random choices, token {}"
        maps = [self.drawn(token, title.format(token), caption=said, **size) for token, said in shown.items()]
        steps, alone = np.arange(1, PASSING_TOKENS + 1), np.full(PASSING_TOKENS, self.sizes.active / 1e9)
        marks = [Line(steps, self.together / 1e9, "all tokens so far", 0), Line(steps, alone, "one token", 3)]
        marks += [Rule(y=self.sizes.total / 1e9, name="total")]
        marks += [Rule(n, kind="mark") for n in shown if not static_mode()]
        x, y = Axis(1, PASSING_TOKENS, "tokens", [(n, str(n)) for n in (1, 4, 8, 12, 16)]), Axis(0, 1.1 * marks[2].y)
        size["width"] = 12 - size["width"] * len(maps)
        return [*maps, Panel("Parameters used, in billions", marks, x, y, **size)]

    def sentence(self) -> str:
        token, total = self.slider.value, self.sizes.total
        met = [f"{short_number(n)} ({100 * n / total:.1f} %)" for n in (self.sizes.active, self.together[token - 1])]
        said = f"Of {short_number(total)} parameters token {token} uses {met[0]}"
        said += f", and tokens 1 to {token} together {met[1]}."
        return f"{SAID} {said}" if static_mode() else said  # one legend below all maps
