"""``python -m web.text_model``: train the language model of the page's view "your own text", in minutes, and keep its
weights, trained and untrained, in web/text.z. Beside the graph of `export_text` the view needs `text_manifest`.
"""

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from moe_lessons.analysis import trace_text
from moe_lessons.nn import LanguageModel, Routing, TransformerConfig, seeded
from moe_lessons.plots import colored_trace
from moe_lessons.plots.marks import Axis, Cells, Panel, Parts, Points, Route, encode_panel, experts_axis
from moe_lessons.plots.theme import percent
from moe_lessons.tasks import TextTask
from moe_lessons.tasks import encode as to_bytes
from moe_lessons.tasks.text import REAL_TEXTS
from moe_lessons.training import Run, train
from moe_lessons.widgets.canvas import COLORS

PATH = Path(__file__).with_name("text.z")
TRAIN_STEPS = 3000
BATCH = 32
WINDOW = 64  # bytes that it reads
SEED = 0
FIRST_LAYER = 1  # that is shown: in it most letters have several first choices
LIKELIEST, COLOR = 6, "#00838f"  # of the next bytes: how many are shown, and in which colour
EXAMPLES = {  # lines to begin with; none stands in what the model has seen
    "English": "The old baker finds a red apple in the garden behind the house.",
    "question": "Why does a larger model run faster than a small one?",
    "code": "def mean(values):\n    return sum(values) / len(values)\n",
    "Python help": "The function returns a new list if the argument is not a string",
}
TITLES = {
    "text": "{model}: first choices in layer {layer}",
    "route": "“{byte}” through the block of layer {layer}",
    "path": "By layer (○: served)",
    "next": "{model}: what follows “{byte}”",
}
HEAD, FEET = "token {token}, “{byte}”", ("on to layer {next}", "on to the output")  # of its way through a block
NAMED = {10: "↵", 32: "␣"}
NAMES = [NAMED.get(byte) or (chr(byte) if 32 < byte < 127 else f"byte {byte:X}") for byte in range(256)]
PAGE_WORDS = {
    "label": "Type a text, or begin with:",
    "model": "It is a language model of {parameters} parameters: {layers} layers of {experts} experts, of which "
    "{top_k} serve each byte. We trained it on Python's documentation and source, in {steps} steps of {batch} × "
    "{window} bytes. Untrained is the same model before its first step: the control. 'Write "
    "a letter' adds the likeliest one; 'Write on' draws each letter by its probability, with random numbers from seed "
    "0.",
    "surprise": "On average each byte of this text surprised the trained model by {trained} nats, the untrained one by "
    "{untrained}; a guess among 256 bytes would be 5.55.",
    "long": "Your text has {bytes} bytes: the model reads the last {window}.",
    "unseen": "It has never seen {letters}: its training text is ASCII.",
    "empty": "There is no text: type a letter, and the model reads it.",
    "letter": "Write the likeliest letter at the end",
    "on": "Write letter after letter, each drawn by its probability, until it is pressed again",
    "layer": "The layer whose experts are shown",
    "token": "The byte whose numbers are shown; it can also be selected in the text",
}


def main(path: Path = PATH, steps: int = TRAIN_STEPS) -> None:
    """Train it on real prose and code, and write the weights."""
    model, task = new_model(), TextTask(tuple(REAL_TEXTS), context=WINDOW)
    untrained = parameters_to_vector(model.parameters()).detach().clone()
    schedule = {"warmup_steps": 20, "decay_steps": steps, "max_grad_norm": 1.0}
    run = Run(model, task, lr=0.005, batch_size=BATCH, seed=SEED, **schedule)
    run.knobs.router_aux_loss_coef = 0.01
    train(run, steps)
    print("loss in nats a byte:", round(run.evaluate(256)["loss"], 3))
    weights = torch.stack([parameters_to_vector(model.parameters()).detach(), untrained])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(weights.half().numpy().astype("<f2").tobytes(), mtime=0))
    vector_to_parameters(stored_weights(path)[0].float(), model.parameters())
    print("and from the file:  ", round(run.evaluate(256)["loss"], 3))


def new_model() -> LanguageModel:
    with seeded(SEED):
        return LanguageModel(TransformerConfig())


