"""A model of ours on the engines: transformers' expert parallelism runs here; of the others each key is one they know.
In an environment of their own: pip install torchtitan deepspeed && PYTHONPATH=UNPACKED_VLLM_WHEEL python -m pytest …"""

import ast
import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from moe_lessons import __main__ as cli
from moe_lessons.hub import engine_files as engines
from moe_lessons.hub import export_model
from moe_lessons.nn import LanguageModel, MoE, TransformerConfig, load_balancing_loss, seeded

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
from safetensors import safe_open  # noqa: E402

SIZES = {"num_layers": 2, "d_model": 32, "d_ff": 48, "num_heads": 4, "num_kv_heads": 2, "max_positions": 64}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    with seeded(0):
        ours = LanguageModel(TransformerConfig(**SIZES, num_experts=8, top_k=2, router_std=0.5))
    folder = tmp_path_factory.mktemp("engines") / "model"
    export_model(ours, folder)
    return folder


@pytest.fixture(scope="module")
def config(model_dir) -> dict:
    return engines.read_mixtral(model_dir)


@pytest.fixture(scope="module")
def written(model_dir) -> dict[str, Path]:
    folder, names = model_dir.parent / "files", ("moe_torchtitan.py", "megatron.args", "deepspeed.json", "vllm.yaml")
    assert cli.main(["engines", str(model_dir), "--out", str(folder), "--ranks", "4"]) == 0
    assert sorted(names) == sorted(path.name for path in folder.iterdir())
    return dict(zip(("torchtitan", "Megatron Core", "DeepSpeed", "vLLM"), map(folder.joinpath, names)))


