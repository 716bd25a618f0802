"""What the page reads a text with is the language model itself: its graph, run by onnxruntime, beside PyTorch."""

import gzip

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moe_lessons.tasks import encode as to_bytes
from moe_lessons.tasks import make_text
from web import text_model
from web.graphs import export_text
from web.text_model import PATH, WINDOW, new_model, stored_models, stored_weights

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra site")


@pytest.fixture(scope="module")
def graph():
    return export_text(new_model(), WINDOW)


@pytest.fixture(scope="module")
def read(graph):
    """read(weights, bytes, padding): what the graph reads of a text that is padded to the window, by name."""
    session = onnxruntime.InferenceSession(graph)
    names = [output.name for output in session.get_outputs()]

    def run(weights, ids, padding=0):
        window = np.full(WINDOW, padding, "i4")
        window[: len(ids)] = ids
        return dict(zip(names, session.run(None, {"weights": weights.numpy(), "ids": window})))

    return run


@pytest.mark.parametrize("place, name", [(0, "Trained"), (1, "Untrained")])
def test_the_graph_reads_as_the_model_does_and_no_byte_sees_what_follows(read, place, name):
    model, ids = stored_models()[name], to_bytes(make_text("json", 1, seed=5))[:50]
    weights, T = stored_weights()[place], len(ids)
    with torch.no_grad():
        logits, routings = model(ids[None])
        probs = logits[0].softmax(dim=-1).numpy()
        surprise = F.cross_entropy(logits[0, :-1], ids[1:]).item()
    got, other = read(weights, ids), read(weights, ids, padding=200)
    for names, own in ((name, value[..., :T, :]) for name, value in got.items() if value.ndim > 1):
        assert np.array_equal(own, other[names][..., :T, :]), names
    for layer, routing in enumerate(routings):
        assert got["probs"][layer, :T] == pytest.approx(routing.router_probs.numpy(), abs=1e-4)
        assert np.array_equal(got["experts"][layer, :T], routing.topk_indices.numpy())
        assert got["serves"][layer, :T] == pytest.approx(routing.topk_weights.numpy(), abs=1e-4)
    assert np.take_along_axis(probs, got["bytes"][:T], axis=1) == pytest.approx(got["next"][:T], abs=1e-5)
    assert got["next"][:T] == pytest.approx(-np.sort(-probs, axis=1), abs=1e-5)
    assert got["surprise"][T - 2] == pytest.approx(surprise, abs=1e-4)


def test_the_control_is_the_same_model_before_its_first_step_and_all_of_it_is_small(graph):
    trained, untrained = stored_weights()
    own = torch.cat([p.detach().flatten() for p in new_model().parameters()])
    assert torch.equal(untrained, own.half()) and not torch.equal(trained, untrained)
    assert PATH.stat().st_size + len(gzip.compress(graph)) < 1_500_000


VISITORS = ["Hello, how are you today?", "It was raining when we left the station, so we took a taxi home."]


@pytest.mark.parametrize("text", [*VISITORS, *text_model.EXAMPLES.values()])
def test_english_that_a_visitor_types_surprises_it_less_than_a_guess(text):
    ids = to_bytes(text)[:WINDOW]
    surprise = {}
    for name, model in stored_models().items():
        with torch.no_grad():
            surprise[name] = F.cross_entropy(model(ids[None])[0][0, :-1], ids[1:]).item()
    assert surprise["Trained"] < 3.5 < 5.545 < surprise["Untrained"]  # a guess among 256 bytes: 5.545


def test_what_it_was_trained_on_is_ascii_as_the_page_says():
    assert all(text().isascii() for text in text_model.REAL_TEXTS.values())


def test_one_command_trains_it_and_keeps_both(tmp_path, capsys):
    path = tmp_path / "models" / "text.z"
    text_model.main(path, steps=21)
    trained, untrained = stored_weights(path)
    assert torch.equal(untrained, stored_weights()[1]) and not torch.equal(trained, untrained)
    learned, kept = (float(line.split()[-1]) for line in capsys.readouterr().out.splitlines())
    assert kept == pytest.approx(learned, abs=0.01) and learned < 3  # from 5.55; float16 keeps the weights
