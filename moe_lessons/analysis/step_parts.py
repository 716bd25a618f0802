"""The parts of the time of a decoding step: products with weights, routing, attention, the rest."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from moe_lessons.analysis.busy import watching_others
from moe_lessons.analysis.inference import (
    IN_A_ROW,
    PROMPT,
    bytes_per_step,
    check_models,
    decoding_steps,
    device_of,
    measure_machine,
)
from moe_lessons.analysis.timing import WARM_UP, finish, moved, own_clock, take_turns
from moe_lessons.nn import LanguageModel, evaluating, is_moe, torch_threads
from moe_lessons.nn.attention import Attention
from moe_lessons.support.errors import check_seed
from moe_lessons.training import bar

PRODUCTS, ROUTING, ATTENTION, REST = PARTS = "products with weights", "routing", "attention and KV cache", "other"
MULTIPLY = ("linear", "grouped_mm")  # by which the layers of `nn` multiply with weights


class Stopwatch:
    """The seconds that pass, but for its own, shared out among parts: what begins takes over until it ends."""

    def __init__(self, device: torch.device):
        self.device, self.clock, self.spent, self.open = device, own_clock(device), Counter(), [REST]
        self.since = self.now()

    def now(self) -> float:
        finish(self.device)
        return self.clock()

    def turn(self, begins: str | None = None) -> None:
        """Begin a part, or end the one that began last."""
        self.spent[self.open[-1]] += self.now() - self.since
        self.open.append(begins) if begins else self.open.pop()
        self.since = self.clock()

    def timed(self, part: str, call: Callable[..., Tensor], *args, **kwargs) -> Tensor:
        """Call, and count it as a part, but a product within a router as ROUTING."""
        self.turn(ROUTING if self.open.count(ROUTING) == 2 else part)
        y = call(*args, **kwargs)
        self.turn()
        return y


@contextmanager
def watched(model: LanguageModel, watch: Stopwatch) -> Iterator[None]:
    """Within it, a stopwatch is told of what the model does: attention, mixtures, routers, and products."""
    parts = {part: ATTENTION for part in model.modules() if isinstance(part, Attention)}
    for moe in filter(is_moe, model.modules()):
        parts |= {moe: ROUTING, moe.router: ROUTING}
    products = {name: partial(watch.timed, PRODUCTS, getattr(F, name)) for name in MULTIPLY if hasattr(F, name)}
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(F, **products))
        for module, part in parts.items():
            stack.enter_context(patch.object(module, "forward", partial(watch.timed, part, module.forward)))
        yield


def decode_watched(seen: list[Counter], step: partial) -> None:
    """Decode a token, by one of `decoding_steps`, and append the seconds of each part to `seen`."""
    model = step.args[0]
    watch = Stopwatch(model.embed.weight.device)
    with watched(model, watch):
        watch.since = watch.now()
        step()
        watch.turn()
    seen.append(watch.spent)


def step_parts(
    models: Mapping[str, LanguageModel], batch_sizes: Sequence[int] = (1, 4, 16, 64), *, repeats=5, seed=0, device=None
) -> pd.DataFrame:
    """Measure where the milliseconds of a decoding step go: a row for each batch size and model, medians of `repeats`.

    Steps are measured in turns, as they are, `whole`, and with a stopwatch, which has the shares of their `PARTS`:
    these sum to the whole; at batch size 1 four in a row, as in decoding. `missed`: by which share a step with
    the stopwatch takes longer. `promise`: how long its bytes take at least, by `measure_machine`. `is_busy`: whether
    other programs took much of the machine meanwhile. device: see `decode_speed`."""
    check_models(models, batch_sizes)
    models = moved(models, device)
    place = device_of(models)
    generator, rows = torch.Generator().manual_seed(check_seed(seed)), []
    vocab_size = min(model.config.vocab_size for model in models.values())
    with torch_threads(1), evaluating(*models.values()), watching_others() as others, torch.inference_mode():
        bytes_per_ms = measure_machine(place).bytes_per_second / 1000
        for batch in bar(batch_sizes, "batch sizes"):
            tokens = max(1, IN_A_ROW // batch)
            ids = torch.randint(vocab_size, (batch, PROMPT + tokens), generator=generator)
            steps, with_watch, seen = [], [], {name: [] for name in models}
            for name, model in models.items():
                own = decoding_steps(model, ids)
                steps += own
                with_watch += [partial(decode_watched, seen[name], step) for step in own]
            turns = np.array(take_turns([*steps, *with_watch], repeats, place))
            wholes = turns[: len(steps)].reshape(len(models), tokens, repeats)
            for (name, model), whole in zip(models.items(), wholes, strict=True):
                spent = [[1000 * one[part] for part in PARTS] for one in seen[name][WARM_UP * tokens :]]
                parts, sums = np.median(spent, axis=0), np.sum(spent, axis=1)
                row = dict(zip(PARTS, parts * np.median(whole) / parts.sum()), whole=np.median(whole))
                row["missed"] = np.median(sums / whole.T.flatten()) - 1  # step by step
                row["promise"] = bytes_per_step(model, batch) / bytes_per_ms
                rows.append({"batch": batch, "model": name} | row)
    return pd.DataFrame(rows).assign(is_busy=others.are_busy)
