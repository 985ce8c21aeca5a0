"""Resample the kernel of a convolution to a coarser grid, so that pooling may come before it.

Cropping a spectrum and convolving are both products in frequency, so they commute, except at the
borders, once the kernel is written for the coarse grid: at the frequencies that are kept, the new
kernel has to have the response of the old one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffstride._torch_compat import Conv, set_conv_padding
from diffstride.spectral.axis_plan import CPU

BINS = 64  # frequencies at which responses are compared


class CoarseTaps(NamedTuple):
    """The taps of a kernel along one axis of the coarse grid, in coarse samples.

    ``old`` are the positions of the old taps and ``new`` those of the new ones, whole numbers,
    relative to the output sample.
    """

    old: tuple[float, ...]
    new: tuple[int, ...]

    @property
    def dilation(self) -> int:
        return self.new[1] - self.new[0] if len(self.new) > 1 else 1

    @property
    def pads(self) -> tuple[int, int]:
        """Samples to pad before and behind, so that the convolution keeps the size of its map."""
        return -self.new[0], self.new[-1]


def coarse_taps(
    kernel_size: int, dilation: int, padding: int, crop: int, spacing: float
) -> CoarseTaps:
    """Where the taps of a strided convolution lie on a grid ``spacing`` times as coarse.

    Args:
        kernel_size, dilation, padding: of the convolution along this axis.
        crop: how many samples the map has lost at its start.
        spacing: fine samples for each coarse one, at least 1.

    >>> coarse_taps(3, 1, 1, 0, 2.0)
    CoarseTaps(old=(-0.5, 0.0, 0.5), new=(-1, 0, 1))
    >>> coarse_taps(3, 2, 2, 0, 2.0)
    CoarseTaps(old=(-1.0, 0.0, 1.0), new=(-1, 0, 1))
    """
    old = [(dilation * tap - padding - crop) / spacing for tap in range(kernel_size)]
    step = max(1, round(dilation / spacing))
    # Of two grids equally far from the middle, the one that lies further ahead.
    first = math.ceil((old[0] + old[-1] - step * (kernel_size - 1)) / 2 - 0.5)
    return CoarseTaps(tuple(old), tuple(first + step * tap for tap in range(kernel_size)))


def resampling_matrix(old: Sequence[float] | Tensor, new: Sequence[int]) -> Tensor:
    """The matrix ``B`` that turns taps at any positions into taps at whole ones, float64.

        B = argmin sum over f of | sum_m B[m, :] e^(2 pi i f m) - [e^(2 pi i f t_j)]_j |^2

    over the frequencies ``0 < f <= 1/2`` of the coarse grid, with every column of ``B`` summing to
    1, so that the response to constants is kept. All frequencies weigh the same: weights that fall
    with frequency, as the spectra of images do, lose accuracy in trained networks.

    Args:
        old: positions ``t_j`` of the old taps in coarse samples; a tensor receives a gradient.
        new: positions ``m`` of the new taps.

    Returns:
        ``(len(new), len(old))``.

    >>> resampling_matrix([-1.0, 0.0, 1.0], [-1, 0, 1]).round(decimals=6).abs()
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]], dtype=torch.float64)
    >>> resampling_matrix([-0.5, 0.0, 0.5], [-1, 0, 1]).sum(0).round(decimals=6)
    tensor([1., 1., 1.], dtype=torch.float64)
    """
    old = torch.as_tensor(old, dtype=torch.float64, device=CPU)
    taps = torch.tensor(new, dtype=torch.float64, device=CPU)
    frequencies = torch.arange(1, BINS + 1, dtype=torch.float64, device=CPU) / (2 * BINS)

    def correlation(distances: Tensor) -> Tensor:
        """The mean over ``f`` of ``cos(2 pi f d)`` for each distance ``d``."""
        return torch.cos(2 * math.pi * frequencies * distances[..., None]).mean(-1)

    one = torch.ones(len(taps), 1, dtype=torch.float64, device=CPU)
    gram = torch.cat([correlation(taps[:, None] - taps), one], 1)
    gram = torch.cat([gram, torch.cat([one, torch.zeros_like(one[:1])]).T])
    wanted = torch.cat([correlation(taps[:, None] - old), torch.ones_like(old)[None]])
    return torch.linalg.solve(gram, wanted)[:-1]


def resampled_kernel(kernel: Tensor, taps: Sequence[CoarseTaps]) -> Tensor:
    """A kernel ``(C_out, C_in, K_1, …, K_n)`` with its axes resampled to these taps.

    >>> kernel = torch.tensor([[[1.0, 2.0, 1.0]]])
    >>> resampled_kernel(kernel, [coarse_taps(3, 1, 1, 0, 2.0)]).round(decimals=2)
    tensor([[[0.3900, 3.2300, 0.3900]]])
    """
    exact = kernel.detach().to(CPU, torch.float64)
    for dim, axis in enumerate(taps, start=2):
        matrix = resampling_matrix(axis.old, axis.new)
        exact = (exact.movedim(dim, -1) @ matrix.T).movedim(-1, dim)
    return exact.to(kernel)


@torch.no_grad()
def resample_convolution(conv: Conv, taps: Sequence[CoarseTaps]) -> None:
    """Write the kernel, dilation and padding of a convolution for the coarse grid, in place."""
    conv.weight.copy_(resampled_kernel(conv.weight, taps))
    conv.dilation = tuple(axis.dilation for axis in taps)
    if conv.padding_mode == "zeros" and conv.padding in ("valid", (0,) * len(taps)):
        conv.padding_mode = "replicate"  # without padding it has seen no zeros
    pads = [axis.pads for axis in taps]
    set_conv_padding(conv, [size for pair in reversed(pads) for size in pair])
    conv.padding = tuple(before for before, _ in pads)
    if conv.padding_mode == "zeros" and any(before != behind for before, behind in pads):
        # Pads by the sizes above, as all modes but zeros do.
        conv.padding_mode = "constant"  # pyright: ignore
