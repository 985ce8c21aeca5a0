"""Tensors of fixed shape from recordings: log-mel spectrograms and waveforms."""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffstride.training.argument_types import check_at_least

SoundFunction = Callable[[Tensor, int], Tensor]


def waveform(
    sound: Tensor,
    rate: int,
    sample_rate: int = 8000,
    samples: int = 8000,
    level: float | None = None,
) -> Tensor:
    """The samples of a recording, resampled, then padded or cropped around its middle.

    Args:
        sound: mono recording `(N,)`, floats from -1 to 1; float64 is converted to float32.
        rate: its sampling rate in Hz.
        sample_rate: sampling rate of the result in Hz, at least 1.
        samples: length of the result, at least 1. Shorter recordings get silence on both sides.
        level: root mean square, above 0, to which each recording is scaled before it is padded or
            cropped; None leaves it as it is.

    Returns:
        `(1, samples)`.

    Raises:
        TypeError: the recording is no floating-point tensor.
        ValueError: an argument is out of its range, or the recording is not mono.

    >>> waveform(torch.tensor([1.0, 2.0, 3.0]), 8000, samples=5)
    tensor([[0., 1., 2., 3., 0.]])
    """
    check_at_least(1, sample_rate=sample_rate, samples=samples)
    return _fit(_scale(_resample(_mono(sound), rate, sample_rate), level), samples)[None]


