"""``python -m moe_lessons cost``: exact for every family with experts, and one sentence for what cannot be counted."""

import json
import math
import re
import sys

import pytest
import torch

from moe_lessons.__main__ import main
from moe_lessons.analysis.roofline import machines, published_sizes
from moe_lessons.hub import cost_report as cost
from moe_lessons.hub.published import count_config, count_model, find_blocks, read_config

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
hf_families = pytest.importorskip("hf_families")
FAMILIES = hf_families.families()
MIXTRAL = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}  # its class's defaults are the 8x7B


def report_of(config, tmp_path, capsys, *options) -> dict:
    """What --json prints of a configuration."""
    file = tmp_path / "config.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    assert main(["cost", str(file), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def built(family: str, device: str):
    """The first class of a family that takes a small configuration, and that configuration as a file has it."""
    failures = []
    for name in FAMILIES[family]:
        try:
            config, kind = hf_families.small(family, name)
            text = json.dumps(json.loads(config.to_json_string()) | {"architectures": [name]})
            with torch.device(device):
                return kind(config), text
        except Exception as error:
            failures.append(f"{name}: {error!r:.200}")
    pytest.fail("\n".join(failures))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_counted_to_the_last_parameter(family, tmp_path):
    """Against the class itself, and against its parameters' names: 'experts' holds E rows or E children."""
    model, text = built(family, "meta")
    file = tmp_path / "config.json"
    file.write_text(text)
    counted = count_config(read_config(file))
    assert counted.class_name == type(model).__name__
    named = dict(model.named_parameters())
    assert counted.sizes.total == sum(p.numel() for p in named.values())
    share = {"doge": 2 / 16, "switch_transformers": 1 / 8, "zaya": 1 / 8, "vitpose_backbone": 1 / 2}.get(family, 2 / 8)
    pattern = {"doge": r"_embed\.", "jetmoe": r"\.(in|out)put_linear\."}.get(family, r"(?<!shared_)experts\.")
    routed = {n: p for n, p in named.items() if re.search(pattern, n) and not re.search(r"\.router\.|norm", n)}
    idle = sum(p.numel() for p in routed.values()) * (1 - share)
    if family == "longcat_flash":  # of 8 + 256 rows, the last 256 are of experts that do nothing
        idle = sum(p.numel() * (1 - 2 / p.shape[0]) for p in routed.values())
    assert routed and counted.sizes.active == sum(p.numel() for p in named.values()) - round(idle)


ODD = ["dbrx", "doge", "gemma4", "gpt_oss", "inkling", "llama4", "mixtral", "nllb_moe", "switch_transformers", "zaya"]


