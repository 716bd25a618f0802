"""``python -m moe_lessons cost``: its figures, and one sentence for what cannot be counted."""

import json
import os
import re
import subprocess
import sys

import pytest
from torch import nn

from moe_lessons.__main__ import main
from moe_lessons.analysis.roofline import machines, published_sizes
from moe_lessons.hub.published import TYPES, count_config, find_blocks
from moe_lessons.nn import Experts

MIXTRAL = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}  # its class's defaults are the 8x7B


def report_of(config, tmp_path, capsys, *options) -> dict:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["cost", str(tmp_path), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_experts_in_a_list_are_counted_to_the_last_one():
    """Six experts: a weight of one of them is no sixth of a table."""
    for kind, top_k in (("switch_transformers", 1), ("nllb-moe", 2)):
        sizes = dict.fromkeys(("num_layers", "encoder_layers", "decoder_layers"), 2) | {"num_experts": 6, "d_model": 32}
        found = count_config({"model_type": kind, **sizes, "encoder_sparse_step": 1}).sizes
        group = found.groups[0]
        assert (group.num_experts, group.top_k, group.expert * 6) == (6, top_k, group.size)


@pytest.mark.parametrize("context, is_slower", [(4096, False), (1_000_000, True)])
def test_where_a_smaller_type_is_slower_it_says_why(context, is_slower, tmp_path, capsys):
    report = report_of(MIXTRAL, tmp_path, capsys, "--context", str(context))
    fp8, small = (report["machines"]["NVIDIA H100 SXM"][t]["tokens_per_second"] for t in ("fp8", "4-bit"))
    assert (small < fp8) == is_slower == ("4-bit is slower than fp8 where it reads more" in " ".join(report["notes"]))
    weights, cache = (report[f"{what}_bytes"]["bfloat16"] for what in ("weight", "kv_cache"))
    read = weights / 4 * report["active_params"] / report["total_params"]  # in 4 bits
    assert not is_slower or cache > read


def test_without_its_cache_a_model_has_no_flops_at_a_long_context(tmp_path, capsys):
    report = report_of({"model_type": "deepseek_v4"}, tmp_path, capsys)
    assert "KV cache is unknown" in " ".join(report["notes"])
    assert report["flops_per_token_with_context"] is report["kv_cache_bytes"] is None
    assert main(["cost", str(tmp_path)]) == 0
    assert "None" not in capsys.readouterr().out


def test_experts_beside_experts_with_a_longer_name_are_counted():
    block = nn.Module()
    block.experts, block.experts_too, block.top_k = Experts(4, 2, 3), Experts(4, 2, 3), 1
    ((_, _, group),) = find_blocks(block, set())
    assert group.size == sum(weight.numel() for weight in block.parameters())


GPT_OSS = {
    "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
    "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
    "num_local_experts": 128, "num_experts_per_tok": 4, "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
KIMI = {
    "model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 163840,
    "num_attention_heads": 64, "num_key_value_heads": 64, "n_routed_experts": 384, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "config, total, active, note",
    [
        (GPT_OSS, 116.8, 5.7, "quantised model (mxfp4)"),
        (KIMI, 1026.4, 32.9, "transformers lacks the model_type 'kimi_k2'"),
    ],
    ids=["gpt-oss-120b", "Kimi K2"],
)
def test_published_configurations(config, total, active, note, tmp_path, capsys):
    report = report_of(config, tmp_path, capsys)
    assert report["total_params"] / 1e9 == pytest.approx(total, abs=0.06)
    assert report["active_params"] / 1e9 == pytest.approx(active, abs=0.06)
    assert note in " ".join(report["notes"])


def test_as_many_experts_as_the_largest_that_is_published_has_are_counted(tmp_path, capsys):
    """Kimi K3 has 92 × 896 = 82,432; its own class is not in transformers."""
    report = report_of(KIMI | {"num_hidden_layers": 92, "n_routed_experts": 896}, tmp_path, capsys)
    assert (report["num_experts"], report["moe_blocks"]) == (896, 91)


def test_the_figures_and_the_table(tmp_path, capsys):
    report, mixtral = report_of(MIXTRAL, tmp_path, capsys), published_sizes()["Mixtral 8x7B"]
    assert (report["total_params"], report["active_params"]) == (mixtral.total, mixtral.active)
    assert (report["num_experts"], report["top_k"], report["moe_blocks"], report["is_dense"]) == (8, 2, 32, False)
    assert report["weight_bytes"]["bfloat16"] == 4 * report["weight_bytes"]["4-bit"] == 2 * mixtral.total
    assert report["kv_cache_bytes_per_token"] == {"float32": 262144, "bfloat16": 131072, "fp8": 65536}
    assert report["flops_per_token_with_context"] - report["flops_per_token"] == 32 * 4 * 4096 * 4096
    assert set(report["machines"]) == set(machines().index)
    on = report["machines"]["NVIDIA H100 SXM"]
    assert [on[dtype]["fits"] for dtype in TYPES] == [False, True, True]
    assert on["bfloat16"]["tokens_per_second"] == pytest.approx(129, abs=0.5)
    assert main(["cost", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("MixtralForCausalLM: 2 of 8 experts in 32 blocks\n")
    for said in ("46,702,792,704", "12,879,925,248", "27.6 %", "93.41", "NVIDIA H100 SXM"):
        assert said in printed
    dense = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    report = report_of(dense, tmp_path, capsys)
    assert report["is_dense"] and report["active_params"] == report["total_params"] and report["num_experts"] is None
    assert main(["cost", str(tmp_path / "config.json")]) == 0
    assert "dense: a token uses every parameter" in capsys.readouterr().out


@pytest.mark.parametrize(
    "config, per_token, kept",
    [
        ({"model_type": "gpt_oss", "num_hidden_layers": 4}, 4 * 2 * 8 * 64, (1000 + 128) / 2),  # every second: a window
        ({"model_type": "llama4_text", "num_hidden_layers": 4}, 4 * 2 * 8 * 128, 1000),  # chunks of 8192
        ({"model_type": "qwen3_next", "num_hidden_layers": 8}, 2 * 2 * 2 * 256, 1000),  # every fourth
        ({"model_type": "mistral", "num_hidden_layers": 4, "sliding_window": 500}, 4 * 2 * 8 * 128, 500),
        ({"model_type": "deepseek_v3", "num_hidden_layers": 4}, 4 * (512 + 64), 1000),  # latent
        ({"model_type": "t5", "num_layers": 3, "num_heads": 4, "d_kv": 8}, 2 * 3 * 2 * 4 * 8, 1000),  # and encoder's
        ({"model_type": "mamba", "num_hidden_layers": 4}, 0, 1000),
    ],
)
def test_the_kv_cache(config, per_token, kept, tmp_path, capsys):
    report = report_of(config, tmp_path, capsys, "--context", "1000")
    assert report["kv_cache_bytes_per_token"]["bfloat16"] == 2 * per_token
    assert report["kv_cache_bytes"]["bfloat16"] == 2 * per_token * kept


def test_a_model_of_several_parts_says_what_is_counted(tmp_path, capsys):
    report = report_of({"model_type": "qwen3_vl_moe"}, tmp_path, capsys)
    (image,) = re.findall("([0-9,]+) parameters are of parts that a token of text does not meet", report["notes"][-1])
    assert 0 < report["flops_per_token"] < 2 * (report["active_params"] - int(image.replace(",", "")))


BAD = {
    "broken": ("{", "must be JSON, and is not"),
    "empty": ({}, "model_type must be one that transformers .* has, got a file that names none"),
    "unknown class": ({"model_type": "gpt-7", "architectures": ["Gpt7"]}, "model_type must be one .*, got 'gpt-7'"),
    "layers": (MIXTRAL | {"num_hidden_layers": 10**12}, "at most 1,000 layers, .*got 1000000000000 layers"),
    "many": (MIXTRAL | {"num_hidden_layers": 500, "num_local_experts": 4096}, "100,000 .* got 500 layers of 4096"),
    "top_k": (MIXTRAL | {"num_experts_per_tok": 9}, r"top_k must be between 1 and num_experts \(8\), got 9"),
    "words": (MIXTRAL | {"hidden_size": "four"}, "hidden_size must be a whole number .*'four'"),
    "class": (MIXTRAL | {"vocab_size": "four"}, "cannot build this configuration: .*vocab_size"),
    "window": (MIXTRAL | {"sliding_window": "x"}, "sliding_window must be a whole number .*'x'"),
    "groups": (MIXTRAL | {"num_key_value_heads": 1e308}, r"num_key_value_heads must be .*1e\+308"),
    "negative": ({"model_type": "gpt2", "head_dim": -1}, "head_dim must be a whole number from 0 .*-1"),
    "huge": (MIXTRAL | {"num_hidden_layers": 2, "num_local_experts": 10**400}, "100,000 experts .*got"),
    "no head": ({"model_type": "gpt_neox", "architectures": ["GPTNeoXModel"]}, "writes text.*, got GPTNeoXModel"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_sentence(name, tmp_path, capsys):
    content, message = BAD[name]
    (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert main(["cost", str(tmp_path), "--json"]) == 1
    printed = capsys.readouterr()
    said = json.loads(printed.out)["error"]
    assert re.search(message, said) and said.count("\n") == 0 and len(said) < 600
    assert printed.err.splitlines()[-1] == f"cost: {said}"


def test_it_runs_no_code_of_the_model_and_opens_no_connection(tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection")

    (tmp_path / "evil.py").write_text("raise SystemExit('evil')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("socket.socket.connect", refuse)
    report = report_of(MIXTRAL | {"auto_map": {"AutoConfig": "evil.Evil"}}, tmp_path, capsys)
    assert report["total_params"] == 46_702_792_704


def test_sizes_that_differ_by_layer_leave_the_cache_unknown(tmp_path, capsys):
    for config in ({"num_kv_heads": [1, 2]}, {"head_dim": [8, 16]}):
        report = report_of({"model_type": "gpt2", "n_layer": 2} | config, tmp_path, capsys)
        assert report["kv_cache_bytes"] is None and "KV cache is unknown" in report["notes"][0]


def test_what_needs_no_model_is_refused_before_torch_is_imported(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    run = "import sys; from moe_lessons.__main__ import main; code = main(['cost', *sys.argv[1:]])"
    for options, said in (
        ([tmp_path / "nothing"], "nothing cannot be read: No such file or directory"),
        (["a" * 5000], "a cannot be read: File name too long"),
        ([tmp_path / "pipe"], "pipe cannot be read: it is neither a file nor a folder"),
        ([tmp_path, "--context", -1], "context must be a whole number from 0 to 1,000,000,000,000, got -1"),
        ([tmp_path, "--context", 10**400], "context must be a whole number .*, got 10+"),
    ):
        command = [sys.executable, "-c", f"{run}; sys.exit('torch' if 'torch' in sys.modules else code)"]
        result = subprocess.run([*command, *map(str, options)], capture_output=True, text=True)
        assert result.returncode == 1 and re.fullmatch(f"cost: .*{said}\n", result.stderr) and len(result.stderr) < 400


def test_without_a_configuration():
    with pytest.raises(ValueError, match="^config must be a dict"):
        count_config(dict)
