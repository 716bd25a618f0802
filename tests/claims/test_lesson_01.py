"""What lesson 01 says under 'What to notice'. What is trained is trained from three seeds."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from everywhere import seeds
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from moe_lessons.analysis import TransformerShape, count_parameters
from moe_lessons.analysis.counting import MODEL_SHAPES
from moe_lessons.exercises import causal_attention
from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.nn.attention import rotary, rotate
from moe_lessons.plots import write
from moe_lessons.tasks import TextTask, encode, make_text
from moe_lessons.training import Run, train

CONFIG = TransformerConfig(d_model=64, num_layers=2, num_heads=4, num_kv_heads=4, d_ff=192, moe_layers=())
SEEDS = seeds(3)
NOTEBOOK = Path(__file__).parents[2] / "notebooks/01_the_dense_transformer.ipynb"
PROMPTS = {"english": "The old ", "code": "def find_", "json": '{"id": '}


def model_of(seed: int, config: TransformerConfig = CONFIG) -> LanguageModel:
    with seeded(seed):
        return LanguageModel(config)


@pytest.fixture(scope="module")
def task() -> TextTask:
    return TextTask(["english", "code", "json"], context=64)


@pytest.fixture(scope="module")
def trained(task) -> list[Run]:
    """The lesson's model after its 300 steps, from each seed."""
    runs = [Run(model_of(seed), task, lr=0.005, batch_size=16, seed=seed) for seed in SEEDS]
    train(runs, 300)
    return runs


@torch.no_grad()
def own_weights(attention, x: torch.Tensor) -> torch.Tensor:
    """Read the weights of each head (H, T, T) for x (T, D), at most 16 tokens."""
    (T, D), H, h = x.shape, 4, 16
    attention, seen, values = deepcopy(attention), [], torch.zeros(1, H, T, h)
    attention.out_proj.weight.copy_(torch.eye(D))
    values[0, :, torch.arange(T), torch.arange(T)] = 1
    shares = attention(x[None], rotary(torch.arange(T), h), lambda k, v: (seen.append(v.shape) or k, values))
    assert seen == [(1, H, T, h)]
    return shares.view(T, H, h)[..., :T].transpose(0, 1)


@pytest.mark.claim("nobody-looks-ahead")
@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_looks_ahead(seed):
    """With the unit vectors as values and no mixing after the heads, the output is the shares themselves."""
    T, H = 13, 4
    x = torch.randn(T, 64, generator=torch.Generator().manual_seed(seed))
    shares = own_weights(model_of(seed).layers[0].attention, x)
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(H, T))
    own = causal_attention.answer(torch.randn(T, T))
    assert own.triu(1).abs().max() == 0 and own[0, 0] == 1
    assert shares.triu(1).abs().max() == 0 and torch.equal(shares[:, 0, 0], torch.ones(H))
    assert shares.tril().diagonal(dim1=1, dim2=2).min() > 0


@pytest.mark.claim("the-picture-shows-the-weights-of-the-model")
def test_the_picture_shows_the_weights_of_the_model(trained):
    """The scores of the cell, on a trained model, against what its attention does with unit vectors as values."""
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    (computing,) = (cell for cell in cells if "W_q, W_k, W_v =" in cell)
    for run in trained:
        names = {"torch": torch, "encode": encode, "model": run.model, "rotary": rotary, "rotate": rotate}
        exec(computing.replace("await live.finished()", ""), names)
        own = own_weights(run.model.layers[0].attention, names["x"])[0]
        torch.testing.assert_close(causal_attention.answer(names["scores"]), own)


@pytest.mark.claim("only-attention-carries-from-token-to-token")
@pytest.mark.parametrize("seed", SEEDS)
def test_only_attention_carries_from_token_to_token(seed):
    model, before, after = model_of(seed), encode("the old baker"), encode("the olx baker")
    layer, cos_sin = model.layers[0], rotary(torch.arange(13), 16)

    def changed(function) -> list[int]:
        difference = (function(before) - function(after)).abs().amax(dim=1)
        return (difference > 1e-6).nonzero().flatten().tolist()

    assert changed(lambda ids: layer.ffn(model.embed(ids))) == [6]
    assert changed(lambda ids: layer(model.embed(ids)[None], ids[None], cos_sin)[0][0]) == list(range(6, 13))


