"""RMSNorm, with a backward pass that is fast on a CPU."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """x / √(mean(x²) + eps) · weight (arXiv:1910.07467, eq. 4): (..., D) -> (..., D).

    It is torch's, which on a CPU has no backward pass as a whole and goes back step by step, in twice the time. There
    it is written by hand.

    >>> RMSNorm(2, eps=0.0)(torch.tensor([[3.0, 3.0]]))
    tensor([[1., 1.]], grad_fn=<_RMSNormBackward>)
    """

    def forward(self, x: Tensor) -> Tensor:
        weight, known = self.weight, (torch.float32, torch.float64)  # torch computes shorter types in float32
        by_hand = torch.is_grad_enabled() and x.device.type == "cpu" and weight is not None and weight.ndim == 1
        if not by_hand or not x.dtype == weight.dtype in known:
            return super().forward(x)
        return _RMSNorm.apply(x, weight, torch.finfo(x.dtype).eps if self.eps is None else self.eps)[0]


class _RMSNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        scale = (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()  # (..., 1)
        return (x * scale).mul_(weight), scale

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple) -> None:
        (x, weight, ctx.eps), (_, scale) = inputs, output
        ctx.mark_non_differentiable(scale)
        ctx.save_for_backward(x, weight, scale)

    @staticmethod
    def backward(ctx, d_y: Tensor, _) -> tuple:
        x, weight, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # it is to be differentiated again: then the scale depends on x
            scale = (x.square().mean(dim=-1, keepdim=True) + ctx.eps).rsqrt()
        normed = x * scale
        d_normed = d_y * weight
        along = (d_normed * normed).mean(dim=-1, keepdim=True)  # what would only change the length of x does nothing
        return torch.addcmul(d_normed, normed, along, value=-1) * scale, (d_y * normed).sum_to_size(weight.shape), None
