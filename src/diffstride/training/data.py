"""Data sets of images or sounds as loaders of normalised batches; by name or from a folder."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from diffstride._processes import process_count, process_rank
from diffstride._wording import counted
from diffstride.training.argument_types import check_arguments, check_at_least
from diffstride.training.augment import (
    Augmentation,
    describe_augmentation,
    find_augmentation,
    mixup,
    seeded_generator,
)
from diffstride.training.augment_per_image import name_of
from diffstride.training.data_error import DataError
from diffstride.training.decoding import Decoder
from diffstride.training.folds import check_fold
from diffstride.training.image_decoding import MAX_PIXELS, ImageDecoder
from diffstride.training.sound import find_sound_function
from diffstride.training.sound_decoding import SoundDecoder
from diffstride.training.sources import Rows, Source, read_source
from diffstride.training.storage import Examples, outlive_sigterm, store_examples

PROBE_EXAMPLES = 4  # examples by whose augmentation settings are compared


@dataclass(frozen=True)
class Datasets:
    """Training and test loader, with the number of classes and the shape of an example."""

    train: DataLoader[Any]
    test: DataLoader[Any]
    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    mean: Tensor
    std: Tensor
    settings: dict[str, Any] = field(default_factory=dict)
    """Facts that must be the same when a run is resumed, such as the number of images."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def sample(self, count: int) -> Tensor:
        """The first training examples `(B, C, …)`, normalised but not augmented."""
        dataset: Any = self.train.dataset
        return Collate(self.mean, self.std)(dataset.first(count))[0]


