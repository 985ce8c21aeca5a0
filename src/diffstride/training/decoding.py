"""Decodes the rows of a data set into one tensor, by a decoder of images or of sounds."""

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffstride.training.data_error import DataError
from diffstride.training.sources import Rows

MAX_BYTES = 2**29  # of an encoded image or sound


class Decoder(ABC):
    """Makes a tensor of one row. It is sent to the processes that decode."""

    @abstractmethod
    def __call__(self, item: Any, name: str) -> Tensor:
        """Decode one row.

        Args:
            item: a dictionary with the row's ``bytes`` or ``path``, or its tensor.
            name: of the row, for errors.

        Returns:
            An example without its batch axis, the same shape for all rows.

        Raises:
            DataError: the row cannot be decoded.
        """

    @abstractmethod
    def explain_difference(self, shape: Sequence[int], others: Sequence[int]) -> str:
        """What differs where an example has another shape than the others, and what to do."""


def decode_rows(split: Rows, decode: Decoder, shape: Sequence[int] | None = None) -> Tensor:
    """Decode all rows of a split to a tensor `(N, C, …)`.

    Args:
        split: one row or more.
        decode: makes the tensor of one row.
        shape: shape that all examples must have; None for that of the first.

    Raises:
        DataError: a row cannot be decoded, or differs in shape.

    >>> from diffstride.training.image_decoding import ImageDecoder
    >>> from diffstride.training.sources import read_source
    >>> tuple(decode_rows(read_source("digits").test, ImageDecoder()).shape)
    (360, 1, 8, 8)
    """
    examples = None
    for count, (row, item) in enumerate(zip(split.rows, split.fetch(split.rows), strict=True)):
        name = name_row(item, row, split.title)
        example = decode(item, name)
        if tuple(example.shape) != (shape := tuple(shape or example.shape)):
            raise DataError(f"{name} has {decode.explain_difference(example.shape, shape)}")
        if examples is None:
            examples = torch.empty(len(split.rows), *shape, dtype=example.dtype)
        examples[count] = example
    assert examples is not None  # classes without examples were refused before
    return examples


def read_encoded(item: Any) -> bytes:
    """The bytes of a row, which a file of rows may hold itself, or as the path of a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no regular file, is empty, or has more than `MAX_BYTES`.
    """
    if item["bytes"] is not None:
        return item["bytes"]
    # Reading a pipe or a device may never end. Some of the system's files say that they are empty.
    found = os.stat(item["path"])
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("no regular file")
    if not 0 < found.st_size <= MAX_BYTES:
        raise ValueError(f"{found.st_size:,} bytes, not 1 to {MAX_BYTES:,}")
    return Path(item["path"]).read_bytes()


def name_row(item: Any, row: int, title: str) -> str:
    """The name of a row in errors: its number, its path if it has one, and its split."""
    path = item.get("path") if isinstance(item, dict) else None
    return f"row {row} ({path!r}) of {title}" if path else f"row {row} of {title}"
