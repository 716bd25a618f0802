"""One page of who worked while a published mixture read a text: what `python -m moe_lessons lens` writes."""

import functools
import inspect
import json
import math
import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from moe_lessons.analysis.load import describe_load, load_statistics
from moe_lessons.analysis.traces import mutual_information, repeats, trace_table
from moe_lessons.hub import Lens, byte_tokenizer
from moe_lessons.nn import Routing
from moe_lessons.plots import THEMES, LessonFigure, layer_loads
from moe_lessons.plots.panels.shares import load_panel
from moe_lessons.plots.still import plot
from moe_lessons.support.errors import first_line
from moe_lessons.training.run import DEAD_SHARE

TEMPLATE = Path(__file__).with_name("lens_page.html")
# Columns of two tables: the figure's name, what stands above it, how it is written.
BALANCE, CHOICE = json.loads(TEMPLATE.with_suffix(".json").read_text(encoding="utf-8")).values()
WINDOW, BATCH = 512, 4096  # tokens: of a sequence, and of a call, at most
TYPICAL = 6  # tokens that are shown of each expert
SHOWN = 12  # layers whose experts' tokens are shown
OFTEN = 30  # times that an expert should be met


def read_text(path: str) -> str:
    try:
        if (text := Path(path).read_text(encoding="utf-8")).strip():
            return text
        error = "it is empty"
    except (OSError, UnicodeDecodeError) as caught:
        error = getattr(caught, "strerror", None) or caught
    raise ValueError(f"--text must be a file in UTF-8 with something to read in it, got {path}: {error}")


def load_model(name: str, device: torch.device) -> tuple[nn.Module, Any]:
    """The model and its tokenizer: that of the bytes where it has none and reads 256 tokens."""
    if Path(name).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    elif Path(name).exists() or Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ValueError(f"MODEL must be a folder that save_pretrained wrote, got {name}, which is none")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import transformers
    from huggingface_hub import constants, utils

    transformers.logging.disable_progress_bar()
    try:
        if not constants.HF_HUB_OFFLINE:
            utils.get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # without a network: what is not on this machine would be asked for again and again
        constants.HF_HUB_OFFLINE = True
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        kinds = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText  # of text alone, or with it
        kind = next((kind for kind in kinds if type(config) in kind._model_mapping), kinds[0])
        model, info = kind.from_pretrained(name, trust_remote_code=False, output_loading_info=True)
    except Exception as error:  # of the hub, of a broken file, of a model that transformers does not know
        raise ValueError(f"{name} could not be loaded: {first_line(error)}") from None
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{name} must hold all weights, got it without {len(missing)} of them, such as {missing[0]}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception:
        tokenizer = None
    vocab_size = model.config.get_text_config().vocab_size
    if tokenizer is None or not tokenizer("a").input_ids:  # some families have one that knows no token
        if vocab_size != 256:
            raise ValueError(f"{name} must have a tokenizer, got none: save one there with save_pretrained")
        tokenizer = byte_tokenizer()
    if model.dtype == torch.float64:
        model.set_experts_implementation("eager")  # the others know no float64
    return model.eval().to(device), tokenizer


