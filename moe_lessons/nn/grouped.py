"""The way 'grouped': assignments sorted by expert, and one product for each group of rows that share an expert.

Where it is legal, `torch.nn.functional.grouped_mm` does the products of many groups in one call. On a CPU they are
cut into blocks of as many experts as have about half a megabyte of rows for each thread: these stay in the cache from
the first product to the last, and what lies between two products is paid once for each block and not for each expert.
On a GPU all rows make one block.

The backward pass is written by hand. Of all that lies between x and y it keeps only the pre-activations, and
computes the rest again: in the cache that is cheaper than to read it back from memory.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from moe_lessons.nn.experts import Experts
from moe_lessons.nn.routing import Routing

BLOCK_BYTES = 500_000  # of x and of pre-activations, in the rows of one block, for each thread
IN_BLOCKS = ("cpu",)  # devices that compute in blocks: elsewhere a call costs more than a way to memory


def run_grouped(experts: Experts, x: Tensor, routing: Routing, in_proj: Tensor, down_proj: Tensor) -> Tensor:
    """y (T, D) without the biases of the down projection; x and both weights are of one type."""
    order = routing.expert_idx.argsort(stable=True)  # (A,) grouped by expert
    weight = routing.weight.index_select(0, order).to(x.dtype)  # (A,)
    in_bias = experts.in_bias
    if in_bias is not None:
        in_bias = in_bias.index_select(0, routing.expert_idx[order]).to(x.dtype)  # (A, 2F)
    fast, counts = not why_own_products(in_proj, down_proj), routing.tokens_per_expert  # (E,)
    if x.device.type in IN_BLOCKS:
        row_bytes = (in_proj.shape[1] + in_proj.shape[2]) * x.element_size()
        blocks = split_into_blocks(counts.tolist(), torch.get_num_threads() * BLOCK_BYTES // row_bytes, fast)
    else:  # where grouped_mm is legal, nothing waits for the counts
        ends = counts.cumsum(0, dtype=torch.int32) if fast else None
        blocks = [Block(slice(None), slice(None), None if fast else counts.tolist(), ends)]
    plan = Plan(routing.token_idx[order], blocks, experts)
    run = _Grouped.apply if torch.is_grad_enabled() else run_blocks
    return run(plan, x, weight, in_bias, in_proj, down_proj)


def why_own_products(in_proj: Tensor, down_proj: Tensor) -> str:
    """Why these weights go through one product for each expert instead of `grouped_mm`; '' if they do not."""
    dtype, widths = in_proj.dtype, (in_proj.shape[1], *down_proj.shape[1:])
    if not hasattr(F, "grouped_mm"):
        return f"no grouped_mm in torch {torch.__version__}"
    if torch.compiler.is_compiling() and dtype != torch.bfloat16:
        return "torch.compile knows grouped_mm for bfloat16 alone"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no grouped_mm for {str(dtype).removeprefix('torch.')}"
    if any(width * dtype.itemsize % 16 for width in widths):
        return "grouped_mm needs rows of a multiple of 16 bytes"
    if not all(weight.is_contiguous() and weight.data_ptr() % 16 == 0 for weight in (in_proj, down_proj)):
        return "grouped_mm needs weights that are contiguous and aligned to 16 bytes"
    return ""


# --- rows in groups --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Some experts that follow each other, and their assignments: n rows, sorted by expert.

    How the rows divide among the experts: counts, and for `grouped_mm` ends (int32), where each group ends. Without
    ends there is one product for each expert; without counts there is nothing but `grouped_mm`.
    """

    experts: slice
    rows: slice
    counts: list[int] | None
    ends: Tensor | None

    def times(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Each row times the matrix of its expert: rows (n, i), weights (E, i, o) of all experts -> (n, o)."""
        weights = weights[self.experts]
        if self.ends is not None:
            return F.grouped_mm(rows, weights, offs=self.ends)
        out = rows.new_empty(len(rows), weights.shape[2])
        for group, weight, result in zip(rows.split(self.counts), weights.unbind(0), out.split(self.counts)):
            torch.mm(group, weight, out=result)
        return out

    def outer(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """For each expert leftᵀ·right over its rows: left (n, o), right (n, i), into its place in out (E, o, i)."""
        if self.counts is None:
            empty = self.ends.diff(prepend=self.ends.new_zeros(1)) == 0  # grouped_mm may leave these unwritten
            out.copy_(F.grouped_mm(left.T, right, offs=self.ends)).masked_fill_(empty[:, None, None], 0)
            return
        results = out[self.experts].unbind(0)
        for one, other, result in zip(left.split(self.counts), right.split(self.counts), results):
            torch.mm(one.T, other, out=result)


def split_into_blocks(counts: list[int], rows_per_block: int, fast: bool) -> list[Block]:
    """Blocks of whole experts; each but the last has at least `rows_per_block` rows. fast: with `grouped_mm`.

    >>> [(block.experts, block.counts) for block in split_into_blocks([3, 0, 2, 4], rows_per_block=4, fast=False)]
    [(slice(0, 3, None), [3, 0, 2]), (slice(3, 4, None), [4])]
    """
    blocks, expert, row, num_rows = [], 0, 0, 0
    for end, count in enumerate(counts, start=1):
        num_rows += count
        if num_rows >= max(rows_per_block, 1) or end == len(counts):
            its = counts[expert:end]
            ends = torch.tensor(list(accumulate(its)), dtype=torch.int32) if fast else None
            blocks.append(Block(slice(expert, end), slice(row, row + num_rows), its, ends))
            expert, row, num_rows = end, row + num_rows, 0
    return blocks


# --- forward and backward --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What the experts do, apart from numbers that have gradients. token_idx (A,): whose rows, sorted by expert."""

    token_idx: Tensor
    blocks: list[Block]
    experts: Experts  # for what lies between the two products

    def hidden_and_gradients(self, d_hidden: Tensor, pre: Tensor, weight: Tensor, in_bias: Tensor | None) -> tuple:
        """`Experts.hidden` again, and the gradients of its inputs: by hand for plain SwiGLU, else by autograd."""
        if self.experts.activation == "swiglu" and in_bias is None and not self.experts.weight_input:
            return swiglu_and_gradients(d_hidden, pre, weight[:, None])
        inputs = [value.detach().requires_grad_() for value in (pre, weight, in_bias) if value is not None]
        with torch.enable_grad():
            hidden = self.experts.hidden(*inputs)
        return hidden.detach(), *torch.autograd.grad(hidden, inputs, d_hidden)


def swiglu_and_gradients(d_hidden: Tensor, pre: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SiLU(gate) · up · weight (n, F) and its gradients for pre (n, 2F) and weight (n, 1), from d_hidden (n, F)."""
    d_pre = torch.empty_like(pre)
    (gate, up), (d_gate, d_up) = pre.chunk(2, dim=1), d_pre.chunk(2, dim=1)
    silu = F.silu(gate)
    product = silu * up
    d_weight = (d_hidden * product).sum(dim=1)
    d_product = d_hidden * weight
    torch.mul(d_product, silu, out=d_up)
    torch.ops.aten.silu_backward.grad_input(d_product * up, gate, grad_input=d_gate)
    return product * weight, d_pre, d_weight


def run_blocks(plan: Plan, x, weight, in_bias, in_proj, down_proj, kept: list[Tensor] | None = None) -> Tensor:
    """y[t] = Σ h·W_downᵀ over the rows of token t, where h = hidden(x[t]·W_inᵀ, weight, in_bias).

    Adds the pre-activations of each block to `kept`, where there is such a list.
    """
    y = x.new_zeros(x.shape)
    for block in plan.blocks:
        token_idx = plan.token_idx[block.rows]  # (n,)
        pre = block.times(x.index_select(0, token_idx), in_proj.mT)  # (n, 2F)
        if kept is not None:
            kept.append(pre)
        hidden = plan.experts.hidden(
            pre, weight[block.rows], None if in_bias is None else in_bias[block.rows]
        )  # (n, F)
        y.index_add_(0, token_idx, block.times(hidden, down_proj.mT))
    return y


class _Grouped(torch.autograd.Function):
    """`run_blocks` and its gradients."""

    @staticmethod
    def forward(ctx, plan: Plan, *inputs):
        ctx.plan, kept = plan, []
        y = run_blocks(plan, *inputs, kept)
        ctx.save_for_backward(*inputs, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y):
        """d_… is the gradient of the loss for …; only those are computed that somebody wants."""
        plan, saved = ctx.plan, ctx.saved_tensors  # read once: torch.utils.checkpoint allows no more
        x, weight, in_bias, in_proj, down_proj, *kept = saved
        d_inputs = [
            torch.empty_like(value) if wanted else None for value, wanted in zip(saved, ctx.needs_input_grad[1:])
        ]
        d_x, d_weight, d_in_bias, d_in_proj, d_down_proj = d_inputs
        if d_x is not None:
            d_x.zero_()
        for block, pre in zip(plan.blocks, kept):
            token_idx = plan.token_idx[block.rows]  # (n,)
            d_out = d_y.index_select(0, token_idx)  # (n, D)
            d_hidden = block.times(d_out, down_proj)  # (n, F): d_h = d_out·W_down
            bias = None if in_bias is None else in_bias[block.rows]
            hidden, d_pre, *d_rows = plan.hidden_and_gradients(d_hidden, pre, weight[block.rows], bias)
            if d_down_proj is not None:
                block.outer(d_out, hidden, d_down_proj)  # d_W_down = Σ d_outᵀ·h
            if d_in_proj is not None:
                block.outer(d_pre, x.index_select(0, token_idx), d_in_proj)  # d_W_in = Σ d_preᵀ·x
            if d_x is not None:
                d_x.index_add_(0, token_idx, block.times(d_pre, in_proj))  # d_x[t] = Σ d_pre·W_in
            for whole, part in zip((d_weight, d_in_bias), d_rows):
                if whole is not None:
                    whole[block.rows] = part
        return None, *d_inputs