@pytest.mark.parametrize("family", [family for family in ODD if family in FAMILIES])
def test_one_token_gives_a_gradient_to_the_active_parameters_alone(family):
    """Of the experts of each block, to top_k: the count by another road, in the kinds of blocks that differ most."""
    torch.manual_seed(0)
    model, _ = built(family, "cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.1)
    ids = torch.randint(3, 100, (1, 1))
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    model.eval()(**inputs)[0].float().square().mean().backward()
    for block in find_blocks(model):
        apart = isinstance(getattr(model.get_submodule(block.name), "experts", None), torch.nn.ModuleDict)
        touched = 0.0
        for weight, num_experts in block.weights:  # stacked: row by row; apart: each is of one expert
            rows = 1 if apart else num_experts
            if weight.grad is not None:
                touched += int((weight.grad.reshape(rows, -1) != 0).any(dim=1).sum()) * weight.numel() / rows
        assert touched == block.top_k * sum(weight.numel() / rows for weight, rows in block.weights), block.name


# Written out here, and named in no file of ours: what their makers' config.json says.
PUBLISHED = {
    "Qwen3-235B-A22B": (
        {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 151936, "hidden_size": 4096,
         "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 94, "num_attention_heads": 64,
         "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
         "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False}, 235.1, 22.2),
    "Mixtral 8x22B": (
        MIXTRAL | {"hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 56, "num_attention_heads": 48,
                   "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32768,
                   "tie_word_embeddings": False}, 140.6, 39.2),
    "gpt-oss-120b": (
        {"model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
         "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
         "num_local_experts": 128, "num_experts_per_tok": 4, "tie_word_embeddings": False,
         "quantization_config": {"quant_method": "mxfp4"}}, 116.8, 5.7),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_that_no_file_of_ours_names(name, tmp_path, capsys):
    config, total, active = PUBLISHED[name]
    report = report_of(config, tmp_path, capsys)
    assert report["total_params"] / 1e9 == pytest.approx(total, abs=0.06)
    assert report["active_params"] / 1e9 == pytest.approx(active, abs=0.06)
    assert any("quantised" in note for note in report["notes"]) == ("quantization_config" in config)


def test_the_keys_and_the_figures(tmp_path, capsys):
    report = report_of(MIXTRAL, tmp_path, capsys)
    mixtral = published_sizes()["Mixtral 8x7B"]
    assert (report["total_params"], report["active_params"]) == (mixtral.total, mixtral.active)
    assert (report["num_experts"], report["top_k"], report["moe_blocks"], report["is_dense"]) == (8, 2, 32, False)
    assert report["weight_bytes"]["bfloat16"] == 4 * report["weight_bytes"]["4-bit"] == 2 * mixtral.total
    assert report["kv_cache_bytes_per_token"] == {"float32": 262144, "bfloat16": 131072, "fp8": 65536}
    assert report["flops_per_token_with_context"] - report["flops_per_token"] == 32 * 4 * 4096 * 4096
    assert set(report["machines"]) == set(machines().index)
    on = report["machines"]["NVIDIA H100 SXM"]
    assert [on[dtype]["fits"] for dtype in cost.TYPES] == [False, True, True]
    assert on["bfloat16"]["tokens_per_second"] == pytest.approx(129, abs=0.5)
    assert on["fp8"]["tokens_per_second"] == pytest.approx(2 * on["bfloat16"]["tokens_per_second"])


@pytest.mark.parametrize(
    "config, per_token, windows",
    [
        ({"model_type": "deepseek_v3"}, 61 * (512 + 64), []),  # MLA: the compressed vector and the rotary key
        ({"model_type": "gpt_oss", "num_hidden_layers": 4}, 4 * 2 * 8 * 64, [128]),  # every second layer has a window
        ({"model_type": "jamba"}, 4 * 2 * 8 * 128, []),  # 4 of 32 layers have attention
        ({"model_type": "qwen3_next", "num_hidden_layers": 8}, 2 * 2 * 2 * 256, []),  # every fourth
    ],
)  # fmt: skip
def test_the_kv_cache(config, per_token, windows, tmp_path, capsys):
    report = report_of(config, tmp_path, capsys, "--context", "1000")
    assert report["kv_cache_bytes_per_token"]["bfloat16"] == 2 * per_token and report["kv_cache_windows"] == windows
    kept = 1000 if not windows else (1000 + 128) / 2
    assert report["kv_cache_bytes"]["bfloat16"] == 2 * per_token * kept


def test_a_model_type_that_transformers_lacks_is_counted_by_the_class_that_it_names(tmp_path, capsys):
    """As Kimi K2's file: 1.03 T parameters, 32 B active."""
    config = {"model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 163840}
    config |= {"num_attention_heads": 64, "num_key_value_heads": 64, "n_routed_experts": 384}
    report = report_of(config | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}, tmp_path, capsys)
    assert (report["class"], report["model_type"]) == ("DeepseekV3ForCausalLM", "kimi_k2")
    assert report["total_params"] == pytest.approx(1.03e12, rel=0.01)
    assert report["active_params"] == pytest.approx(32e9, rel=0.05)
    assert report["notes"][-1].startswith("transformers lacks the model_type 'kimi_k2'")


def test_a_dense_configuration_is_said_to_be_dense(tmp_path, capsys):
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    report = report_of(config, tmp_path, capsys)
    assert report["is_dense"] and report["active_params"] == report["total_params"] and report["num_experts"] is None
    assert main(["cost", str(tmp_path)]) == 0  # the folder
    assert "dense: a token uses every parameter" in capsys.readouterr().out


def test_a_model_of_several_parts_says_what_is_counted(tmp_path, capsys):
    model, text = built("qwen3_vl_moe", "meta")
    report = report_of(text, tmp_path, capsys)
    assert report["total_params"] == sum(p.numel() for p in model.parameters())
    image = sum(p.numel() for name, p in model.named_parameters() if ".visual." in name)
    assert f"{image:,} parameters are of parts that a token of text does not meet" in report["notes"][-1]
    assert report["flops_per_token"] < 2 * (report["active_params"] - image)


def test_sizes_that_the_file_lacks_are_named(tmp_path, capsys):
    (note,) = report_of(MIXTRAL, tmp_path, capsys)["notes"]
    assert "num_local_experts 8" in note and "hidden_size 4096" in note and "defaults" in note


def test_the_table_for_people(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    assert main(["cost", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("MixtralForCausalLM: 2 of 8 experts in 32 blocks\n")
    for said in ("46,702,792,704", "12,879,925,248", "27.6%", "93.41", "NVIDIA H100 SXM"):
        assert said in printed
    assert max(map(len, printed.split("Note:")[0].splitlines())) <= 120


BAD = {
    "broken": ("{", "must be JSON, and is not"),
    "binary": (b"\xff\xfe\x00", "must be JSON, and is not"),
    "deep": ("[" * 100_000, "must be JSON, and is not"),
    "a list": ([1], "must hold one JSON object, got list"),
    "empty": ({}, "model_type must be one that transformers .* has, got None"),
    "unknown": ({"model_type": "gpt-7"}, "model_type must be one that transformers .* has, got 'gpt-7'"),
    "unknown class": ({"model_type": "gpt-7", "architectures": ["Gpt7"]}, "model_type must be one .*, got 'gpt-7'"),
    "no name": ({"model_type": ["mixtral"]}, "model_type must be"),
    "a float": ('{"model_type": "mixtral", "x": {"__float__": []}}', "must be JSON, and is not: float"),
    "digits": ('{"model_type": "mixtral", "x": ' + "9" * 5000 + "}", "must be JSON, and is not: Exceeds the limit"),
    "negative": (MIXTRAL | {"num_local_experts": -3}, "num_local_experts must be from 0 to 100,000, got -3"),
    "layers": (MIXTRAL | {"num_hidden_layers": 10**12}, "num_hidden_layers must be from 1 to 2,000, got 10000000000"),
    "no layers": (MIXTRAL | {"num_hidden_layers": 0}, "num_hidden_layers must be from 1 to 2,000, got 0"),
    "no step": ({"model_type": "llama4_text", "interleave_moe_layer_step": 0}, "cannot build this .*: ValueError: "),
    "huge": (MIXTRAL | {"hidden_size": 10**400}, "hidden_size must be from 1 to 100,000,000, got 1000"),
    "not a number": ('{"model_type": "mixtral", "hidden_size": NaN}', "hidden_size must be from 1 .*, got nan"),
    "top_k": (MIXTRAL | {"num_experts_per_tok": 9}, r"top_k must be between 1 and num_experts \(8\), got 9, in model"),
    "no top_k": (MIXTRAL | {"num_experts_per_tok": 0}, "top_k must be between 1 and num_experts"),
    "no experts": (MIXTRAL | {"num_local_experts": 0}, r"num_experts \(0\)|cannot build"),
    "words": (MIXTRAL | {"hidden_size": "four"}, "cannot build this configuration: .*hidden_size"),
    "null": (MIXTRAL | {"hidden_size": None}, "cannot build this configuration"),
    "zero heads": (MIXTRAL | {"num_attention_heads": 0}, "cannot build this configuration"),
    "inside": ({"model_type": "llama4", "text_config": {"hidden_size": -1}}, r"text_config.hidden_size must be from 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_sentence(name, tmp_path, capsys):
    content, message = BAD[name]
    file = tmp_path / "config.json"
    content = json.dumps(content) if isinstance(content, dict | list) else content
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["cost", str(file), "--json"]) == 1
    printed = capsys.readouterr()
    said = json.loads(printed.out)["error"]
    assert re.search(message, said) and said.count("\n") == 0 and len(said) < 600
    assert printed.err == f"cost: {said}\n"
    assert main(["cost", str(file)]) == 1 and capsys.readouterr().out == ""


def test_files_that_cannot_be_read(tmp_path, capsys, monkeypatch):
    for path in (tmp_path / "no.json", tmp_path, "/dev/null"):
        assert main(["cost", str(path)]) == 1
        assert capsys.readouterr().err.startswith("cost: there is no file")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(MIXTRAL))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    assert main(["cost", str(file)]) == 1
    assert capsys.readouterr().err == f"cost: {file} cannot be read: Permission denied\n"
    with file.open("wb") as big:
        big.truncate(10_000_001)
    assert main(["cost", str(file)]) == 1 and "at most 10,000,000 bytes, got 10,000,001" in capsys.readouterr().err


def test_a_context_must_be_a_number_from_0(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    assert main(["cost", str(tmp_path), "--context", "-1"]) == 1
    assert "context must be a whole number from 0 up, got -1" in capsys.readouterr().err


def test_a_library_that_the_class_of_a_model_lacks_is_named(tmp_path, capsys, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))

    def refuse(*_):
        raise ImportError("\nit needs\n  timm")

    monkeypatch.setattr("moe_lessons.hub.published.build", refuse)
    assert main(["cost", str(tmp_path)]) == 1
    said = "transformers cannot build this configuration: ImportError: it needs timm"
    assert capsys.readouterr().err == f"cost: {said}\n"


def test_without_transformers_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["cost", str(tmp_path)]) == 1
    assert "cost needs transformers: pip install 'moe_lessons[hf]'" in capsys.readouterr().err


def test_it_runs_no_code_of_the_model_and_opens_no_connection(tmp_path, capsys, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('evil')")

    def refuse(*_):
        raise AssertionError("a connection")

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("socket.socket.connect", refuse)
    report = report_of(MIXTRAL | {"auto_map": {"AutoConfig": "evil.Evil"}}, tmp_path, capsys)
    assert report["total_params"] == 46_702_792_704


def test_a_way_to_attend_that_is_not_installed_does_not_matter(tmp_path, capsys):
    config = {"model_type": "llama4", "text_config": {"_attn_implementation": "flash_attention_2"}}
    with_it, without = (report_of(c, tmp_path, capsys) for c in (config, {"model_type": "llama4"}))
    assert with_it["total_params"] == without["total_params"]


def test_the_machines_are_plausible():
    table = machines()
    assert len(table) >= 8 and table.index.is_unique and table.source.str.len().gt(10).all()
    assert table.memory_bytes.between(8e9, 1e12).all() and table.bytes_per_second.between(5e10, 2e13).all()
    assert table.bf16_flops_per_second.between(1e12, 1e16).all()
    ratio = table.fp8_flops_per_second / table.bf16_flops_per_second
    assert all(value == 0 or math.isclose(value, 2, rel_tol=0.01) for value in ratio)
    assert (table.bf16_flops_per_second / table.bytes_per_second).between(20, 500).all()
    assert (table.memory_bytes / table.bytes_per_second).between(0.01, 1).all()  # seconds to read all of it once


def test_counting_a_module_of_no_experts_is_counting_its_parameters():
    config = transformers.LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, vocab_size=64)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    sizes = count_model(model)
    assert sizes.total == sizes.active == model.num_parameters() and sizes.groups == ()
