"""Decodes image files into uint8 tensors."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from diffstride._wording import first_line
from diffstride.training.data_error import DataError
from diffstride.training.decoding import Decoder, read_encoded

# Without this list Pillow tries dozens of formats on every image. torchvision's decoders are faster
# by half, but deprecated.
FORMATS = ("WEBP", "PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF")
MAX_PIXELS = 2**26  # 8,192 x 8,192; larger images are refused before they are decoded


@dataclass(frozen=True)
class ImageDecoder(Decoder):
    """Decodes images to uint8 tensors `(3, H, W)`; digits have one channel.

    Args:
        image_size: as for `load_datasets`.
    """

    image_size: int | None = None

    def __call__(self, item: Any, name: str) -> Tensor:
        """Decode an image.

        Raises:
            DataError: it cannot be decoded, or has more than `MAX_PIXELS` pixels, before or after
                resizing.
        """
        image = item if isinstance(item, Tensor) else _decode(item, name)
        if self.image_size is None:
            return image
        _check_resized(image.shape, self.image_size, name)
        from torchvision.transforms.v2 import functional as vision  # it takes a second

        return vision.center_crop(vision.resize(image, [self.image_size]), [self.image_size])

    def explain_difference(self, shape: Sequence[int], others: Sequence[int]) -> str:
        return (
            f"{shape[1]} x {shape[2]} pixels, others have {others[1]} x {others[2]}: pass "
            "image_size=PIXELS to resize all images"
        )


def _check_resized(shape: torch.Size, image_size: int, name: str) -> None:
    """Refuse a long, thin image, which would fill the memory once its shorter side has grown."""
    short, long = sorted(shape[1:])
    if image_size * (image_size * long // short) > MAX_PIXELS:
        raise DataError(
            f"{name} has {shape[1]} x {shape[2]} pixels, too many where its shorter side has "
            f"image_size={image_size}: crop or remove it"
        )


def _decode(item: Any, name: str) -> Tensor:
    try:
        return _pixels(read_encoded(item))
    except Exception as error:  # the readers of Pillow promise no types
        reason = first_line(error)
        if isinstance(error, PIL.UnidentifiedImageError):  # its text has an address in memory
            reason = f"not one of the formats {', '.join(FORMATS)}"
        raise DataError(f"cannot decode {name} ({reason}): replace or remove it") from error


def _pixels(encoded: bytes) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # our limit is lower
        image = PIL.Image.open(io.BytesIO(encoded), formats=FORMATS)
    with image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
        if image.mode.startswith(("I", "F")):
            # Pillow would clip these at 255 instead of scaling them.
            raise ValueError(f"more than 8 bits per pixel, mode {image.mode!r}")
        PIL.ImageOps.exif_transpose(image, in_place=True)
        return torch.from_numpy(np.array(_opaque(image).convert("RGB"))).permute(2, 0, 1)


def _opaque(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image on white, as viewers show it; transparent pixels may have any color."""
    if not image.has_transparency_data:
        return image
    white = PIL.Image.new("RGBA", image.size, "white")
    return PIL.Image.alpha_composite(white, image.convert("RGBA"))
