"""Kernels that stay on the original grid and are resampled at each step: a trial, for comparison.

`diffstride.convert` resamples the kernel of a convolution once, for the grid at conversion. Here
the parameter is the kernel ``W`` on the original grid, and each step convolves with ``B(s) W``,
where ``B`` is `resampling_matrix` at the spacing of that step and has a gradient with respect to
the strides. So strides that move do not change what weights mean.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffstride import DiffStride
from diffstride.conversion.kernel_resampling import resampling_matrix


def resample_each_step(converted: nn.Module, original: nn.Module) -> None:
    """Let a converted network keep its kernels as they are in ``original``, in place."""
    modules = dict(converted.named_modules())
    for name, module in original.named_modules():
        conv: Any = modules.get(name)
        if getattr(conv, "taps", ()) and isinstance(conv.pooling, DiffStride):
            with torch.no_grad():
                conv.weight.copy_(module.weight)  # type: ignore[arg-type]
            _resample(conv, module.dilation)  # type: ignore[arg-type]


def _resample(conv: Any, dilations: Sequence[int]) -> None:
    layer: DiffStride = conv.pooling
    # Positions of the old taps in samples of the original grid; two of them are one dilation apart.
    fine = [
        torch.tensor(axis.old, dtype=torch.float64) * dilation / (axis.old[1] - axis.old[0])
        for axis, dilation in zip(conv.taps, dilations, strict=True)
    ]
    sizes: list[Sequence[int]] = []
    layer.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2:]))
    plain = type(conv)._conv_forward

    @torch.autocast("cpu", enabled=False)
    def kernel_for(weight: Tensor, coarse: Sequence[int]) -> Tensor:
        kernel = weight.double()
        for axis, (taps, positions) in enumerate(zip(conv.taps, fine, strict=True)):
            stride = layer.strides[axis].double()
            # The ratio of the sizes, with the gradient of the stride.
            spacing = sizes[-1][axis] / coarse[axis] + stride - stride.detach()
            matrix = resampling_matrix(positions / spacing, taps.new)
            kernel = (kernel.movedim(axis + 2, -1) @ matrix.T).movedim(-1, axis + 2)
        del sizes[:-1]
        return kernel.to(weight)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return plain(conv, x, kernel_for(weight, x.shape[2:]), bias)

    conv._conv_forward = convolve