def log_mel(
    sound: Tensor,
    rate: int,
    sample_rate: int = 8000,
    bands: int = 64,
    frames: int = 64,
    hop: int = 125,
    window: int = 256,
    fft_size: int = 512,
    lowest: float = 50.0,
    highest: float | None = None,
    floor: float = 1e-4,
    level: float | None = None,
) -> Tensor:
    """Log-mel spectrogram of a recording, 0 for silence: `log(1 + energy / floor)`.

    The energies are those of Hann windows in triangular filters, spaced by the mel scale. The
    recording is first padded or cropped around its middle to `frames * hop` samples.

    Args:
        sound: mono recording `(N,)`, floats from -1 to 1; float64 is converted to float32.
        rate: its sampling rate in Hz.
        sample_rate: sampling rate in Hz to which it is resampled, at least 1.
        bands: number of mel filters, at least 1.
        frames: number of windows, at least 1.
        hop: distance of windows in samples, at least 1.
        window: length of windows in samples, at least 1.
        fft_size: length of the Fourier transforms in samples, at least `window`. A longer one
            interpolates the spectrum, as narrow filters need.
        lowest: lower edge of the filters in Hz, at least 0.
        highest: their upper edge in Hz, above `lowest`; None for half of `sample_rate`.
        floor: energy, above 0, around which the logarithm begins to compress.
        level: as for `waveform`.

    Returns:
        `(1, bands, frames)`, low frequencies first.

    Raises:
        TypeError: the recording is no floating-point tensor.
        ValueError: an argument is out of its range, the recording is not mono, or a filter has no
            bin of the transform.
        ModuleNotFoundError: torchaudio is not installed.
        OSError: it was built for another release of torch.

    >>> tone = torch.sin(torch.arange(8000) * 2 * torch.pi * 1000 / 8000)  # 1,000 Hz
    >>> spectrogram = log_mel(tone, 8000)  # doctest: +SKIP
    >>> spectrogram.shape, spectrogram[0].mean(1).argmax().item()  # doctest: +SKIP
    (torch.Size([1, 64, 64]), 28)
    """
    check_at_least(1, sample_rate=sample_rate, bands=bands, frames=frames, hop=hop, window=window)
    highest = sample_rate / 2 if highest is None else highest
    if not 0 <= lowest < highest <= sample_rate / 2:
        raise ValueError(
            f"lowest and highest must be from 0 to half of sample_rate={sample_rate}, the lowest "
            f"first, but got {lowest} and {highest}"
        )
    if fft_size < window:
        raise ValueError(f"fft_size must be at least window={window}, but got {fft_size}")
    if not floor > 0:
        raise ValueError(f"floor must be above 0, but got {floor}")
    fitted = _fit(_scale(_resample(_mono(sound), rate, sample_rate), level), frames * hop)
    # One window for each hop, with its middle in the middle of the hop.
    padded = F.pad(fitted, ((fft_size - hop) // 2, fft_size - hop - (fft_size - hop) // 2))
    spectrum = torch.stft(
        padded,
        fft_size,
        hop,
        window,
        torch.hann_window(window),
        center=False,
        return_complex=True,
    )
    filters = _mel_filters(fft_size // 2 + 1, lowest, highest, bands, sample_rate)
    energies = filters.T @ spectrum.abs().square()
    return (energies / floor).log1p()[None]


SOUND_FUNCTIONS: dict[str, SoundFunction] = {"log_mel": log_mel, "waveform": waveform}


def find_sound_function(sound_fn: str | Callable[..., Tensor] | None) -> SoundFunction:
    """The function that an argument ``sound_fn`` stands for; `log_mel` for None.

    Raises:
        ValueError: there is no such name.

    >>> find_sound_function("waveform").__name__
    'waveform'
    """
    if sound_fn is None:
        return log_mel
    if isinstance(sound_fn, str) and sound_fn in SOUND_FUNCTIONS:
        return SOUND_FUNCTIONS[sound_fn]
    if not callable(sound_fn) or isinstance(sound_fn, type):
        raise ValueError(
            "sound_fn must be None, a function (sound, rate) or one of "
            f"{', '.join(map(repr, SOUND_FUNCTIONS))}, but got {sound_fn!r}"
        )
    return sound_fn


def _mono(sound: Any) -> Tensor:
    """A mono recording in float32; anything else is refused."""
    if not isinstance(sound, Tensor):
        raise TypeError(
            f"sound must be a tensor, but got a {type(sound).__name__}: pass "
            "torch.from_numpy(sound), of what soundfile.read returns"
        )
    if not sound.is_floating_point():
        raise TypeError(
            f"sound must be floating-point, from -1 to 1, but got {sound.dtype}: divide it by the "
            "largest value, as in sound / 32768 for int16, or read it by soundfile.read"
        )
    if sound.ndim != 1:
        raise ValueError(
            f"sound must be mono, of shape (N,), but got {tuple(sound.shape)}: average its "
            "channels, as in sound.mean(1) for (N, channels)"
        )
    return sound.float()


def _resample(sound: Tensor, rate: int, sample_rate: int) -> Tensor:
    if rate == sample_rate:
        return sound
    return _torchaudio_functional().resample(sound, rate, sample_rate)


def _torchaudio_functional() -> Any:
    """The functions of torchaudio, whose releases pip installs beside any release of torch."""
    try:
        from torchaudio import functional
    except OSError as error:
        release = ".".join(torch.__version__.split(".")[:2])
        raise OSError(
            f"the installed torchaudio cannot be loaded with torch {torch.__version__}: install "
            f"that of the same release, as in pip install 'torchaudio=={release}.*' ({error})"
        ) from error
    return functional


def _scale(sound: Tensor, level: float | None) -> Tensor:
    if level is None:
        return sound
    if not level > 0:
        raise ValueError(f"level must be above 0, or None, but got {level}")
    found = sound.square().mean().sqrt()
    return sound * (level / found) if found > 0 else sound  # silence has no level


def _fit(sound: Tensor, samples: int) -> Tensor:
    """Pad or crop a recording on both sides."""
    missing = samples - len(sound)
    before = missing // 2
    return F.pad(sound, (before, missing - before))  # crops where negative


@lru_cache(maxsize=16)
def _mel_filters(bins: int, lowest: float, highest: float, bands: int, rate: int) -> Tensor:
    """Weights of the bins in each filter: `(bins, bands)`."""
    melscale_fbanks = _torchaudio_functional().melscale_fbanks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of filters without bins, which are refused below
        filters = melscale_fbanks(bins, lowest, highest, bands, rate)
    empty = int((filters.amax(0) == 0).sum())
    if empty:
        raise ValueError(
            f"{empty} of {bands} bands have no bin of a Fourier transform of {2 * (bins - 1)} "
            "samples: use a larger fft_size, or fewer bands"
        )
    return filters