def load_datasets(
    name: str = "digits",
    root: str | os.PathLike[str] | None = None,
    batch_size: int = 128,
    augment_fn: str | Callable[..., Tensor] | None = None,
    mixup_alpha: float = 0.0,
    seed: int = 0,
    image_size: int | None = None,
    label_column: str | None = None,
    holdout: int = 0,
    train_examples: int | None = None,
    test_examples: int | None = None,
    memory_limit: int = 2**32,
    num_workers: int | None = None,
    sound_fn: str | Callable[..., Tensor] | None = None,
    fold: int | None = None,
    folds: int = 3,
    group_column: str | None = None,
) -> Datasets:
    """Load images or sounds as normalised float32 batches `(B, C, H, W)` or `(B, C, N)`.

    Images become `(x / 255 - mean) / std`, with the mean and standard deviation of each channel
    over the training images. Sounds become `(x - mean) / std`, where `sound_fn` computes `x`. A
    training epoch is a fixed number of full batches. They depend on `seed` and the epoch only: call
    `train.sampler.set_epoch(epoch)` before each one, as Lightning does. With several processes each
    gets its own share, in batches of `batch_size`.

    Args:
        name: `"digits"` (8 x 8, grey, embedded), `"cifar10"`, `"cifar100"`, `"fashion_mnist"` or
            `"owner/name"` of a data set on the Hugging Face Hub; with `root`, name of a folder.
        root: folder that contains the folder `name`, with `train.parquet` and `test.parquet` or
            images as `train/CLASS/*.png` and `test/CLASS/*.png`, or sounds, such as `*.wav` and
            `*.flac`. All files of a class are taken
            for such, except hidden ones, and what cannot be read is an error. The default is the
            environment variable `DIFFSTRIDE_DATA`. `"digits"` needs neither.
        batch_size: images per step and process, 1 or more.
        augment_fn: changes the training images, uint8 of 0 to 255, before they are normalised and
            mixed. One of `"crop_flip"`, `"crop"` and `"flip"`; a transform of
            `torchvision.transforms.v2`, which is called on each image `(C, H, W)`;
            `augment.per_image(f)` for any function `f` on one image; or a function of a batch
            `(B, C, H, W)` and a `torch.Generator`. Results have the shape and range of the input.
            For the float32 results of `sound_fn`, `"shift"`, `"shift_mask"` (of log-mel
            spectrograms) and `"shift_noise"` (of waveforms).
        mixup_alpha: 0 for no mixup. Above 0, a step reads 2 `batch_size` images and blends them in
            pairs, so an epoch has half the steps and its targets are class probabilities.
        seed: seed of the order, the augmentation and mixup.
        image_size: resize the shorter side to this many pixels and crop the central square.
        label_column: column of the labels in Parquet and Hub data; by default `fine_label`,
            `label` or `labels`.
        holdout: above 0, test on this many of the last training images instead of the test split,
            which is not read: for choices that must not depend on the test images.
        train_examples: use only this many of the first training images.
        test_examples: the same for the test images.
        memory_limit: bytes of decoded images, of both splits together, that may be held in memory,
            0 or more; the default is 4 GiB. Larger data sets are decoded for each batch, with the
            same results.
        num_workers: processes that prepare batches, 0 or more, where 0 is the training itself. None
            is 0 if the images are in memory, else one process for each core, up to 8.
        sound_fn: makes a tensor of fixed shape from each sound: `"log_mel"` (the default for
            sounds), `"waveform"`, or a function of a mono recording `(N,)`, float32 from -1 to 1,
            and its sampling rate in Hz. Given, all files are taken for sounds.
        fold: which of `folds` to train on, from 0; the rows of both splits are split anew, such
            that each value of `group_column`, for example each speaker, is on one side only. The
            sorted values are dealt out in turn: fold 0 tests on the first, the fourth, … It
            excludes `holdout`.
        folds: number of folds, 2 or more.
        group_column: name of a column of Parquet or Hub data, for `fold`.

    Returns:
        `Datasets`, of which `image_shape` is the shape of one image or sound. Targets are int64
        labels `(B,)`; in training with mixup they are float32
        probabilities `(B, classes)`. Grey images have one channel.

    Raises:
        ValueError: an argument is out of its range.
        DataError: the data set cannot be found or read, or does not fit the arguments.
        ModuleNotFoundError: the packages of the extra `audio`, for sounds, are not installed.

    >>> data = load_datasets("digits", batch_size=32)
    >>> data.image_shape, data.num_classes, len(data.train)
    ((1, 8, 8), 10, 44)
    >>> images, labels = next(iter(data.test))
    >>> images.shape, labels.dtype
    (torch.Size([32, 1, 8, 8]), torch.int64)
    """
    check_arguments(load_datasets, locals())
    check_at_least(1, batch_size=batch_size, image_size=image_size)
    check_at_least(1, train_examples=train_examples, test_examples=test_examples)
    check_at_least(0, memory_limit=memory_limit, num_workers=num_workers)
    if not 0 <= mixup_alpha < float("inf"):
        raise ValueError(f"mixup_alpha must be 0, for no mixup, or more, but got {mixup_alpha}")
    if image_size is not None and image_size**2 > MAX_PIXELS:
        raise ValueError(
            f"image_size must be at most {math.isqrt(MAX_PIXELS)}, but got {image_size}"
        )
    augment = find_augmentation(augment_fn)
    sound_function = find_sound_function(sound_fn)
    source = read_source(name, root, label_column, check_fold(fold, folds, group_column))
    is_sound = source.sound or sound_fn is not None
    decode: Decoder = _sounds(sound_function, image_size) if is_sound else ImageDecoder(image_size)
    train, test = _split(source, fold, holdout, train_examples, test_examples)
    step_size = batch_size * (2 if mixup_alpha else 1)
    if step_size > len(train.rows):
        raise DataError(
            f"batch_size={batch_size} with mixup_alpha={mixup_alpha} needs {step_size} images per "
            f"step, but {name!r} has {counted(len(train.rows), 'training image')}: use a smaller "
            "batch_size"
        )
    stored = store_examples(train, test, decode, memory_limit, num_workers)
    train_set = ExampleSet(stored.train, train.labels)
    test_set = ExampleSet(stored.test, test.labels)
    mean, std = _statistics(stored.moments, _scale(train_set.first(1).images))
    plain = Collate(mean, std)
    sampler = EpochSampler(train_set, seed)
    drawn = Collate(mean, std, sampler, augment, mixup_alpha, len(source.class_names))
    # Workers end with their epoch: they hold a copy of the sampler, which knows the epoch.
    load = partial(DataLoader, num_workers=stored.num_workers, worker_init_fn=outlive_sigterm)
    return Datasets(
        load(train_set, step_size, sampler=sampler, collate_fn=drawn, drop_last=True),
        load(test_set, batch_size, collate_fn=plain),
        name,
        source.class_names,
        tuple(stored.train.shape[1:]),
        mean,
        std,
        {
            "augment_fn": augment
            and describe_augmentation(augment, train_set.first(PROBE_EXAMPLES).images),
            "mixup_alpha": mixup_alpha,
            "images": [*stored.train.shape],
            "test_images": len(test_set),
            "holdout": holdout,
            **({"fold": [fold, folds, group_column]} if fold is not None else {}),
            **({"sound_fn": name_of(sound_function)} if is_sound else {}),
            "labels": _digest(source.class_names, train.labels, test.labels),
            "mean": [round(each, 3) for each in mean.tolist()],
            "std": [round(each, 3) for each in std.tolist()],
        },
    )


def _sounds(function: Callable[..., Tensor], image_size: int | None) -> Decoder:
    if image_size is not None:
        raise ValueError(
            f"image_size={image_size} is for images, but these are sounds: their shape is set by "
            "the arguments of sound_fn"
        )
    return SoundDecoder(function)