def test_the_exported_model_is_the_same_under_the_expert_parallelism_of_transformers(model_dir, tmp_path):
    pytest.importorskip("accelerate", reason="needs the extra dev")
    pytest.importorskip("transformers.distributed.expert_parallel", reason="needs transformers 5.24")
    program, found = Path(__file__).with_name("engine_ranks.py"), tmp_path / "found.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program]
    done = subprocess.run([*command, model_dir, found], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank, results in enumerate(json.loads(found.read_text())):
        assert f"rank {rank}: 4 of 8 experts, logits (1, 26, 256)" in done.stdout  # of the page's program
        assert results.pop("program") < 1e-5
        assert set(results) == {"tp, all_to_all", "tp, all_reduce", "fsdp, all_to_all"}
        for name, result in results.items():
            tolerance = 1e-12 if name.startswith("tp") else 1e-5
            assert result["experts of a rank"] == 4 and result["same experts"]
            assert result["logits"] < tolerance and result["ours"] < 1e-5
            assert set(result["gradients"]) == {"experts", "gate", "rest"}
            assert max(result["gradients"].values()) < tolerance


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what is not installed beside it
def test_megatron_core_takes_the_fields_and_megatron_lm_the_arguments(config, written):
    core = pytest.importorskip("megatron.core.transformer", reason="needs megatron-core, extra dev")
    fields = engines.megatron_core_fields(config, 4)
    theirs = core.TransformerConfig(**fields, activation_func=torch.nn.functional.silu)
    assert (theirs.num_layers, theirs.hidden_size, theirs.num_moe_experts, theirs.moe_router_topk) == (2, 32, 8, 2)
    assert (theirs.kv_channels, theirs.num_query_groups, theirs.expert_model_parallel_size) == (8, 2, 4)
    known = {}  # Megatron-LM makes its arguments from these fields
    for field in dataclasses.fields(core.TransformerConfig):
        names = field.metadata.get("argparse_meta", {}).get("arg_names", ["--" + field.name.replace("_", "-")])
        known |= dict.fromkeys(names, field.name)
    flags = re.findall(r"--[\w-]+", written["Megatron Core"].read_text())
    of_fields = [flag for flag in flags if flag in known]
    assert {known[flag] for flag in of_fields} == set(fields) - {"num_moe_experts", "gated_linear_unit", "bf16"}
    assert set(flags) - set(of_fields) == {
        "--num-experts", "--swiglu", "--group-query-attention", "--use-mcore-models", "--position-embedding-type",
        "--rotary-base", "--max-position-embeddings", "--seq-length", "--tokenizer-type", "--tokenizer-model",
        "--micro-batch-size", "--global-batch-size", "--lr",
    }  # fmt: skip


def test_the_auxiliary_loss_of_megatron_is_ours_and_that_of_hugging_face_where_the_layers_are_alike(config):
    moe_utils = pytest.importorskip("megatron.core.transformer.moe.moe_utils", reason="needs megatron-core, extra dev")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    with seeded(1):
        moe, x = MoE(32, 8, 8, 2), torch.randn(50, 32)
        torch.nn.init.normal_(moe.router.weight)
    routing, layers = moe(x)[1], config["num_hidden_layers"]
    coefficient = engines.megatron_core_fields(config, 1)["moe_aux_loss_coeff"]
    counted = routing.router_probs, routing.tokens_per_expert, len(x), 2, 8
    theirs = layers * moe_utils.switch_load_balancing_loss_func(*counted, coefficient)
    torch.testing.assert_close(theirs, layers * coefficient * load_balancing_loss(routing))
    pooled = load_balancing_loss_func((routing.router_logits,) * layers, 8, 2)
    torch.testing.assert_close(theirs, config["router_aux_loss_coef"] * pooled)


def test_deepspeed_reads_every_key(written, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    deepspeed = pytest.importorskip("deepspeed.runtime.config", reason="needs deepspeed")
    from deepspeed.module_inject import auto_ep_config

    wanted = json.loads(written["DeepSpeed"].read_text())
    section = wanted["expert_parallel"]
    assert set(section) <= {field.name for field in dataclasses.fields(auto_ep_config.AutoEPConfig)}
    parsed = auto_ep_config.parse_autoep_config(section)
    auto_ep_config.validate_autoep_config(parsed, 4, 1, 1, 1, zero_stage=wanted["zero_optimization"]["stage"])
    read = deepspeed.DeepSpeedConfig(wanted | {"train_batch_size": 8})  # in one process
    assert (read.train_micro_batch_size_per_gpu, read.gradient_clipping, read.zero_config.stage) == (8, 1.0, 1)
    assert (read.optimizer_name, read.optimizer_params) == ("adamw", {"lr": 0.001}) and not read.bfloat16_config.enabled
    assert (read.expert_parallel_config.autoep_size, read.expert_parallel_config.enabled) == (4, True)


def test_torchtitan_reads_the_module_and_finds_the_sizes_in_the_model(written, monkeypatch):
    manager = pytest.importorskip("torchtitan.config", reason="needs torchtitan").ConfigManager()
    monkeypatch.syspath_prepend(written["torchtitan"].parent)
    read = manager.parse_args(["--module", "moe_torchtitan", "--config", "mixtral", "--training.steps", "7"])
    assert (read.training.steps, read.training.seq_len, read.training.local_batch_size) == (7, 64, 8)
    assert read.parallelism.expert_parallel_degree == 4
    model = read.model_spec.model
    model.update_from_config(config=read)
    assert (model.hidden_size, model.num_local_experts, model.num_experts_per_tok, model.vocab_size) == (32, 8, 2, 256)


def test_vllm_has_every_option(written):
    """Its source is read and not run: the package needs a GPU."""
    found = importlib.util.find_spec("vllm")
    if not found:
        pytest.skip("needs vllm, or its wheel unpacked on PYTHONPATH")
    source = (Path(found.origin).parent / "engine" / "arg_utils.py").read_text()
    (args,) = (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "EngineArgs")
    fields = {line.target.id for line in args.body if isinstance(line, ast.AnnAssign)}
    options = yaml.safe_load(written["vLLM"].read_text())
    assert {name.replace("-", "_") for name in options} <= fields
    assert all(f'"--{name}"' in source for name in options)
    names = (Path(found.origin).parent / "model_executor" / "models" / "mixtral.py").read_text()
    assert "self.block_sparse_moe = MixtralMoE(" in names and 'ckpt_names=("w1", "w2", "w3")' in names


def test_the_files_say_what_the_model_is(written, model_dir):
    options = yaml.safe_load(written["vLLM"].read_text())
    assert (options["model"], options["dtype"], options["max-model-len"]) == (str(model_dir), "float32", 64)
    assert options["data-parallel-size"] == 4 and options["enable-expert-parallel"]
    arguments = dict(line.partition(" ")[::2] for line in written["Megatron Core"].read_text().splitlines())
    assert arguments["--ffn-hidden-size"] == "48" and arguments["--global-batch-size"] == "32"
    assert arguments["--group-query-attention"] == "--num-query-groups 2" and arguments["--swiglu"] == ""
    assert "--untie-embeddings-and-output-weights" not in arguments and "--bf16" not in arguments
    compile(written["torchtitan"].read_text(), "moe_torchtitan.py", "exec")
    with safe_open(model_dir / "model.safetensors", "pt") as file:  # named as vLLM and Megatron read them
        assert {f"model.layers.1.block_sparse_moe.experts.7.w{n}.weight" for n in (1, 2, 3)} <= set(file.keys())


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])  # the latter: before transformers 5
def test_bfloat16_and_untied_weights_are_told(name, tmp_path):
    with torch.device("meta"):
        ours = LanguageModel(TransformerConfig(**SIZES, tied_embedding=False)).to(torch.bfloat16)
    export_model(ours).config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"dtype"', f'"{name}"'))
    written = engines.write_engine_configs(tmp_path, tmp_path, ranks=1)
    assert json.loads(written["DeepSpeed"].read_text())["bf16"] == {"enabled": True}
    lines = written["Megatron Core"].read_text().splitlines()
    assert {"--bf16", "--untie-embeddings-and-output-weights"} <= set(lines)


@pytest.mark.parametrize(
    "change, ranks, error",
    [
        ({}, 3, "ranks must divide the 8 experts of the model, got 3"),
        ({}, 0, "ranks must be a whole number of at least 1, got 0"),
        ({"rope_parameters": {}}, 2, "config.json must have all sizes of a Mixtral, and lacks 'rope_theta'"),
        ({"model_type": "llama"}, 2, "model must be the folder of a Mixtral, got one of type 'llama'"),
        ({"dtype": "float64"}, 2, "must be in float32 or less, got float64: export model.float()"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_file_is_written(config, tmp_path, capsys, change, ranks, error):
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(SystemExit):
        cli.main(["engines", str(tmp_path), "--out", str(tmp_path / "out"), "--ranks", str(ranks)])
    assert error in capsys.readouterr().err and not (tmp_path / "out").exists()
