"""Data augmentation of uint8 batches with a given random generator: crop, flip and mixup."""

import hashlib
import inspect
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor, nn

from diffstride.training.augment_per_image import (
    PerImage,
    checked_result,
    name_of,
    per_image,
)
from diffstride.training.augment_sound import (
    check_maps,
    gain_and_noise,
    gain_of_log_mel,
    mask,
    shift,
    shift_and_mask,
    shift_and_noise,
)

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "crop_and_flip",
    "describe_augmentation",
    "find_augmentation",
    "flip",
    "gain_and_noise",
    "gain_of_log_mel",
    "mask",
    "mixup",
    "per_image",
    "random_crop",
    "seeded_generator",
    "shift",
    "shift_and_mask",
    "shift_and_noise",
]

Augmentation = Callable[[Tensor, Generator], Tensor]


def seeded_generator(*words: int) -> Generator:
    """A random generator seeded by all given integers and their order.

    >>> first, second = seeded_generator(0, 1), seeded_generator(1, 0)
    >>> first.initial_seed() == second.initial_seed()
    False
    """
    # A hash, not a sum: seed 0 in epoch 1 must not equal seed 1 in epoch 0.
    digest = hashlib.blake2b(np.asarray(words, dtype=np.int64).tobytes(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little"))


def random_crop(
    images: Tensor, generator: Generator, padding: int = 4, padding_mode: str = "constant"
) -> Tensor:
    """Pad every image, then crop it to its original size at a random position.

    Args:
        images: batch `(B, C, H, W)`, usually uint8.
        generator: draws the shifts.
        padding: pixels added on every side, 0 or more; shifts are uniform in ±padding.
        padding_mode: `"constant"` (zeros), `"reflect"`, `"edge"` or `"symmetric"`.

    Returns:
        A new batch `(B, C, H, W)`.

    Raises:
        ValueError: the batch has other axes.

    >>> images = torch.arange(1, 10).reshape(1, 1, 3, 3)
    >>> random_crop(images, seeded_generator(6), padding=1)[0, 0].tolist()
    [[0, 4, 5], [0, 7, 8], [0, 0, 0]]
    """
    check_maps(images)
    count, _, height, width = images.shape
    from torchvision.transforms.v2 import functional as vision  # not before: it takes a second

    padded = vision.pad(images, [padding], padding_mode=padding_mode)
    down, right = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    # A view of all possible crops: indexing it copies only the chosen ones.
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(count), :, down, right]


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Flip every image `(C, H, W)` of a batch horizontally with probability 1/2.

    Raises:
        ValueError: the batch has other axes.

    >>> flip(torch.tensor([[[[1, 2]]], [[[3, 4]]]]), seeded_generator(5)).flatten().tolist()
    [2, 1, 3, 4]
    """
    check_maps(images)
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def crop_and_flip(
    images: Tensor, generator: Generator, padding: int = 4, padding_mode: str = "constant"
) -> Tensor:
    """`random_crop`, then `flip`: the usual data augmentation of CIFAR.

    >>> crop_and_flip(torch.ones(2, 3, 8, 8), seeded_generator(0), padding=0).mean()
    tensor(1.)
    """
    return flip(random_crop(images, generator, padding, padding_mode), generator)


AUGMENTATIONS: dict[str, Augmentation] = {
    "crop_flip": crop_and_flip,
    "crop": random_crop,
    "flip": flip,
    "shift": shift,
    "shift_mask": shift_and_mask,
    "shift_noise": shift_and_noise,
}


def find_augmentation(augment_fn: str | Callable[..., Tensor] | None) -> Augmentation | None:
    """The augmentation of whole batches that an argument ``augment_fn`` stands for.

    A name stands for its function, and a transform of `torchvision.transforms.v2` is applied to
    each image on its own. Another callable takes a batch and a generator.

    Raises:
        ValueError: there is no such name, or the callable does not take these two arguments.

    >>> find_augmentation("flip").__name__
    'flip'
    >>> from torchvision.transforms import v2
    >>> find_augmentation(v2.RandomVerticalFlip())
    PerImage(function=RandomVerticalFlip(p=0.5))
    """
    from torchvision.transforms import v2

    if isinstance(augment_fn, v2.Transform):
        return PerImage(augment_fn)
    if isinstance(augment_fn, str) and augment_fn in AUGMENTATIONS:
        return AUGMENTATIONS[augment_fn]
    if augment_fn is not None and (not callable(augment_fn) or isinstance(augment_fn, type)):
        raise ValueError(
            f"augment_fn must be None, a function (images, generator), a transform such as "
            f"v2.RandomCrop(32, padding=4) or one of {', '.join(map(repr, AUGMENTATIONS))}, but "
            f"got {augment_fn!r}"
        )
    if augment_fn is not None:
        _check_takes_batches(augment_fn)
    return augment_fn


def _check_takes_batches(function: Callable[..., Tensor]) -> None:
    call = function.forward if isinstance(function, nn.Module) else function
    try:
        signature = inspect.signature(call)
    except ValueError:  # some functions written in C have none
        return
    try:
        signature.bind("images", "generator")
    except TypeError as error:
        raise ValueError(
            f"augment_fn must take a batch and a generator, (images, generator), but got "
            f"{name_of(function)}{signature}: for a function on one image pass "
            f"augment.per_image({name_of(function)})"
        ) from error


def describe_augmentation(augment: Augmentation, images: Tensor) -> str:
    """Name of an augmentation, with a digest of its results on a few images.

    The digest differs where the arguments differ, however they were bound. It is left out if the
    results do not depend on the generator alone.

    Raises:
        ValueError: the results have another shape or dtype than the images.

    >>> images = torch.arange(32).reshape(2, 1, 4, 4)
    >>> describe_augmentation(flip, images) == describe_augmentation(flip, images)
    True
    """
    name, taken = name_of(augment), (images.dtype, images.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        results = [
            checked_result(augment, taken, augment(images.clone(), seeded_generator(seed)))
            for seed in (0, 1, 2, 0, 1, 2)
        ]
    halves = results[:3], results[3:]
    first, again = (torch.stack(half).double().numpy().tobytes() for half in halves)
    return f"{name} {hashlib.sha256(first).hexdigest()[:12]}" if first == again else name


def mixup(
    images: Tensor, targets: Tensor, alpha: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Mixup: blend consecutive pairs of images, and their targets, into one each.

    `x_i = w_i x_{2i} + (1 - w_i) x_{2i+1}` with a weight `w_i ~ Beta(alpha, alpha)` for every pair.

    Reference: *mixup: Beyond Empirical Risk Minimization*, 2018, https://arxiv.org/abs/1710.09412

    Args:
        images: floating-point batch `(2 B, C, …)`.
        targets: class probabilities `(2 B, classes)`, usually one-hot.
        alpha: above 0; with small values most results are close to one of the two images.
        generator: draws the weights.

    Returns:
        Images `(B, C, …)` and class probabilities `(B, classes)`.

    >>> images, targets = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), torch.eye(2)
    >>> blend, probabilities = mixup(images, targets, 1.0, seeded_generator(0))
    >>> bool(blend.item() == probabilities[0, 1])
    True
    """
    # torch's Beta distribution takes no generator, NumPy's does: seed it from the generator.
    draws = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    weights = torch.from_numpy(draws.beta(alpha, alpha, len(images) // 2)).to(images)
    return (
        torch.lerp(images[1::2], images[0::2], weights.view(-1, *[1] * (images.ndim - 1))),
        torch.lerp(targets[1::2], targets[0::2], weights[:, None]),
    )
