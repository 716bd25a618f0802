"""Our models as Hugging Face's: the same logits, the same weights both ways, and a folder that anyone reads."""

import pytest
import torch
from torch import nn

from moe_lessons.hub import byte_tokenizer, convert_model, export_model
from moe_lessons.nn import LanguageModel, MoE, TopKRouter, TransformerConfig, dense_baseline, seeded
from moe_lessons.tasks import encode

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
from test_hub import InFloat64  # noqa: E402

SIZES = {"d_model": 32, "d_ff": 24, "num_layers": 2, "max_positions": 48}
KINDS = {
    "mixture": {},
    "not tied, one group": {"tied_embedding": False, "num_kv_heads": 1, "top_k": 3, "rope_theta": 50.0},
    "all heads": {"num_kv_heads": 4, "num_experts": 5, "norm_eps": 0.1, "vocab_size": 300},
    "one expert": {"top_k": 1, "router": lambda *sizes: TopKRouter(*sizes, norm_topk_prob=True)},
    "dense": {"moe_layers": ()},
    "dense, not tied": {"moe_layers": (), "tied_embedding": False, "num_kv_heads": 4},
}


def our_model(dtype=torch.float32, **changes) -> LanguageModel:
    """With large weights, so that neither attention nor routing is near uniform."""
    with seeded(0):
        model = LanguageModel(TransformerConfig(**SIZES | changes)).to(dtype)
        for name, weight in model.named_parameters():
            nn.init.uniform_(weight, 0.5, 1.5) if "norm" in name else nn.init.normal_(weight, std=0.3)
    return model.eval()


