"""What test_engines starts with torchrun on 2 ranks: an exported model under transformers' own expert parallelism.

    torchrun --nproc-per-node 2 engine_ranks.py MODEL_DIR FOUND.json

First it runs the program of docs/engines.md as it stands there; then it compares, in float64, with one process."""

import json
import re
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import MixtralForCausalLM
from transformers.distributed import DistributedConfig

from moe_lessons.hub import Lens, convert_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "engines.md"
LAYOUTS = {  # the layout, how tokens come to their experts, and the type of the weights
    "tp, all_to_all": ({"tp_size": 2, "ep_size": 2}, "all_to_all", torch.float64),
    "tp, all_reduce": ({"tp_size": 2, "ep_size": 2}, "all_reduce", torch.float64),
    # FSDP2 of torch 2.13 divides the gradients of the experts once too often where they are in float64.
    "fsdp, all_to_all": ({"fsdp_size": 2, "ep_size": 2}, "all_to_all", torch.float32),
}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def furthest(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).detach().abs().max())


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def compare(folder: str, layout: dict, how: str, dtype: torch.dtype) -> dict:
    """Logits, gradients and decisions of 2 ranks against those of one process: the largest differences."""
    options = {"dtype": dtype, "experts_implementation": "eager"}
    config = DistributedConfig(**layout, ep_implementation=how)
    model = MixtralForCausalLM.from_pretrained(folder, distributed_config=config, **options).train()
    alone = MixtralForCausalLM.from_pretrained(folder, **options).train()
    ids = torch.randint(256, (4, 24), generator=torch.Generator().manual_seed(0))
    rank = dist.get_rank()
    mine = slice(2 * rank, 2 * rank + 2) if "fsdp_size" in layout else slice(None)
    with Lens(model) as lens:
        logits = whole(model(ids[mine]).logits)
    with Lens(alone) as other:
        expected = alone(ids).logits
    chosen = [routing.topk_indices.view(-1, 24, 2) for routing in lens.routings.values()]
    same = [routing.topk_indices.view(-1, 24, 2)[mine] for routing in other.routings.values()]
    loss_of(logits, ids[mine]).backward()
    loss_of(expected, ids).backward()
    gradients = {}
    for (name, mine_too), theirs in zip(model.named_parameters(), alone.parameters()):
        kind = next((part for part in ("experts", "gate") if f".{part}." in name), "rest")
        difference = furthest(whole(mine_too.grad), theirs.grad) / float(theirs.grad.abs().max())
        gradients[kind] = max(gradients.get(kind, 0.0), difference)
    experts = model.model.layers[0].mlp.experts.down_proj
    return {
        "logits": furthest(logits, expected[mine]),
        "ours": furthest(logits, convert_model(alone)(ids)[0][mine]),
        "gradients": gradients,
        "same experts": all(map(torch.equal, chosen, same)),
        "experts of a rank": len(experts.to_local()),
    }


def main(folder: str, found: str) -> None:
    torch.set_num_threads(1)
    (program,) = re.findall(r"```python\n(# ep\.py.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    sys.argv = ["ep.py", folder]
    told = {}
    exec(compile(program, "ep.py", "exec"), told)
    ours = convert_model(MixtralForCausalLM.from_pretrained(folder))
    results = {"program": furthest(whole(told["logits"]), ours(told["tokens"])[0])}
    results |= {name: compare(folder, *layout) for name, layout in LAYOUTS.items()}
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, results)
    if dist.get_rank() == 0:
        Path(found).write_text(json.dumps(every), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
