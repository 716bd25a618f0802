"""What a language model writes while it learns."""

from collections.abc import Callable, Collection, Iterable, Mapping

import torch

from moe_lessons.nn import LanguageModel, torch_threads
from moe_lessons.plots.marks import Panel, Text
from moe_lessons.plots.panels.text import line_start
from moe_lessons.tasks import decode, encode

PROMPT = 8  # bytes that a model is given, to go on from
LENGTH = 120  # characters that are shown of each text


def writing(view) -> Panel:
    """How the model goes on from the beginning of a held-out line of each domain."""
    run, task = view.main_run, view.main_run.task
    if not isinstance(run.model, LanguageModel) or not hasattr(task, "held_out"):
        got = f"{type(run.model).__name__} with {type(task).__name__}"
        raise ValueError(f"model must be a LanguageModel with a TextTask where it writes, got {got}")
    ids, _, domain = task.held_out(8)
    prompts = []
    for rows in (ids[domain == number] for number in range(len(task.domains))):
        row, place = line_start(rows.numpy(), room=PROMPT)
        prompts.append(rows[row, place : place + PROMPT])
    prompts = torch.stack(prompts).to(run.device)  # of one length: all are continued at once
    num_bytes = min(LENGTH, run.model.config.max_positions) - PROMPT
    with torch_threads(1):  # single tokens of a small model: a second thread only costs
        return written_panel(task.domains, map(decode, run.model.generate(prompts, num_bytes, temperature=0.7)))


def writing_of(prompts: Mapping[str, str], num_bytes: int = 80) -> Callable[..., Panel]:
    """A panel in which the model of the first run goes on from each of your prompts, by name: see `write`."""

    def panel(view) -> Panel:
        return written_panel(prompts, [write(view.main_run.model, text, num_bytes) for text in prompts.values()])

    return panel


def written_panel(names: Collection[str], texts: Iterable[str], title: str = "What it writes") -> Panel:
    """Texts under their names."""
    return Panel(title, [Text(list(texts), tuple(names))], width=6, height=40 + 70 * len(names))


def write(model: LanguageModel, prompt: str, num_bytes: int = 80, seed: int = 0) -> str:
    """The prompt and how a model of bytes goes on from it: see `LanguageModel.generate`."""
    ids = encode(prompt)[None].to(model.embed.weight.device)  # (1, T)
    with torch_threads(1):
        return decode(model.generate(ids, num_bytes, temperature=0.7, seed=seed)[0])
