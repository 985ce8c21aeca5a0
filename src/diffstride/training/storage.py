"""Keeps the images of a data set: decoded in memory, or encoded if they exceed a limit."""

import math
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffstride.training.image_decoding import decode_rows
from diffstride.training.image_sources import Rows

MAX_WORKERS = 8  # by default; machines with many cores may train several networks
CHECKED_AT_ONCE = 64
SECONDS_TO_STOP = 30


@dataclass(frozen=True)
class EncodedImages:
    """Images of a split that are decoded whenever they are taken.

    Args:
        split: the rows.
        image_size: as for `load_datasets`.
        shape: images, channels, height, width. With one channel, that is the first of each image.
        decoded_channels: channels of the images as they are decoded.
    """

    split: Rows
    image_size: int | None
    shape: tuple[int, int, int, int]
    decoded_channels: int

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        """Decode the images with these indices: uint8 `(B, C, H, W)`."""
        rows = self.split.take(np.asarray(indices))
        images = decode_rows(rows, self.image_size, (self.decoded_channels, *self.shape[2:]))
        return images[:, : self.shape[1]]


Images = Tensor | EncodedImages


class Stored(NamedTuple):
    """Images of both splits, and how often each channel of the training images has each value."""

    train: Images
    test: Images
    counts: Tensor
    num_workers: int


def store_images(
    train: Rows,
    test: Rows,
    image_size: int | None,
    memory_limit: int,
    num_workers: int | None = None,
) -> Stored:
    """Decode both splits into memory, or keep them encoded where they exceed `memory_limit`.

    All images are decoded once in both cases, so that errors come at the start and statistics are
    exact. Images have one channel if all of them are grey.

    Args:
        train: rows of the training images.
        test: rows of the test images.
        image_size: as for `load_datasets`; so are `memory_limit` and `num_workers`.
        memory_limit: largest number of bytes of decoded images.
        num_workers: processes that decode; None for 0 in memory, else the number of cores up to 8.

    Raises:
        DataError: an image cannot be decoded, or differs in size from the first one.

    >>> from diffstride.training.image_sources import read_source
    >>> source = read_source("digits")
    >>> stored = store_images(source.train, source.test, None, memory_limit=10**6)
    >>> stored.train.shape, stored.counts.shape
    (torch.Size([1437, 1, 8, 8]), torch.Size([1, 256]))
    """
    shape = decode_rows(train.take(slice(1)), image_size).shape[1:]
    if (len(train.rows) + len(test.rows)) * math.prod(shape) <= memory_limit:
        stored = _decode_all(train, test, image_size, shape)
        return stored._replace(num_workers=num_workers or 0)
    workers = min(MAX_WORKERS, _usable_cores()) if num_workers is None else num_workers
    return _check_all(train, test, image_size, shape, workers)


def outlive_sigterm(worker: int) -> None:
    """Have SIGTERM end a worker only after a while; for ``worker_init_fn`` of a `DataLoader`.

    Job engines send the signal to all processes. The training ends before its next batch. Workers
    that end before it would make it fail instead.
    """
    if hasattr(signal, "alarm"):  # not on Windows
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_TO_STOP))


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _decode_all(train: Rows, test: Rows, image_size: int | None, shape: Sequence[int]) -> Stored:
    images, test_images = (decode_rows(each, image_size, shape) for each in (train, test))
    if _are_grey(images) and _are_grey(test_images):  # often stored with three equal channels
        images, test_images = images[:, :1].clone(), test_images[:, :1].clone()
    return Stored(images, test_images, _count(images), 0)


def _check_all(
    train: Rows, test: Rows, image_size: int | None, shape: Sequence[int], num_workers: int
) -> Stored:
    """Decode all images once in workers, and keep only the counts of their values."""
    channels, height, width = shape
    images, test_images = (
        EncodedImages(each, image_size, (len(each.rows), channels, height, width), channels)
        for each in (train, test)
    )
    counts, train_grey = _decode_once(images, num_workers)
    _, test_grey = _decode_once(test_images, num_workers)
    if train_grey and test_grey:
        return Stored(_first_channel(images), _first_channel(test_images), counts[:1], num_workers)
    return Stored(images, test_images, counts, num_workers)


def _first_channel(images: EncodedImages) -> EncodedImages:
    count, channels, *size = images.shape
    return EncodedImages(images.split, images.image_size, (count, 1, size[0], size[1]), channels)


def _decode_once(images: EncodedImages, num_workers: int) -> tuple[Tensor, bool]:
    """Counts of the values of all images, and whether all images are grey.

    Raises:
        DataError: an image cannot be decoded, or differs in size.
    """
    counts, grey = torch.zeros(images.shape[1], 256, dtype=torch.int64), True
    loader = DataLoader(
        _Facts(images), CHECKED_AT_ONCE, num_workers=num_workers, collate_fn=_unchanged
    )
    for counted, are_grey in loader:
        counts += counted
        grey = grey and are_grey
    return counts, grey


class _Facts(Dataset[Any]):
    """Counts of values, and greyness, of whole batches of images."""

    def __init__(self, images: EncodedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, bool]:
        images = self.images[indices]
        return _count(images), _are_grey(images)


def _unchanged(value: Any) -> Any:  # no lambda, which cannot be sent to spawned workers
    return value


def _are_grey(images: Tensor) -> bool:
    return bool((images == images[:, :1]).all())


def _count(images: Tensor) -> Tensor:
    """How often each channel has each value: `(C, 256)`."""
    channels = [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
    return torch.stack(channels)
