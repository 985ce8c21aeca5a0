"""Decodes image files into uint8 tensors."""

import io
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from diffstride.training.image_folder import DataError
from diffstride.training.image_sources import Rows, first_line

# Without this list Pillow tries dozens of formats on every image. torchvision's decoders are faster
# by half, but deprecated.
FORMATS = ("WEBP", "PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF")
MAX_PIXELS = 2**26  # 8,192 x 8,192; larger images are refused before they are decoded
MAX_BYTES = 2**29  # of an encoded image


def decode_rows(split: Rows, image_size: int | None, shape: Sequence[int] | None = None) -> Tensor:
    """Decode all rows of a split to a uint8 tensor `(N, 3, H, W)`; digits have one channel.

    Args:
        split: one row or more.
        image_size: as for `load_datasets`.
        shape: channels, height and width that all images must have; None for those of the first.

    Raises:
        DataError: an image cannot be decoded, has more than `MAX_PIXELS` pixels, before or after
            resizing, or differs in size.

    >>> from diffstride.training.image_sources import read_source
    >>> tuple(decode_rows(read_source("digits").test, None).shape)
    (360, 1, 8, 8)
    """
    images = None
    for count, (row, item) in enumerate(zip(split.rows, split.fetch(split.rows), strict=True)):
        image = item if isinstance(item, Tensor) else _decode(item, row, split.title)
        if image_size is not None:
            _check_resized(image.shape, image_size, _name_image(item, row, split.title))
            image = vision.resize(image, [image_size])
            image = vision.center_crop(image, [image_size])
        if tuple(image.shape) != (shape := tuple(shape or image.shape)):
            raise DataError(
                f"{_name_image(item, row, split.title)} has {image.shape[1]} x {image.shape[2]} "
                f"pixels, others have {shape[1]} x {shape[2]}: pass image_size=PIXELS to resize "
                "all images"
            )
        if images is None:
            images = torch.empty(len(split.rows), *shape, dtype=torch.uint8)
        images[count] = image
    assert images is not None  # classes without images were refused before
    return images


def _check_resized(shape: torch.Size, image_size: int, name: str) -> None:
    """Refuse a long, thin image, which would fill the memory once its shorter side has grown."""
    short, long = sorted(shape[1:])
    if image_size * (image_size * long // short) > MAX_PIXELS:
        raise DataError(
            f"{name} has {shape[1]} x {shape[2]} pixels, too many where its shorter side has "
            f"image_size={image_size}: crop or remove it"
        )


def _decode(item: Any, row: int, title: str) -> Tensor:
    try:
        return _pixels(_encoded(item))
    except Exception as error:  # the readers of Pillow promise no types
        reason = first_line(error)
        if isinstance(error, PIL.UnidentifiedImageError):  # its text has an address in memory
            reason = f"not one of the formats {', '.join(FORMATS)}"
        raise DataError(
            f"cannot decode {_name_image(item, row, title)} ({reason}): replace or remove it"
        ) from error


def _encoded(item: Any) -> bytes:
    """The bytes of an image, which a file of rows may hold itself, or as the path of a file."""
    if item["bytes"] is not None:
        return item["bytes"]
    # Reading a pipe or a device may never end. Some of the system's files say that they are empty.
    found = os.stat(item["path"])
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("no regular file")
    if not 0 < found.st_size <= MAX_BYTES:
        raise ValueError(f"{found.st_size:,} bytes, not 1 to {MAX_BYTES:,}")
    return Path(item["path"]).read_bytes()


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
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _name_image(item: Any, row: int, title: str) -> str:
    path = item.get("path") if isinstance(item, dict) else None
    return f"row {row} ({path!r}) of {title}" if path else f"row {row} of {title}"
