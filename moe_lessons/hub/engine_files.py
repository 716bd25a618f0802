"""Files with which other engines train or serve a Mixtral, all sizes read from its config.json: see docs/engines.md.

Of N ranks each has 1/N of the experts, all of the rest, and its own tokens: as in `moe_lessons.parallel`."""

import json
import shlex
from pathlib import Path
from typing import Any

from moe_lessons.hub.published import read_config
from moe_lessons.support.errors import check_positive_int
from moe_lessons.support.files import write_inside

# the fields of Megatron Core, by their names in a Mixtral or fixed, and flags of Megatron-LM that are named otherwise
MEGATRON = json.loads(Path(__file__).with_name("megatron.json").read_text("utf-8"))
TORCHTITAN = Path(__file__).with_name("moe_torchtitan.txt")
BATCH_SIZE, LR = 8, 1e-3  # sequences of each rank in a step, and the learning rate: a start


def write_engine_configs(model: str | Path, folder: str | Path, ranks: int = 2) -> dict[str, Path]:
    """Write a file for each engine, in `folder`; returns where each is.

    model: the folder of a Mixtral, such as `export_model` writes. ranks: GPUs, N, which must divide the experts.
    ValueError for another model or none, and for weights in float64."""
    model, folder = Path(model).resolve(), Path(folder)
    config = read_mixtral(model)
    check_positive_int("ranks", ranks)
    try:
        if config["num_local_experts"] % ranks:
            raise ValueError(f"ranks must divide the {config['num_local_experts']} experts of the model, got {ranks}")
        sizes = {"model": str(model), "ranks": ranks, "seq_len": config["max_position_embeddings"]}
        deepspeed = {  # AutoEP takes the place of each block of experts
            "train_micro_batch_size_per_gpu": BATCH_SIZE,
            "gradient_clipping": 1.0,
            "bf16": {"enabled": config["dtype"] == "bfloat16"},
            "optimizer": {"type": "AdamW", "params": {"lr": LR}},
            "zero_optimization": {"stage": 1},
            "expert_parallel": {"enabled": True, "autoep_size": ranks, "preset_model": "mixtral"},
        }
        vllm = {  # N copies of attention, and the experts once, among them all
            "model": str(model),
            "dtype": config["dtype"],
            "max-model-len": config["max_position_embeddings"],
            "data-parallel-size": ranks,
            "enable-expert-parallel": True,
        }
        texts = {
            "moe_torchtitan.py": TORCHTITAN.read_text(encoding="utf-8").format(**sizes, batch_size=BATCH_SIZE, lr=LR),
            "megatron.args": "".join(f"{line}\n" for line in megatron_arguments(config, model, ranks)),
            "deepspeed.json": json.dumps(deepspeed, indent=2) + "\n",
            "vllm.yaml": "".join(f"{key}: {json.dumps(value)}\n" for key, value in vllm.items()),
        }
    except KeyError as error:
        raise ValueError(f"{model / 'config.json'} must have all sizes of a Mixtral, and lacks {error}") from None
    for name, text in texts.items():
        write_inside(folder, name, text.encode())
    return {engine: folder / name for engine, name in zip(("torchtitan", "Megatron Core", "DeepSpeed", "vLLM"), texts)}


def read_mixtral(model: Path) -> dict[str, Any]:
    """Read its config.json, with 'dtype' for the type of its weights, as transformers 5 has it."""
    config = read_config(model / "config.json")
    if config.get("model_type") != "mixtral":
        raise ValueError(f"model must be the folder of a Mixtral, got one of type {config.get('model_type')!r}")
    config["dtype"] = config.get("dtype") or config.get("torch_dtype") or "auto"  # torch_dtype: before transformers 5
    if config["dtype"] == "float64":
        raise ValueError("the weights of model must be in float32 or less, got float64: export model.float()")
    return config


def megatron_core_fields(config: dict[str, Any], ranks: int) -> dict[str, Any]:
    """The fields of Megatron Core's `TransformerConfig`, but for activation_func, which is SiLU: then it is SwiGLU."""
    fields = {field: config[theirs] for field, theirs in MEGATRON["fields"].items()} | MEGATRON["fixed"]
    return fields | {
        "kv_channels": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        # of E · Σ f·P, added up over the layers; Hugging Face has K times that of all layers' tokens at once
        "moe_aux_loss_coeff": config["router_aux_loss_coef"] * fields["moe_router_topk"] / fields["num_layers"],
        "expert_model_parallel_size": ranks,
        "bf16": config["dtype"] == "bfloat16",
    }


def megatron_arguments(config: dict[str, Any], model: Path, ranks: int) -> list[str]:
    """A line for each argument of Megatron-LM's pretrain_gpt.py, which hands them on to Megatron Core."""
    lines = []
    for field, value in megatron_core_fields(config, ranks).items():
        flag = MEGATRON["flags"].get(field, field.replace("_", "-"))
        if field == "add_bias_linear" or value is True:
            lines.append(f"--{flag}")
        elif value is not False:
            lines.append(f"--{flag} {value}")
    rope = config.get("rope_parameters", config)  # of its own since transformers 5
    lines += ["--use-mcore-models", "--position-embedding-type rope", f"--rotary-base {int(rope['rope_theta'])}"]
    lines += [f"--{name} {config['max_position_embeddings']}" for name in ("max-position-embeddings", "seq-length")]
    lines += [] if config["tie_word_embeddings"] else ["--untie-embeddings-and-output-weights"]
    lines += ["--tokenizer-type HuggingFaceTokenizer", f"--tokenizer-model {shlex.quote(str(model))}"]
    return [*lines, f"--micro-batch-size {BATCH_SIZE}", f"--global-batch-size {BATCH_SIZE * ranks}", f"--lr {LR}"]
