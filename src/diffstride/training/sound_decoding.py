"""Decodes sound files into tensors of fixed shape."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffstride._extras import require
from diffstride._wording import first_line
from diffstride.training.augment_per_image import name_of
from diffstride.training.data_error import DataError
from diffstride.training.decoding import Decoder, read_encoded
from diffstride.training.sound import SoundFunction, log_mel

MAX_SAMPLES = 2**26  # of all channels; longer recordings are refused before they are decoded


@dataclass(frozen=True)
class SoundDecoder(Decoder):
    """Decodes sounds to float32 tensors by a function such as `log_mel`.

    Args:
        function: takes a mono recording `(N,)` and its sampling rate in Hz, and returns a
            floating-point tensor `(C, …)`, of the same shape for all recordings.

    Raises:
        ModuleNotFoundError: the packages of the extra `audio` are not installed.
    """

    function: SoundFunction = log_mel

    def __post_init__(self) -> None:
        require("audio", "loading sounds")

    def __call__(self, item: Any, name: str) -> Tensor:
        """Decode a sound; several channels are averaged.

        Raises:
            DataError: it cannot be decoded, is empty, has more than `MAX_SAMPLES`, or has values
                that are not finite.
            ValueError: the function returned no floating-point tensor with a channel axis, or
                values that are not finite.
        """
        if isinstance(item, Tensor):
            raise DataError(f"{name} is an image, not a sound: leave sound_fn out")
        try:
            sound, rate = decode_sound(read_encoded(item))
        except Exception as error:  # a damaged file may raise any type of the reader's
            raise DataError(
                f"cannot decode {name} ({_reason(error)}): replace or remove it"
            ) from error
        result = self.function(sound, rate)
        if not (isinstance(result, Tensor) and result.ndim > 1 and result.is_floating_point()):
            kind = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(
                f"sound_fn must return a floating-point tensor (channels, …), but "
                f"{name_of(self.function)} returned {kind} for {name}"
            )
        if not result.isfinite().all():
            raise ValueError(
                f"sound_fn must return finite numbers, but {name_of(self.function)} returned "
                f"{result[~result.isfinite()][0].item()} among others for {name}: a logarithm, for "
                "example, needs a lower limit for silence"
            )
        return result.detach().float()

    def explain_difference(self, shape: Sequence[int], others: Sequence[int]) -> str:
        return (
            f"the shape {tuple(shape)} by {name_of(self.function)}, others have {tuple(others)}: "
            "let sound_fn return the same shape for all sounds"
        )


def decode_sound(encoded: bytes) -> tuple[Tensor, int]:
    """The mean of all channels of a sound file `(N,)`, float32, and its sampling rate in Hz.

    Raises:
        ValueError: the file is empty, too long, or has values that are not finite.
        soundfile.SoundFileError: the file is damaged, or of a format that is not known.
    """
    _check_whole(encoded)
    import soundfile  # here, so that images need no extra for sounds

    with soundfile.SoundFile(io.BytesIO(encoded)) as file:
        if file.frames * file.channels > MAX_SAMPLES:
            raise ValueError(f"{file.frames * file.channels:,} samples, more than {MAX_SAMPLES:,}")
        # always_2d: a mono file would otherwise have no axis of channels.
        samples = torch.from_numpy(file.read(dtype="float32", always_2d=True))
        if len(samples) < max(1, file.frames):
            raise ValueError(f"{len(samples)} samples, of {file.frames} that its head promises")
        if not samples.isfinite().all():
            raise ValueError("samples that are not finite")
        return samples.mean(1), file.samplerate


def _check_whole(encoded: bytes) -> None:
    """Refuse a WAV file that was cut off, of which libsndfile would return what is left."""
    said = int.from_bytes(encoded[4:8], "little")
    unknown = said in (0, 2**32 - 1)  # written by programs that do not know the length yet
    if encoded[:4] == b"RIFF" and not unknown and said + 8 > len(encoded):
        raise ValueError(f"{len(encoded):,} bytes, of {said + 8:,} that its head promises")


def _reason(error: Exception) -> str:
    # The text of the reader's errors begins with the address of the buffer in memory.
    text = getattr(error, "error_string", None) or first_line(error)
    return str(text).rstrip(".")