def _digest(class_names: Sequence[str], *labels: np.ndarray) -> str:
    """Hash of the class names and of all labels, 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(class_names).encode())
    for each in labels:
        digest.update(each.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _split(
    source: Source,
    fold: int | None,
    holdout: int,
    train_examples: int | None,
    test_examples: int | None,
) -> tuple[Rows, Rows]:
    train, test = source.train, source.test
    if holdout and fold is not None:
        raise ValueError(
            f"holdout={holdout} with fold={fold} would test on groups that are trained on: leave "
            "holdout out, and use another fold to choose settings"
        )
    if not 0 <= holdout < len(train.rows):
        raise ValueError(f"holdout must be 0 to {len(train.rows) - 1}, but got {holdout}")
    if holdout:
        train, test = train.take(slice(-holdout)), train.take(slice(-holdout, None))
    if test is None:
        raise DataError(
            f"there is no test split beside {train.title}: add one, or pass holdout=IMAGES"
        )
    _check_classes(source, train, test, holdout, fold)
    return train.take(slice(train_examples)), test.take(slice(test_examples))


def _check_classes(source: Source, train: Rows, test: Rows, holdout: int, fold: int | None) -> None:
    """Refuse splits without an example of each class.

    Raises:
        DataError: names the classes, and says if the other split of the data set has them.
    """
    if holdout:
        advice = "choose another holdout"
    elif fold is not None:
        advice = f"use another number of folds, or leave out fold={fold}"
    else:
        advice = "add some, or remove the class"
    kind = "sounds" if source.sound else "images"
    for part, use, other in ((train, "train", test), (test, "test", train)):
        if empty := _without_examples(source, part):
            names = ", ".join(repr(source.class_names[label]) for label in empty)
            own_splits = not holdout and fold is None
            only = own_splits and not set(empty) & set(_without_examples(source, other))
            where = f"; only {other.title} has them" if only else ""
            raise DataError(
                f"{part.title} has no {kind} of class {names} to {use} on{where}: {advice}"
            )


def _without_examples(source: Source, part: Rows) -> list[int]:
    """The classes that a part of a source has no example of."""
    return sorted(set(range(len(source.class_names))) - set(part.labels.tolist()))


class Batch(NamedTuple):
    """Raw images or sounds `(B, C, …)`, their labels and their indices in the data set."""

    images: Tensor
    labels: Tensor
    indices: list[int]


class ExampleSet(Dataset[Batch]):
    """A `Dataset` of images or sounds that is indexed by whole batches."""

    def __init__(self, images: Examples, labels: np.ndarray) -> None:
        self.images = images
        self.labels = torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        return Batch(self.images[indices], self.labels[indices], indices)

    def first(self, count: int) -> Batch:
        """The first examples, at most ``count``."""
        return self.__getitems__(list(range(min(count, len(self)))))


class EpochSampler(DistributedSampler[int]):
    """Shuffles by seed and epoch, and splits every batch over the processes.

    It is a `DistributedSampler` because Lightning wraps any other sampler and shuffles again: the
    batches of several processes would no longer add up to those of a single process.
    """

    def __init__(self, images: ExampleSet, seed: int) -> None:
        super().__init__(images, num_replicas=1, rank=0, seed=seed)
        self.size = len(images)

    def __iter__(self) -> Iterator[int]:
        processes, rank = process_count(), process_rank()
        order = torch.randperm(self.size, generator=seeded_generator(self.seed, self.epoch))
        return iter(order[rank : len(self) * processes : processes].tolist())

    def __len__(self) -> int:
        return self.size // process_count()


@dataclass(frozen=True)
class Collate:
    """Augments, normalises and mixes a batch, with random numbers seeded by its indices.

    Batches differ from epoch to epoch, so the random numbers differ too. A resumed run draws the
    same ones without any state to restore.
    """

    mean: Tensor
    std: Tensor
    sampler: EpochSampler | None = None
    augment: Augmentation | None = None
    mixup_alpha: float = 0.0
    classes: int = 0

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        images, labels, indices = batch
        generator, scale = self._generator(indices), _scale(images)
        if self.augment is not None:
            images = self.augment(images, generator)
        each_channel = (-1, *[1] * (images.ndim - 2))
        mean, std = (scale * each.view(each_channel) for each in (self.mean, self.std))
        images = images.float().sub_(mean).div_(std)
        if not self.mixup_alpha:
            return images, labels
        targets = torch.nn.functional.one_hot(labels, self.classes).float()
        return mixup(images, targets, self.mixup_alpha, generator)

    def _generator(self, indices: list[int]) -> torch.Generator:
        if self.sampler is None:
            return seeded_generator(0)
        # A batch of one image has the same index in every epoch.
        epoch = [self.sampler.epoch] * (len(indices) == 1)
        return seeded_generator(self.sampler.seed, *epoch, *indices)


def _scale(examples: Tensor) -> int:
    """The value that stands for 1: images are uint8, and sounds are floats."""
    return 255 if examples.dtype == torch.uint8 else 1


def _statistics(moments: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel from its moments, see `sum_moments`."""
    count, total, squares = moments
    mean = total / count
    std = (squares / count - mean**2).clamp_min(0).sqrt() / scale
    std[std < 1e-6] = 1.0  # a constant channel becomes 0 instead of a division by 0
    return (mean / scale).float(), std.float()