def look(model: nn.Module, tokenizer, text: str, limit: int) -> tuple[dict[str, Any], dict[str, Routing]]:
    """What the routers did with the first `limit` tokens of a text: the figures of --json, and the layers' routings."""
    ids = torch.tensor(tokenizer(text[: 20 * limit], add_special_tokens=False, verbose=False).input_ids[:limit])
    vocab_size = model.get_input_embeddings().num_embeddings
    if len(ids) == 0 or ids.max() >= vocab_size:
        raise ValueError(f"the tokenizer must make tokens below {vocab_size}, which the model reads, of --text")
    config = model.config.get_text_config()
    window = min(WINDOW, getattr(config, "max_position_embeddings", None) or WINDOW, len(ids))
    whole = len(ids) // window * window  # in sequences of `window`; what is left over is in one that is shorter
    parts = [*ids[:whole].view(-1, window).split(BATCH // window), *([ids[None, whole:]] if whole < len(ids) else [])]
    more = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with Lens(model) as lens, torch.no_grad():
        for part in parts:
            model(part.to(model.device), use_cache=False, **more)
    routings, balance, place = lens.routings, lens.balance(), np.arange(len(ids))
    tokens = pd.DataFrame({"sequence": place // window, "position": place % window, "byte": ids, "domain": "text"})
    layers = []
    for number, (name, routing) in enumerate(routings.items()):
        figures = {"layer": number, "name": name} | balance.loc[name].to_dict()
        figures |= of_layer(trace_table(tokens, [routing]), routing, tokenizer)
        layers.append({key: None if value != value else value for key, value in figures.items()})  # NaN: not known
    same = len({layer["num_experts"] for layer in layers}) == 1
    figures = {"class": type(model).__name__, "tokens": len(ids), "window": window}
    finest = "The even share itself is near 1 % of the tokens here: the × of the picture, under 1 %, says little."
    is_fine = any(dead_share(layer["top_k"], layer["num_experts"]) < DEAD_SHARE for layer in layers)
    figures |= {"verdict": verdict(layers, len(ids)), "notes": [finest] * is_fine}
    return figures | {"pooled_loss": lens.pooled_loss() if same else None, "layers": layers}, routings


def of_layer(table: pd.DataFrame, routing: Routing, tokenizer) -> dict[str, Any]:
    """What one layer did, beside its balance. table: a row for each token, as `trace_table` makes it."""
    wanted, num_tokens, num_experts = routing.demand_per_expert, routing.num_tokens, routing.num_experts
    top_k = max(1, round(wanted.sum().item() / num_tokens))
    at_random = torch.rand(num_tokens, num_experts, generator=torch.Generator().manual_seed(0)).topk(top_k).indices
    served = table[table["expert0"] >= 0]
    first, read = served["expert0"].to_numpy(), served["byte"].to_numpy()
    return {
        "num_experts": num_experts,
        "top_k": top_k,
        "load": (wanted / wanted.sum().clamp(min=1)).tolist(),
        "dead": int((wanted < dead_share(top_k, num_experts) * num_tokens).sum()),
        "max_over_mean_by_chance": load_statistics(at_random.flatten().bincount(minlength=num_experts)).max_over_mean,
        **repeats(table).loc[0, ["repeated", "chance"]],
        "bits_of_token": mutual_information(first, read),
        "bits_shuffled": mutual_information(np.random.default_rng(0).permutation(first), read),
        "typical_tokens": typical(table, num_experts, tokenizer),
    }


def dead_share(top_k: int, num_experts: int) -> float:
    """An expert is dead under this share of the tokens: the course's, or half of the even share if less."""
    return min(DEAD_SHARE, top_k / num_experts / 2)


def typical(table: pd.DataFrame, num_experts: int, tokenizer) -> list[list[tuple[str, int, int]]]:
    """The tokens that tell most of each expert: what is written, how often it served them, how often they were read.

    By a token's part in the mutual information: n(t, e) · log (n(t, e) · N / (n(t) · n(e))), of N assignments, if > 0.
    """
    read = table["byte"].value_counts()
    served = table.melt("byte", list(table.filter(regex=r"^expert\d+$")), value_name="expert").query("expert >= 0")
    pairs = served.groupby(["expert", "byte"]).size().rename("count").reset_index()
    of_expert, of_token = (pairs["count"].groupby(pairs[name]).transform("sum") for name in ("expert", "byte"))
    pairs["score"] = pairs["count"] * np.log(pairs["count"] * len(served) / (of_expert * of_token))
    best = pairs[pairs["score"] > 0].sort_values(["score", "byte"], ascending=[False, True])
    found: list[list[tuple[str, int, int]]] = [[] for _ in range(num_experts)]
    for expert, token, count in best.groupby("expert")[["expert", "byte", "count"]].head(TYPICAL).to_numpy():
        found[expert].append((written(tokenizer, int(token)), int(count), int(read[token])))
    return found


@functools.cache
def written(tokenizer, token: int) -> str:
    """What a token stands for: a space as ␣, half a letter by its bytes."""
    text, name = tokenizer.decode([token]), str(tokenizer.convert_ids_to_tokens(token))
    if text and "\ufffd" not in text:
        known = {" ": "␣", "\n": "↵"}
        return "".join(known.get(c, c if c.isprintable() else f"\\x{ord(c):02x}") for c in text)
    signs = byte_tokenizer().get_vocab()
    is_bytes = not name.startswith("<") and all(c in signs for c in name)
    return " ".join(f"0x{signs[c]:02X}" for c in name) if is_bytes else name


def verdict(layers: list[dict], tokens: int) -> str:
    """The main thing, in two sentences: first of all, that the tokens are too few to say it. With an even share, an
    expert should be met `OFTEN`; with 1 % of the tokens, 5 times."""
    kinds = {(layer["top_k"], layer["num_experts"]) for layer in layers}
    wanted = math.ceil(max(max(OFTEN * e / k, 5 / dead_share(k, e)) for k, e in kinds))
    if tokens < wanted:
        return f"{tokens:,} tokens are too few to tell which experts of this model work: read {wanted:,} or more."
    ill = [layer for layer in layers if layer["dead"]]
    if not ill:
        return f"All experts work, in each of {len(layers)} layers. {busiest(layers)}"
    worst = max(ill, key=lambda layer: layer["dead"] / layer["num_experts"])
    receive = "receives" if worst["dead"] == 1 else "receive"
    said = f"{worst['dead']} of {worst['num_experts']} experts in layer {worst['layer']} "
    said += f"{receive} under {limit(worst)}."
    if len(ill) > 1:
        said += f" In all, {sum(layer['dead'] for layer in ill)} experts in {len(ill)} of {len(layers)} layers do."
    return said + " In the other layers all experts work." * (len(ill) == 1 < len(layers))


def busiest(layers: list[dict]) -> str:
    worst = max(layers, key=lambda layer: layer["max_over_mean"])
    share = f"{worst['max_over_mean']:.1f} times the even share (by chance {worst['max_over_mean_by_chance']:.1f})"
    return f"The busiest, expert {np.argmax(worst['load'])} of layer {worst['layer']}, has {share}."


def limit(layer: dict) -> str:
    return f"{100 * dead_share(layer['top_k'], layer['num_experts']):.2g} % of the tokens"


def page(figures: dict[str, Any], routings: dict[str, Routing]) -> str:
    """One page that needs nothing else, light or dark as its reader likes."""
    layers, pooled = figures["layers"], figures["pooled_loss"]
    sizes = " or ".join(sorted({f"{layer['top_k']} of {layer['num_experts']}" for layer in layers}))
    read = f"It read the first {figures['tokens']:,} tokens of {figures['text']}, in sequences of {figures['window']}."
    lossy = max(layers, key=lambda layer: layer["load_balancing_loss"])
    worst = max(layers, key=lambda layer: (layer["dead"] / layer["num_experts"], layer["max_over_mean"]))
    columns = {key: BALANCE[key] for key in BALANCE if key != "dropped_share" or any(layer[key] for layer in layers)}
    texts = {key: figures[key] for key in ("model", "class", "verdict")} | {
        "about": f"{len(layers)} layers of experts, here counted from 0; {sizes} for each token. {read}",
        "dead": limit(worst),
        "pooled": "unknown" if pooled is None else f"{pooled:.3f}",
        "most": f"{lossy['load_balancing_loss']:.3f}, in layer {lossy['layer']}",
        "worst": worst["layer"],
        "description": busiest([worst]),
    }
    if dead_share(worst["top_k"], worst["num_experts"]) == DEAD_SHARE:
        texts["description"] = describe_load(worst["load"], worst["top_k"], worst["dropped_share"])
    some = np.linspace(0, len(layers) - 1, min(SHOWN, len(layers))).round().astype(int)  # from first to last
    shown = [layers[i] for i in sorted({*some.tolist(), worst["layer"]})]

    bars = functools.partial(plot, load_panel(worst["load"]))
    shares = ", ".join(f"E{expert} {share:.1%}" for expert, share in enumerate(worst["load"]))
    parts = {
        "notes": "".join(f'<p class="note">{escape(note)}</p>' for note in figures["notes"]),
        "balance": by_layer(layers, columns, "Balance by layer"),
        "loads": "".join(pictures(layers, routings)),
        "bars": picture(bars, worst["num_experts"], 2.6, "Load", shares),
        "choice": by_layer(layers, CHOICE, "First choices by layer"),
        "tokens": "".join(experts(layer, layer is worst) for layer in shown),
    }
    parts |= {f"{name}_{key}": value for name, theme in THEMES.items() for key, value in vars(theme).items()}
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute({key: escape(str(text)) for key, text in texts.items()} | parts)


def by_layer(layers: list[dict], columns: dict[str, tuple[str, str]], label: str) -> str:
    said = {
        name: ["–" if layer[key] is None else form.format(layer[key]).replace("-0.00", "0.00") for layer in layers]
        for key, (name, form) in columns.items()
    }
    return table(pd.DataFrame(said, [str(layer["layer"]) for layer in layers]), label, "layer")


def table(frame: pd.DataFrame, label: str, corner: str, kind: str = "") -> str:
    """Of strings that are HTML."""
    with pd.option_context("display.max_colwidth", None):
        return scrolling(frame.rename_axis(columns=corner).to_html(border=0, escape=False, classes=kind), label)


def scrolling(content: str, label: str) -> str:
    """Too wide for a phone: moved by a finger, or by the arrow keys."""
    return f'<div class="wide" role="region" aria-label="{escape(label)}" tabindex="0">{content}</div>'


def pictures(layers: list[dict], routings: dict[str, Routing]) -> Iterator[str]:
    """A row for each layer: those with the same number of experts are in one picture."""
    for size in dict.fromkeys(layer["num_experts"] for layer in layers):
        own = [layer for layer in layers if layer["num_experts"] == size]
        draw = functools.partial(layer_loads, [routings[layer["name"]] for layer in own])
        says = f"A row for each layer, a column for each of {size} experts: its load over the even share."
        yield picture(draw, size, 1.2 + 0.3 * len(own), f"Load of {size} experts", f"{says} {busiest(own)}")


def picture(draw: Callable[..., Any], num_experts: int, height: float, label: str, says: str) -> str:
    """What `draw(ax=…, theme=…)` draws, in the theme of the reader. height: in inches."""
    source = {}
    for name, theme in THEMES.items():
        figure = LessonFigure(6.4 if num_experts <= 16 else 8.8, height, theme)
        draw(ax=figure.add_subplot(), theme=name)
        figure.set_dpi(150)
        source[name] = f"data:image/png;base64,{b64encode(figure.png()).decode()}"
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{source["dark"]}">'
    image = f'<img width="{round(100 * figure.get_figwidth())}" alt="{escape(says)}" src="{source["light"]}">'
    return scrolling(f"<picture>{dark}{image}</picture>", label)


def experts(layer: dict, is_open: bool) -> str:
    """A layer's typical tokens, to be unfolded."""
    rows = [
        (f"{share:.1%}", " ".join(f"<span><code><bdi>{escape(t)}</bdi></code> {n} of {m}</span>" for t, n, m in tokens))
        for share, tokens in zip(layer["load"], layer["typical_tokens"])
    ]
    names = [f"E{expert}" for expert in range(len(rows))]
    made = table(pd.DataFrame(rows, names, ["load", "typical tokens"]), f"Layer {layer['layer']}", "expert", "tokens")
    summary = f"<summary>Layer {layer['layer']}: <code>{escape(layer['name'])}</code></summary>"
    return f"<details{' open' * is_open}>{summary}{made}</details>"