@pytest.mark.claim("the-ffn-holds-most")
def test_the_ffn_holds_most():
    ours = TransformerShape(256, 64, 2, 4, 4, 16, 192, tied_embedding=True)
    mistral = MODEL_SHAPES["Mistral 7B (dense)"]
    assert ours.count == count_parameters(model_of(0))

    def shares(shape, context):
        """Return the FFN's share of a layer's parameters and FLOPs, and the share of all FLOPs that use no weights."""
        parts, total = shape.parameters(), shape.flops_per_token(context)
        ffn, weights = parts["experts"].total, parts["experts"].total + parts["attention"].total
        in_layers = total - 2 * shape.vocab_size * shape.d_model
        return ffn / weights, 2 * ffn / in_layers, (total - shape.flops_per_token()) / total

    assert shares(ours, 64)[:2] == pytest.approx((0.69, 0.6), abs=0.01)
    assert shares(mistral, 4096)[:2] == pytest.approx((0.81, 0.7), abs=0.01)


@pytest.mark.claim("every-parameter-works-for-every-token")
def test_every_parameter_works_for_every_token(trained, task):
    x, y = task.batch(1, torch.Generator().manual_seed(0))
    for model in (*map(model_of, SEEDS), *(run.model for run in trained)):
        for position in range(0, 64, 7):
            model.zero_grad()
            F.cross_entropy(model(x[:, position, None])[0][0], y[:, position]).backward()
            assert min((w.grad != 0).float().mean() for layer in model.layers for w in layer.ffn.parameters()) > 0.99


@pytest.mark.claim("it-learns-to-write")
def test_it_learns_to_write(trained, task):
    corpus = make_text("english", 220_000)
    vocabulary, in_domain = set(corpus.split()), {"code": 0, "json": 0}

    def known(samples) -> float:
        words = [word for sample in samples for word in sample.split()[2:-1]]
        return sum(word in vocabulary for word in words) / len(words)

    for seed, run in zip(SEEDS, trained):
        assert run.records[0].loss > 5 and run.evaluate(300)["loss"] < 0.5
        assert known([write(model_of(seed), PROMPTS["english"], seed=s) for s in seeds(5)]) < 0.1
        samples = {name: [write(run.model, prompt, seed=s) for s in seeds(20)] for name, prompt in PROMPTS.items()}
        assert known(samples["english"]) > 0.7
        in_domain["code"] += sum("):\n    " in sample for sample in samples["code"])
        in_domain["json"] += sum('"tags": [' in sample or '"active": ' in sample for sample in samples["json"])
    assert min(in_domain.values()) >= 40, in_domain  # of 60


@pytest.mark.claim("the-cache-saves-work-and-changes-nothing")
def test_the_cache_saves_work_and_changes_nothing(trained):
    prompt = encode(PROMPTS["english"])[None]
    for run in trained:
        texts, work = [], []
        for use_cache in (True, False):
            with FlopCounterMode(display=False) as counter:
                texts.append(run.model.generate(prompt, 80, temperature=0, use_cache=use_cache))
            work.append(counter.get_flop_counts()["Global"][torch.ops.aten.mm])
        assert torch.equal(*texts)
        assert work[1] / work[0] == pytest.approx(sum(range(8, 88)) / 87, rel=0.01)  # all again, or each once
        assert 35 < work[1] / work[0] < 50
    big, small = (LanguageModel(replace(CONFIG, num_kv_heads=heads)).new_cache() for heads in (4, 2))
    assert big.nbytes == 2 * small.nbytes == 2 * 512 * CONFIG.max_positions