def stored_weights(path: Path = PATH) -> Tensor:
    """Read the weights of the trained and of the untrained model: (2, P) float16."""
    numbers = np.frombuffer(gzip.decompress(path.read_bytes()), "<f2")
    return torch.from_numpy(numbers.reshape(2, -1).copy())


def stored_models(path: Path = PATH) -> dict[str, LanguageModel]:
    """Make both models with the weights that are stored."""
    models = {"Trained": new_model().eval(), "Untrained": new_model().eval()}
    for model, weights in zip(models.values(), stored_weights(path).float()):
        vector_to_parameters(weights, model.parameters())
    return models


@torch.no_grad()
def text_panels(models: dict[str, LanguageModel], text: str, layer: int, token: int) -> list[Panel]:
    """Show a text in the colours of a layer of each model; of a byte its way through a block, its experts in each
    layer, and what each model expects next."""
    texts, nexts = [], []
    ids = to_bytes(text)
    words = {"layer": layer, "next": layer + 1, "token": token, "byte": NAMES[ids[token]]}
    for name, each in models.items():
        made = colored_trace(trace_text(each, text), layer, TITLES["text"].format(model=name, **words))
        texts.append(replace(made, width=6, marks=[made.marks[0]._replace(selected=token)]))
        nexts.append(
            next_panel(each(ids[None])[0][0, token].softmax(dim=-1), TITLES["next"].format(model=name, **words))
        )
    routings = models["Trained"](ids[None])[1]
    weights = torch.zeros(routings[layer].num_experts)
    weights[routings[layer].topk_indices[token]] = routings[layer].topk_weights[token]
    head, foot = (text.format(**words) for text in (HEAD, FEET[layer == len(routings) - 1]))
    way = Route(routings[layer].router_probs[token].numpy(), weights.numpy(), head, foot)
    route = Panel(TITLES["route"].format(**words), [way], Axis(ticks=()), Axis(ticks=()), height=220)
    return [*texts, route, path_panel(routings, token, layer, TITLES["path"].format(**words)), *nexts]


def path_panel(routings: list[Routing], token: int, layer: int, title: str) -> Panel:
    """Show a row for each layer: what its router thinks of one byte, and who serves it."""
    probs = torch.stack([routing.router_probs[token] for routing in routings]).numpy()  # (L, E)
    served = [(e, row) for row, routing in enumerate(routings) for e in routing.topk_indices[token].tolist()]
    experts, layers = np.array(served, "i4").T
    y = Axis(len(probs) - 0.5, -0.5, "layer", [(row, str(row)) for row in range(len(probs))])
    marks = [Cells(probs, rows="layer", selected=layer), Points(experts, layers, expert=experts)]
    return Panel(title, marks, experts_axis(probs.shape[1]), y, width=2, height=220)


def next_panel(probs: Tensor, title: str) -> Panel:
    """Show the likeliest bytes of the probabilities (V,)."""
    values, likeliest = probs.topk(LIKELIEST)
    texts = list(map(percent, values.tolist()))
    bars = Parts([NAMES[byte] for byte in likeliest], ["probability"], values[:, None].numpy(), [COLOR], texts)
    return Panel(title, [bars], Axis(0, 1, ticks=[(0, "0 %"), (0.5, "50 %"), (1, "100 %")]), width=3, height=220)


def text_manifest() -> dict[str, Any]:
    """Say what the view needs beside its graph: the panels as `encode_panel` has them, whose numbers it fills in."""
    models, config = stored_models(), TransformerConfig()
    panels = text_panels(models, EXAMPLES["English"], layer=0, token=0)
    sizes = {
        "window": WINDOW,
        "layers": config.num_layers,
        "experts": config.num_experts,
        "top_k": config.top_k,
        "layer": FIRST_LAYER,
    }
    made = {"parameters": f"{stored_weights().shape[1]:,}", "steps": f"{TRAIN_STEPS:,}", "batch": BATCH}
    words = PAGE_WORDS | {"model": PAGE_WORDS["model"].format(**sizes, **made)}
    return sizes | {
        "panels": [encode_panel(panel, place)[0] for place, panel in enumerate(panels)],
        "examples": EXAMPLES,
        "models": list(models),
        "likeliest": LIKELIEST,
        "names": NAMES,
        "titles": TITLES,
        "ends": [HEAD, *FEET],
        "words": words,
        "colors": COLORS,
    }


if __name__ == "__main__":
    main()
