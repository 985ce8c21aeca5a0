"""Data augmentation of batches of sounds with a given random generator: shift, level, noise, masks.

Silence is 0 in waveforms and in the maps of `diffstride.training.sound.log_mel`, so what shifts and
masks leave empty is 0.
"""

import torch
from torch import Generator, Tensor

from diffstride.training.argument_types import check_at_least


def shift(sounds: Tensor, generator: Generator, share: float = 0.1) -> Tensor:
    """Move every sound in time, and fill with silence.

    Args:
        sounds: batch of waveforms or maps, with time as the last axis.
        generator: draws the shifts.
        share: the largest shift to each side as a share of the length, from 0 to 1.

    Returns:
        A new batch of the same shape.

    >>> sounds = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    >>> shift(sounds, Generator().manual_seed(1), share=0.5).tolist()
    [[[0.0, 0.0, 1.0, 2.0]]]
    """
    _check_share(share)
    length = sounds.shape[-1]
    most = int(share * length)
    starts = torch.randint(0, 2 * most + 1, (len(sounds),), generator=generator)
    padded = torch.nn.functional.pad(sounds, (most, most))
    # A view of all possible shifts: indexing it copies only the chosen ones.
    shifts = padded.unfold(-1, length, 1).movedim(-2, 1)
    return shifts[torch.arange(len(sounds)), starts]


def gain_and_noise(
    waveforms: Tensor, generator: Generator, decibels: float = 6.0, noise: float = 0.01
) -> Tensor:
    """Change the level of every waveform, and add white noise.

    Args:
        waveforms: batch `(B, C, N)`.
        generator: draws gains and noise.
        decibels: gains are uniform in ±``decibels``, at least 0.
        noise: standard deviations are uniform from 0 to this share of the waveform's root mean
            square, at least 0.

    Returns:
        A new batch of the same shape.

    Raises:
        ValueError: the batch is not floating-point, or an argument is out of its range.

    >>> gain_and_noise(torch.zeros(2, 1, 4), Generator()).abs().max()
    tensor(0.)
    """
    check_at_least(0, decibels=decibels, noise=noise)
    _check_floats(waveforms)
    one_each = (len(waveforms), *[1] * (waveforms.ndim - 1))
    gains = _draw_gains(one_each, decibels, generator)
    level = waveforms.square().mean(tuple(range(1, waveforms.ndim)), keepdim=True).sqrt()
    sigma = noise * torch.rand(one_each, generator=generator) * level
    return gains * (waveforms + sigma * torch.randn(waveforms.shape, generator=generator))


def gain_of_log_mel(maps: Tensor, generator: Generator, decibels: float = 6.0) -> Tensor:
    """Change the level of every sound, given its `log_mel`, as if its waveform was scaled.

    `log(1 + g^2 (exp(y) - 1))` for a gain `g`, uniform in ±``decibels``, at least 0.

    Raises:
        ValueError: the batch is not floating-point of shape `(B, C, bands, frames)`, or
            ``decibels`` is out of its range.

    >>> maps = torch.full((1, 1, 2, 2), 3.0)
    >>> gain_of_log_mel(maps, Generator(), decibels=0.0).allclose(maps)
    True
    """
    check_at_least(0, decibels=decibels)
    check_maps(maps)
    _check_floats(maps)
    gains = _draw_gains((len(maps), 1, 1, 1), decibels, generator)
    return (gains.square() * maps.expm1()).log1p()


def mask(maps: Tensor, generator: Generator, bands: int = 8, frames: int = 8) -> Tensor:
    """Silence a range of bands and a range of frames of every map.

    Reference: *SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition*,
    2019, https://arxiv.org/abs/1904.08779, with one mask on each axis.

    Args:
        maps: batch `(B, C, bands, frames)`.
        generator: draws widths and positions.
        bands: largest width of the mask of bands, at least 0; widths are uniform from 0.
        frames: the same for frames.

    Returns:
        A new batch of the same shape.

    Raises:
        ValueError: the batch has other axes, or an argument is out of its range.

    >>> masked = mask(torch.ones(1, 1, 8, 8), Generator().manual_seed(0), bands=4, frames=0)
    >>> masked[0, 0, :, 0].tolist()
    [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    """
    check_at_least(0, bands=bands, frames=frames)
    check_maps(maps)
    for axis, width in ((2, bands), (3, frames)):
        hidden = _draw_ranges(len(maps), maps.shape[axis], width, generator)
        maps = maps.masked_fill(hidden[:, None, :, None].movedim(2, axis), 0.0)
    return maps


def shift_and_mask(
    maps: Tensor,
    generator: Generator,
    share: float = 0.1,
    decibels: float = 6.0,
    bands: int = 8,
    frames: int = 8,
) -> Tensor:
    """`shift`, `gain_of_log_mel`, then `mask`: for log-mel spectrograms.

    >>> shift_and_mask(torch.zeros(2, 1, 16, 16), Generator()).abs().max()
    tensor(0.)
    """
    moved = gain_of_log_mel(shift(maps, generator, share), generator, decibels)
    return mask(moved, generator, bands, frames)


def shift_and_noise(
    waveforms: Tensor,
    generator: Generator,
    share: float = 0.1,
    decibels: float = 6.0,
    noise: float = 0.01,
) -> Tensor:
    """`shift`, then `gain_and_noise`: for waveforms.

    >>> shift_and_noise(torch.zeros(2, 1, 16), Generator()).shape
    torch.Size([2, 1, 16])
    """
    return gain_and_noise(shift(waveforms, generator, share), generator, decibels, noise)


def check_maps(batch: Tensor) -> None:
    """Refuse batches without two axes besides those of the batch and the channels.

    Raises:
        ValueError: the batch has other axes, as that of waveforms has.
    """
    if batch.ndim != 4:
        raise ValueError(
            f"this augmentation takes images or log-mel spectrograms, (B, C, H, W), but got a "
            f"batch of shape {tuple(batch.shape)}: for waveforms use 'shift' or 'shift_noise'"
        )


def _check_floats(batch: Tensor) -> None:
    if not batch.is_floating_point():
        raise ValueError(
            f"this augmentation takes sounds, which are floating-point, but got "
            f"{str(batch.dtype).removeprefix('torch.')} of shape {tuple(batch.shape)}: for images "
            "use 'crop', 'flip' or 'crop_flip'"
        )


def _draw_gains(shape: tuple[int, ...], decibels: float, generator: Generator) -> Tensor:
    drawn = 2 * torch.rand(shape, generator=generator) - 1
    return 10 ** (decibels * drawn / 20)


def _draw_ranges(count: int, size: int, width: int, generator: Generator) -> Tensor:
    """One range of indices for each example, of 0 to ``width`` of them: bool `(count, size)`."""
    widths = torch.randint(0, min(width, size) + 1, (count, 1), generator=generator)
    starts = (torch.rand((count, 1), generator=generator) * (size - widths + 1)).long()
    indices = torch.arange(size)
    return (indices >= starts) & (indices < starts + widths)


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, but got {share}")
