"""Texts: who serves which letter, domain and kind of bytes; what a model writes, what surprises it, where it looks."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from moe_lessons.analysis.traces import expert_shares
from moe_lessons.nn import LanguageModel, torch_threads
from moe_lessons.plots.marks import Axis, Cells, Panel, Text, experts_axis
from moe_lessons.plots.panels._history import as_array, num_experts, of_layer
from moe_lessons.plots.still import FONT, visible
from moe_lessons.plots.theme import LIGHT, axes_for, styled
from moe_lessons.support.errors import check_choice, check_positive_int
from moe_lessons.tasks import decode, encode

TITLE = "Text, coloured by the first choice"
FIRST_LINES = re.compile(r"(?:[^\n]{36}|[^\n]{0,35}\n){3}")  # how much of each domain is shown: letters and lines
LONGEST_NAME = 22  # characters that the name of a group has room for
PROMPT, LENGTH = 8, 120  # bytes that a model is given, to go on from; characters that are shown of each text


def text(view) -> Panel:
    """Show a passage of each domain, from the beginning of a line; each letter has the colour of its first choice."""
    num_experts(view)  # refuses a model without experts
    table = view.traced[view.traced["layer"] == view.state.layer]
    ids, experts = (table[name].to_numpy().reshape(table["sequence"].nunique(), -1) for name in ("byte", "expert0"))
    domain = table["domain"].to_numpy().reshape(ids.shape)[:, 0]  # (sequences,)
    passages = {}
    for name in dict.fromkeys(domain):
        in_domain = domain == name
        row, start = line_start(ids[in_domain], room=ids.shape[1] // 2)
        data, served = bytes(ids[in_domain][row, start:].tolist()), experts[in_domain][row, start:]
        end = first_lines(data)
        passages[name] = data[:end], served[:end]
    return text_panel(list(passages.values()), tuple(passages), of_layer(TITLE, view))


def line_start(ids: np.ndarray, room: int) -> tuple[int, int]:
    """Find in bytes (N, T) a row and the place where a line begins, with `room` more bytes; 0, 0 where none does."""
    rows, places = np.nonzero(ids[:, : max(ids.shape[1] - room, 0)] == ord("\n"))
    return (int(rows[0]), int(places[0]) + 1) if len(rows) else (0, 0)


def first_lines(data: bytes) -> int:
    found = FIRST_LINES.match(data.decode(errors="surrogateescape"))
    return len(found[0].encode(errors="surrogateescape")) if found else len(data)


def text_panel(passages, names=(), title: str = TITLE, says=()) -> Panel:
    """Show passages, of each its bytes and the expert of each byte (N,), -1: none. says: see `Text`."""
    signs = [list(characters(data)) for data, _ in passages]
    texts = ["".join(char for char, _ in pairs) for pairs in signs]
    sizes = np.array([size for pairs in signs for _, size in pairs], "u1")
    experts = np.concatenate([served for _, served in passages]).astype("i2")
    return Panel(title, [Text(texts, names, experts, sizes, says)], width=6, height=40 + 85 * len(texts))


def characters(data: bytes) -> Iterator[tuple[str, int]]:
    """Yield each character of UTF-8 and how many bytes it has; '�' for a byte of none."""
    for char in data.decode(errors="surrogateescape"):  # which makes a surrogate of each byte that fits nowhere
        yield "�" if "\ud800" <= char <= "\udfff" else char, len(char.encode(errors="surrogateescape"))


def colored_trace(trace: pd.DataFrame, layer: int, title: str = "") -> Panel:
    """Show a text in which each letter has the colour and the number of the expert that served it first; a tip has all
    experts of a byte and their weights. `widgets.Picture` shows it. trace: of one text, by `analysis.trace_text`."""
    check_choice("layer", layer, trace["layer"].unique().tolist())
    rows = trace[trace["layer"] == layer].sort_values("position")
    if rows["position"].duplicated().any():
        raise ValueError("trace must be of one text, got several")
    experts, weights = (rows.filter(regex=rf"^{kind}\d+$").to_numpy() for kind in ("expert", "weight"))  # (rows, K)
    served = [[f"E{e} {w:.2f}" for e, w in zip(*row) if e >= 0] for row in zip(experts, weights)]
    data, says = bytes(rows["byte"].tolist()), [", ".join(names) or "no expert" for names in served]
    made = text_panel([(data, experts[:, 0])], (), title or f"{TITLE} in layer {layer}", says)
    return replace(made, width=12, height=30 + 36 * (1 + len(data) // 88 + data.count(b"\n")))


def shares_panel(shares: pd.DataFrame, title: str) -> Panel:
    """Show in percent which share of each group of tokens goes to each expert, in two directions of colour from 1/E."""
    if not isinstance(shares, pd.DataFrame) or shares.empty:
        raise ValueError(f"shares must be a DataFrame with a row for each group of tokens, got {shares!r}")
    values = shares.to_numpy(dtype=np.float32)
    experts = shares.shape[1]
    sums = values.sum(axis=1)
    if (values < 0).any() or not np.allclose(sums[~np.isnan(sums)], 1, atol=1e-4):
        raise ValueError(f"shares must be at least 0 and sum to 1 in each row, got the sums {sums.round(3).tolist()}")
    names = [f"layer {name}" if shares.index.name == "layer" else str(name) for name in shares.index]
    most = min(1, (4 if experts <= 16 else 8) / experts)
    cells = Cells(values, even=1 / experts, most=most, numbers=True, rows="group")
    y = Axis(len(names) - 0.5, -0.5, ticks=[(row, name[:LONGEST_NAME]) for row, name in enumerate(names)])
    return Panel(title, [cells], experts_axis(experts), y, width=6)


def shares_of(view, by: str, title: str) -> Panel:
    num_experts(view)  # refuses a model without experts
    groups = view.traced[by].cat.remove_unused_categories().cat.categories
    return shares_panel(expert_shares(view.traced, by, view.state.layer).reindex(groups), of_layer(title, view))


def domains(view) -> Panel:
    return shares_of(view, "domain", "Domains, % of each row")


def classes(view) -> Panel:
    return shares_of(view, "byte_class", "Kinds of bytes, % of each row")


def writing(view) -> Panel:
    """Show how the model goes on from the beginning of a held-out line of each domain."""
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
    """Make a panel in which the model of the first run goes on from each of your prompts, by name: see `write`."""
    return lambda view: written_panel(prompts, [write(view.main_run.model, p, num_bytes) for p in prompts.values()])


def written_panel(names: Collection[str], texts: Iterable[str]) -> Panel:
    return Panel("What it writes", [Text(list(texts), tuple(names))], width=6, height=40 + 70 * len(names))


def write(model: LanguageModel, prompt: str, num_bytes: int = 80, seed: int = 0) -> str:
    """Write the prompt and how a model of bytes goes on from it: see `LanguageModel.generate`."""
    check_positive_int("num_bytes", num_bytes)
    ids = encode(prompt)[None].to(model.embed.weight.device)  # (1, T)
    with torch_threads(1):
        return decode(model.generate(ids, num_bytes, temperature=0.7, seed=seed)[0])


def attention_heatmap(weights, text: str) -> Axes:
    """Draw attention weights (T, T): a row for each token of `text`, a column for each it attends to; white: zero."""
    weights = as_array(weights)
    if weights.shape != (len(text), len(text)):
        raise ValueError(f"weights must have the shape {(len(text), len(text))} of the text, got {weights.shape}")
    ax = axes_for(4.8, 4.2, "Attention weights of one head", "attends to", "token")
    seen = np.ma.masked_equal(weights, 0)
    image = ax.imshow(seen, norm=PowerNorm(0.5, 0, 1), cmap="cividis", interpolation="nearest")  # small ones differ
    _name_letters(ax.xaxis, text)
    _name_letters(ax.yaxis, text)
    styled(ax.figure.colorbar, image, ax=ax, label="attention weight (square-root scale)")
    return ax


def _name_letters(axis, text: str) -> None:
    signs = ["␣" if char == " " else visible(char) for char in text]
    axis.set_ticks(range(len(text)), signs, family=FONT, color=LIGHT.foreground)
