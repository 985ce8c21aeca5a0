"""Keeps the examples of a data set: decoded in memory, or encoded if they exceed a limit."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffstride.training.decoding import Decoder, decode_rows
from diffstride.training.sources import Rows

MAX_WORKERS = 8  # by default; machines with many cores may train several networks
CHECKED_AT_ONCE = 64
SECONDS_TO_STOP = 30


@dataclass(frozen=True)
class EncodedExamples:
    """Images or sounds of a split that are decoded whenever they are taken.

    Args:
        split: the rows.
        decode: makes the tensor of one row.
        shape: examples, channels, further axes. With one channel, that is the first of each
            example.
        decoded_channels: channels of the examples as they are decoded.
    """

    split: Rows
    decode: Decoder
    shape: tuple[int, ...]
    decoded_channels: int

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        """Decode the examples with these indices: `(B, C, …)`."""
        rows = self.split.take(np.asarray(indices))
        examples = decode_rows(rows, self.decode, (self.decoded_channels, *self.shape[2:]))
        return examples[:, : self.shape[1]]


Examples = Tensor | EncodedExamples


class Stored(NamedTuple):
    """Examples of both splits, and the moments of the training examples, see `sum_moments`."""

    train: Examples
    test: Examples
    moments: Tensor
    num_workers: int


def store_examples(
    train: Rows,
    test: Rows,
    decode: Decoder,
    memory_limit: int,
    num_workers: int | None = None,
) -> Stored:
    """Decode both splits into memory, or keep them encoded where they exceed `memory_limit`.

    All examples are decoded once in both cases, so that errors come at the start and statistics
    are exact. Images have one channel if all of them are grey.

    Args:
        train: rows of the training examples.
        test: rows of the test examples.
        decode: makes the tensor of one row.
        memory_limit: largest number of bytes of decoded examples.
        num_workers: processes that decode; None for 0 in memory, else the number of cores up to 8.

    Raises:
        DataError: an example cannot be decoded, or differs in shape from the first one.

    >>> from diffstride.training.image_decoding import ImageDecoder
    >>> from diffstride.training.sources import read_source
    >>> source = read_source("digits")
    >>> stored = store_examples(source.train, source.test, ImageDecoder(), memory_limit=10**6)
    >>> stored.train.shape, stored.moments.shape
    (torch.Size([1437, 1, 8, 8]), torch.Size([3, 1]))
    """
    first = decode_rows(train.take(slice(1)), decode)
    shape = first.shape[1:]
    if (len(train.rows) + len(test.rows)) * first.nbytes <= memory_limit:
        stored = _decode_all(train, test, decode, shape)
        return stored._replace(num_workers=num_workers or 0)
    workers = min(MAX_WORKERS, _usable_cores()) if num_workers is None else num_workers
    return _check_all(train, test, decode, shape, workers)


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


def _decode_all(train: Rows, test: Rows, decode: Decoder, shape: Sequence[int]) -> Stored:
    examples, test_examples = (decode_rows(each, decode, shape) for each in (train, test))
    if shape[0] > 1 and _are_grey(examples) and _are_grey(test_examples):
        # Grey images are often stored with three equal channels.
        examples, test_examples = examples[:, :1].clone(), test_examples[:, :1].clone()
    parts = map(sum_moments, examples.split(CHECKED_AT_ONCE))
    return Stored(examples, test_examples, torch.stack([*parts]).sum(0), 0)


def _check_all(
    train: Rows, test: Rows, decode: Decoder, shape: Sequence[int], num_workers: int
) -> Stored:
    """Decode all examples once in workers, and keep only their moments."""
    examples, test_examples = (
        EncodedExamples(each, decode, (len(each.rows), *shape), shape[0]) for each in (train, test)
    )
    moments, train_grey = _decode_once(examples, num_workers)
    _, test_grey = _decode_once(test_examples, num_workers)
    if train_grey and test_grey:
        examples, test_examples = map(_first_channel, (examples, test_examples))
        moments = moments[:, :1]
    return Stored(examples, test_examples, moments, num_workers)


def _first_channel(examples: EncodedExamples) -> EncodedExamples:
    count, _, *size = examples.shape
    return replace(examples, shape=(count, 1, *size))


def _decode_once(examples: EncodedExamples, num_workers: int) -> tuple[Tensor, bool]:
    """Moments of all examples, and whether all of them are grey.

    Raises:
        DataError: an example cannot be decoded, or differs in shape.
    """
    parts, grey = [], True
    loader = DataLoader(
        _Facts(examples), CHECKED_AT_ONCE, num_workers=num_workers, collate_fn=_unchanged
    )
    for moments, are_grey in loader:
        parts.append(moments)
        grey = grey and are_grey
    return torch.stack(parts).sum(0), grey


class _Facts(Dataset[Any]):
    """Moments, and greyness, of whole batches of examples."""

    def __init__(self, examples: EncodedExamples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, bool]:
        examples = self.examples[indices]
        return sum_moments(examples), _are_grey(examples)


def _unchanged(value: Any) -> Any:  # no lambda, which cannot be sent to spawned workers
    return value


def _are_grey(examples: Tensor) -> bool:
    return bool((examples == examples[:, :1]).all())


def sum_moments(examples: Tensor) -> Tensor:
    """The number of values, their sum and the sum of their squares, for each channel: `(3, C)`.

    In float64, so that these are exact for up to 10^11 values of uint8.

    >>> sum_moments(torch.tensor([[[1, 2, 3]]], dtype=torch.uint8))[:, 0].tolist()
    [3.0, 6.0, 14.0]
    """
    channels = examples.transpose(0, 1).flatten(1).double()
    counts = torch.full((len(channels),), channels.shape[1], dtype=torch.float64)
    return torch.stack([counts, channels.sum(1), channels.square().sum(1)])