def assert_same_weights(ours: LanguageModel, other: LanguageModel) -> None:
    for (name, weight), (same, back) in zip(ours.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == same and weight.dtype == back.dtype and torch.equal(weight, back), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "new" / "mixtral"
    export_model(our_model(), path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_logits_and_weights(kind):
    ours, ids = our_model(torch.float64, **KINDS[kind]), torch.randint(256, (2, 48))
    state = torch.get_rng_state()
    theirs = export_model(ours)
    assert torch.equal(torch.get_rng_state(), state)  # no random number is drawn
    assert type(theirs).__name__ == ("LlamaForCausalLM" if "dense" in kind else "MixtralForCausalLM")
    assert_same_weights(ours, convert_model(theirs))
    with torch.no_grad():
        expected = ours(ids)[0]
        torch.testing.assert_close(theirs(ids).logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        with InFloat64():  # angles and routers, which are theirs in float32
            theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
            torch.testing.assert_close(theirs(ids).logits, expected, rtol=1e-12, atol=1e-12)


def test_what_is_kept_and_a_dense_baseline_has_its_own_width():
    ours = our_model(torch.bfloat16).train()
    ours.layers[0].attention.qkv_proj.requires_grad_(False)
    for layer in ours.layers:
        layer.ffn.router.jitter_noise = 0.1
    theirs = export_model(ours)
    assert theirs.training and theirs.lm_head.weight is theirs.model.embed_tokens.weight
    assert {p.dtype for p in theirs.parameters()} == {torch.bfloat16} and theirs.config.dtype == torch.bfloat16
    back, frozen = convert_model(theirs), [name for name, p in theirs.named_parameters() if not p.requires_grad]
    assert frozen == [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    assert [n for n, p in back.named_parameters() if not p.requires_grad] == ["layers.0.attention.qkv_proj.weight"]
    assert back.training and back.head.weight is back.embed.weight and not convert_model(theirs.eval()).training
    assert theirs.config.router_jitter_noise == back.layers[1].ffn.router.jitter_noise == 0.1
    kept = {name: weight.clone() for name, weight in ours.state_dict().items()}
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.zero_()
    assert all(torch.equal(weight, kept[name]) for name, weight in ours.state_dict().items())
    baseline = dense_baseline(our_model(), "flops")
    theirs = export_model(baseline)
    assert theirs.config.intermediate_size == 2 * SIZES["d_ff"]
    assert_same_weights(baseline, convert_model(theirs))


def test_a_model_is_read_from_its_folder_with_its_tokenizer(folder):
    theirs, ours = transformers.AutoModelForCausalLM.from_pretrained(folder), our_model()
    assert type(theirs) is transformers.MixtralForCausalLM and theirs.dtype == torch.float32
    assert_same_weights(ours, convert_model(theirs))
    stored = transformers.AutoTokenizer.from_pretrained(folder)
    given = stored("Long ago the ", return_tensors="pt")
    written = theirs.generate(**given, max_new_tokens=12, do_sample=False)
    assert torch.equal(written, ours.generate(encode("Long ago the ")[None], 12, temperature=0))
    text = "aα\n\t x<|endoftext|>  🎈\x00\x7f\r\n '\u00ad"
    for tokenizer in (byte_tokenizer(), stored):
        assert tokenizer(text).input_ids == encode(text).tolist() and tokenizer.decode(encode(text)) == text
        assert len(tokenizer) == 256 and not tokenizer.all_special_ids


@pytest.mark.parametrize("dtype, sizes", [(torch.float32, {"d_ff": 7}), (torch.float64, {})])
def test_what_grouped_products_cannot_take_has_experts_that_can(dtype, sizes, tmp_path):
    ours, ids = our_model(dtype, **sizes), torch.randint(256, (2, 9))
    theirs = export_model(ours, tmp_path / "new")
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    for model in (theirs, read):
        torch.testing.assert_close(model(ids).logits, ours(ids)[0], rtol=1e-4, atol=1e-4)


class OwnMoE(MoE):
    pass


@pytest.mark.parametrize(
    "changes, path, value, message",
    [
        ({"router": "sigmoid"}, "", 0, r"layers.0.ffn.router is .*SigmoidRouter, not .*TopKRouter"),
        ({"shared_experts": 1}, "", 0, "layers.0.ffn.shared_expert is .*FeedForward, not None"),
        ({"moe_layers": (1,)}, "", 0, "layers.1.ffn is .*MoE, not .*FeedForward"),
        ({}, "layers.1.ffn", OwnMoE(32, 24, 8, 2), "layers.1.ffn is .*OwnMoE, not moe_lessons.nn.moe.MoE"),
        ({}, "layers.1.ffn.router.jitter_noise", 0.1, "jitter_noise is 0.1, not 0.0"),
        ({}, "embed", nn.Embedding(256, 32).double(), "weights of one type, got torch.float32, torch.float64"),
    ],
)
def test_what_neither_of_them_can_be(changes, path, value, message, tmp_path):
    model = our_model(**changes)
    owner, _, name = path.rpartition(".")
    if path:
        setattr(model.get_submodule(owner), name, value)
    with pytest.raises(ValueError, match=f"^ours must .*{message}"):
        export_model(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


SHAPE = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("Llama", {"attention_bias": True}, "attention_bias of hf_model must be False, got True"),
        ("Llama", {"rope_parameters": LINEAR}, "rope_type of hf_model must be 'default', got 'linear'"),
        ("Olmoe", {}, "hf_model must be a MixtralForCausalLM or LlamaForCausalLM from .*, got OlmoeForCausalLM"),
    ],
)
def test_what_our_model_lacks(kind, changes, message):
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **changes)
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        convert_model(getattr(transformers, f"{kind}ForCausalLM")(config))


def test_a_folder_that_is_taken_is_left_alone(folder, tmp_path):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "file").write_text("mine")
    for taken in (folder, tmp_path / "file"):
        with pytest.raises(FileExistsError, match=f"folder must be a new or empty one, got {taken}, where"):
            export_model(our_model(), taken)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ValueError, match="ours must be a LanguageModel, got MoE"):
        export_model(MoE(4, 4, 2))


def test_a_model_is_saved_whole_or_not_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr("moe_lessons.hub.models.byte_tokenizer", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_model(our_model(), tmp_path / "model")
    assert not list(tmp_path.iterdir())
