"""CIFAR on the device: all images as one tensor, and mixup without a transfer."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta


class Split(NamedTuple):
    """Normalised images ``(N, C, H, W)`` and their labels ``(N,)``, on the device."""

    images: Tensor
    labels: Tensor


class DeviceData(NamedTuple):
    """A data set on the device."""

    train: Split
    test: Split
    num_classes: int


def read_data(name: str, root: Path | None, device: torch.device, tiny: bool) -> DeviceData:
    """Read a data set from a folder of Parquet files, and move it to the device.

    Args:
        name: as for `diffstride.training.data.load_datasets`; the folder below ``root``.
        root: by default the environment variable ``DIFFSTRIDE_DATA``.
        device: where the images will be.
        tiny: whether to read the digits of scikit-learn instead, and few of them.
    """
    from diffstride.training.data import load_datasets

    if tiny:
        data = load_datasets("digits", train_examples=128, test_examples=64, batch_size=16)
    else:
        data = load_datasets(name, root=root)
    mean, std = (each[:, None, None] for each in (data.mean, data.std))

    def split(dataset: object) -> Split:
        images: Tensor = dataset.images  # pyright: ignore[reportAttributeAccessIssue]
        labels: Tensor = dataset.labels  # pyright: ignore[reportAttributeAccessIssue]
        normalised = (images.to(device).float() / 255 - mean.to(device)) / std.to(device)
        return Split(normalised.contiguous(memory_format=torch.channels_last), labels.to(device))

    return DeviceData(split(data.train.dataset), split(data.test.dataset), data.num_classes)


def batches(
    data: DeviceData, batch_size: int, mixup_alpha: float, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of images and class probabilities, in an order that ``seed`` sets.

    With mixup a step reads 2 ``batch_size`` images and blends them in pairs, each with a weight
    from Beta(alpha, alpha), as `diffstride.training.augment.mixup` does on the CPU.
    """
    images, labels = data.train
    torch.manual_seed(seed)
    read = batch_size * (2 if mixup_alpha else 1)
    for chosen in torch.randperm(len(images), device=images.device).split(read):
        if len(chosen) < read:
            return
        x, y = images[chosen], F.one_hot(labels[chosen], data.num_classes).float()
        yield blend(x, y, mixup_alpha) if mixup_alpha else (x, y)


def steps_per_epoch(data: DeviceData, batch_size: int, mixup_alpha: float) -> int:
    """Full batches of an epoch."""
    return len(data.train.images) // (batch_size * (2 if mixup_alpha else 1))


def blend(images: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Blend neighbours of a batch in pairs, which halves it."""
    concentration = torch.full((len(images) // 2,), alpha, device=images.device)
    # Checking the arguments would wait for the device.
    weights = Beta(concentration, concentration, validate_args=False).sample()
    return (
        torch.lerp(images[1::2], images[0::2], weights[:, None, None, None]),
        torch.lerp(targets[1::2], targets[0::2], weights[:, None]),
    )


@torch.no_grad()
def accuracy(network: torch.nn.Module, split: Split, batch_size: int = 1000) -> float:
    """Percent of the images that are classified correctly."""
    network.eval()
    pairs = zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
    hits = [(network(images).argmax(1) == labels).sum() for images, labels in pairs]
    network.train()
    return 100 * int(torch.stack(hits).sum()) / len(split.labels)
