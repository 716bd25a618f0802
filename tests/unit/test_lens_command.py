"""`python -m moe_lessons lens`: the figures of the page are those of the routers, and what is wrong is one sentence."""

import json
import os
import re
import shutil
from html import unescape

import numpy as np
import pytest
import torch

from moe_lessons import __main__ as command_line
from moe_lessons.analysis import load_statistics
from moe_lessons.hub import export_model
from moe_lessons.nn import LanguageModel, TransformerConfig, seeded
from moe_lessons.tasks import encode, make_text

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
hf_families = pytest.importorskip("hf_families")

TAG = "<script>alert('&')</script>"  # also a token of the tokenizer below
TEXT = make_text("english", 3000, seed=1) + make_text("greek", 1000, seed=1)


@pytest.fixture(scope="module")
def ours() -> LanguageModel:
    """In its layer 1 experts 4 to 7 are never chosen: of a, -a, b, -b and four zeros, two are always above zero."""
    with seeded(0):
        model = LanguageModel(TransformerConfig(d_model=32, d_ff=16, num_layers=2, max_positions=64)).eval()
    with torch.no_grad():
        weight = model.layers[1].ffn.router.weight
        weight[1], weight[3] = -weight[0], -weight[2]
        weight[4:] = 0
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ours):
    """Models and a text: a Mixtral of ours, the same without a tokenizer, a Llama, and a Qwen3-MoE with a BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path = tmp_path_factory.mktemp("lens")
    (path / "text.txt").write_text(TEXT, encoding="utf-8")
    (path / "tags.txt").write_text((make_text("code", 50) + TAG) * 40, encoding="utf-8")
    export_model(ours, path / "mixtral")
    shutil.copytree(path / "mixtral", path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    export_model(LanguageModel(TransformerConfig(d_model=32, num_layers=1, moe_layers=())), path / "llama")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=[TAG], show_progress=False)
    bpe.train_from_iterator([TEXT], trainer)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    sizes |= {"num_hidden_layers": 3, "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 8}
    with seeded(0):
        qwen = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**sizes, mlp_only_layers=[0]))
    qwen.save_pretrained(path / "qwen3")
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe).save_pretrained(path / "qwen3")
    return path


def lens(folder, capsys, model, *options, text="text.txt"):
    code = command_line.main(["lens", str(folder / model), "--text", str(folder / text), *options])
    return code, *capsys.readouterr()


def test_the_figures_are_those_of_our_own_model(folder, capsys, ours):
    code, out, _ = lens(folder, capsys, "mixtral", "--json", "--tokens", "1000")
    figures, ids = json.loads(out), encode(TEXT)[:1000]
    assert code == 0 and figures["tokens"] == 1000 and figures["window"] == 64 and figures["notes"] == []
    assert figures["verdict"].startswith("4 of 8 experts in layer 1 receive under 1 % of the tokens. In the other")
    with torch.no_grad():
        parts = [ours(part[None])[1] for part in ids.split(64)]
    for number, layer in enumerate(figures["layers"]):
        probs = torch.cat([part[number].router_probs for part in parts])  # (T, E)
        chosen = torch.cat([part[number].topk_indices for part in parts])  # (T, K)
        counts = chosen.flatten().bincount(minlength=8)
        wanted = load_statistics(counts.tolist(), top_k=2)
        assert layer["load"] == pytest.approx((counts / 2000).tolist())
        assert (layer["max_over_mean"], layer["entropy"]) == pytest.approx((wanted.max_over_mean, wanted.entropy))
        assert layer["dead"] == wanted.dead == 4 * number
        loss = 8 * (counts / 2000 @ probs.mean(0)).item()
        assert layer["load_balancing_loss"] == pytest.approx(loss, rel=1e-4)
        first, places = chosen[:, 0].tolist(), [i for i in range(1, 1000) if i % 64]
        assert layer["repeated"] == pytest.approx(np.mean([first[i] == first[i - 1] for i in places]))
        assert layer["bits_of_token"] > 0.5 > 0.2 > abs(layer["bits_shuffled"])
        for expert, tokens in enumerate(layer["typical_tokens"]):
            assert bool(tokens) == bool(counts[expert])
            for sign, served, read in tokens:
                byte = int(sign, 16) if sign.startswith("0x") else ord({"␣": " ", "↵": "\n"}.get(sign, sign))
                assert read == (ids == byte).sum() and served == ((ids == byte) & (chosen == expert).any(1)).sum()
    assert 1 < figures["pooled_loss"] < figures["layers"][1]["load_balancing_loss"]


def test_a_model_of_bytes_needs_no_tokenizer_and_few_tokens_are_said_to_be_few(folder, capsys):
    said = [lens(folder, capsys, name, "--json", "--tokens", "300")[1] for name in ("mixtral", "bare")]
    assert said[0].replace("/mixtral", "/bare") == said[1]
    assert json.loads(said[0])["verdict"].startswith("300 tokens are too few to tell which experts of this model work")


def test_a_model_that_also_sees_reads_the_text(tmp_path, capsys):
    config, kind = hf_families.small("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration")
    config.text_config.vocab_size = 256
    with seeded(0):
        kind(config).save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    code, out, _ = lens(tmp_path, capsys, "model", "--json", "--tokens", "100")
    assert code == 0 and {layer["num_experts"] for layer in json.loads(out)["layers"]} == {8}


def test_one_page_that_needs_nothing_else(folder, capsys, tmp_path):
    out = tmp_path / "page & more.html"
    code, said, _ = lens(folder, capsys, "qwen3", "--out", str(out), text="tags.txt")
    html = out.read_text(encoding="utf-8")
    words = [unescape(word) for word in re.split("<[^>]*>", html)]
    verdict, *_, last = said.splitlines()
    assert code == 0 and os.listdir(tmp_path) == [out.name] and verdict in words and last == f"The page: {out}"
    assert not re.search(r"<(script|link|iframe)|url\(|@import|https?:", html)
    assert len(re.findall('<source [^>]*srcset="data:image/png;base64,', html)) == 2
    assert len(re.findall('<img [^>]*alt="[^"]+" src="data:image/png;base64,', html)) == 2
    assert TAG in words and " 40 of 40" in words  # it is read, and no part of the page
    assert "model.layers.1.mlp" in words and "model.layers.0.mlp" not in words


@pytest.fixture
def broken(folder, tmp_path):
    for name, of in {"cut": "mixtral", "deeper": "mixtral", "mute": "qwen3", "llama": "llama"}.items():
        shutil.copytree(folder / of, tmp_path / name, ignore=shutil.ignore_patterns("tokenizer*"))
    os.truncate(tmp_path / "cut" / "model.safetensors", 5000)
    config = json.loads((tmp_path / "deeper" / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    for name, content in {"deeper": config | {"num_hidden_layers": 3}, "own": own}.items():
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    (tmp_path / "own" / "own.py").write_text("raise SystemExit('its code was run')")
    os.mkfifo(tmp_path / "pipe")
    for name, content in {"text.txt": TEXT.encode(), "empty.txt": b" \n", "picture.txt": b"\x89PNG\xff"}.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    "model, options, message",
    [
        ("llama", {}, "model must have experts .* got LlamaForCausalLM"),
        ("absent", {}, "MODEL must be a folder that save_pretrained wrote, got .*absent, which is none"),
        ("own", {}, ".*own could not be loaded: .*custom code"),
        ("cut", {}, ".*cut could not be loaded: Error while deserializing"),
        ("deeper", {}, ".*deeper must hold all weights, got it without 9 of them, such as model.layers.2"),
        ("mute", {}, ".*mute must have a tokenizer, got none: save one there"),
        ("llama", {"--text": "absent.txt"}, "--text must be a file in UTF-8 .*, got .*absent.txt: No such file"),
        ("llama", {"--text": "empty.txt"}, "--text must .* with something to read in it, got .*empty.txt: it is empty"),
        ("llama", {"--text": "picture.txt"}, "--text must be a file in UTF-8 .*, got .*picture.txt"),
        ("llama", {"--out": "absent/page.html"}, "--out must be .* in a folder that is there, got .*absent/page.html"),
        ("llama", {"--out": "pipe"}, "--out must be a file that can be written, .* got .*pipe"),
    ],
)
def test_what_is_wrong_is_one_sentence(model, options, message, broken, capsys):
    before = sorted(broken.rglob("*"))
    given = {"--text": "text.txt", "--out": "page.html"} | options
    given = {key: str(broken / value) for key, value in given.items()}
    code = command_line.main(["lens", str(broken / model), *(part for pair in given.items() for part in pair)])
    said = capsys.readouterr().err.splitlines()[-1]
    assert code == 1 and re.fullmatch(f"lens: {message}.*", said), said
    assert sorted(broken.rglob("*")) == before


def test_a_page_that_is_there_stays_where_the_disk_is_full(folder, capsys, tmp_path, fill_disk):
    (tmp_path / "page.html").write_text("of yesterday")
    fill_disk(10_000)
    code, _, said = lens(folder, capsys, "mixtral", "--tokens", "600", "--out", str(tmp_path / "page.html"))
    assert code == 1 and re.search(r"^lens: .*page.html could not be written: File too large$", said, re.MULTILINE)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page.html", "of yesterday")]
    with pytest.raises(SystemExit):
        command_line.main(["lens", "model", "--text", "text.txt"])
    assert "give --out PAGE.html, or --json, or both" in capsys.readouterr().err
