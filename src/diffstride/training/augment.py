"""Augmentation of whole batches: crop, flip and mixup, each drawn from a given generator.

The transforms of `torchvision.transforms.v2` draw once per call, so a batch would be shifted and
flipped as one image, and they draw from the global state, which a resumed run cannot return to.
"""

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as vision

Augmentation = Callable[[Tensor, Generator], Tensor]


def seeded_generator(*words: int) -> Generator:
    """A generator that depends on all the given integers and on their order.

    >>> first, second = seeded_generator(0, 1), seeded_generator(1, 0)
    >>> first.initial_seed() == second.initial_seed()
    False
    """
    # Hashed, not added up: seed 0 in epoch 1 must not be seed 1 in epoch 0.
    digest = hashlib.blake2b(np.asarray(words, dtype=np.int64).tobytes(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little"))


def random_crop(
    images: Tensor, generator: Generator, padding: int = 4, padding_mode: str = "constant"
) -> Tensor:
    """Pad every image and cut its original size out at a place of its own.

    Arguments:
        images: batch `(B, C, H, W)`, usually uint8.
        generator: where the shifts are drawn from.
        padding: pixels added on every side, 0 or more; shifts are uniform in ±padding.
        padding_mode: `"constant"` (zeros), `"reflect"`, `"edge"` or `"symmetric"`.

    Returns:
        A new batch `(B, C, H, W)`.

    >>> images = torch.arange(1, 10).reshape(1, 1, 3, 3)
    >>> random_crop(images, seeded_generator(6), padding=1)[0, 0].tolist()
    [[0, 4, 5], [0, 7, 8], [0, 0, 0]]
    """
    count, _, height, width = images.shape
    padded = vision.pad(images, [padding], padding_mode=padding_mode)
    down, right = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    # A view of every possible crop: indexing it copies the chosen ones and nothing else.
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(count), :, down, right]


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror every image left to right with probability 1/2.

    >>> flip(torch.tensor([[[[1, 2]]], [[[3, 4]]]]), seeded_generator(5)).flatten().tolist()
    [2, 1, 3, 4]
    """
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def crop_and_flip(
    images: Tensor, generator: Generator, padding: int = 4, padding_mode: str = "constant"
) -> Tensor:
    """`random_crop`, then `flip`: the usual augmentation of CIFAR.

    >>> crop_and_flip(torch.ones(2, 3, 8, 8), seeded_generator(0), padding=0).mean()
    tensor(1.)
    """
    return flip(random_crop(images, generator, padding, padding_mode), generator)


AUGMENTATIONS: dict[str, Augmentation] = {
    "crop_flip": crop_and_flip,
    "crop": random_crop,
    "flip": flip,
}


def find_augmentation(augment_fn: str | Augmentation | None) -> Augmentation | None:
    """The augmentation of that name; a callable and None are returned as they are.

    >>> find_augmentation("flip").__name__
    'flip'
    """
    if augment_fn is None or callable(augment_fn):
        return augment_fn
    if augment_fn in AUGMENTATIONS:
        return AUGMENTATIONS[augment_fn]
    raise ValueError(
        f"augment_fn is {augment_fn!r}: expected None, a function (images, generator), or one of "
        f"{', '.join(map(repr, AUGMENTATIONS))}"
    )


def describe_augmentation(augment: Augmentation, images: Tensor) -> str:
    """Its name and, if it draws from its generator alone, a digest of what it makes of images.

    By the name alone two augmentations with other arguments, bound by whatever means, are one.

    >>> images = torch.arange(32).reshape(2, 1, 4, 4)
    >>> describe_augmentation(flip, images) == describe_augmentation(flip, images)
    True
    """
    name = getattr(augment, "__name__", type(augment).__name__)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = [augment(images.clone(), seeded_generator(seed)) for seed in (0, 1, 2, 0, 1, 2)]
    first, again = (torch.stack(each).double().numpy().tobytes() for each in (made[:3], made[3:]))
    return f"{name} {hashlib.sha256(first).hexdigest()[:12]}" if first == again else name


def mixup(
    images: Tensor, targets: Tensor, alpha: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Blend consecutive pairs of images, and of their targets, into one each.

    `x_i = w_i x_{2i} + (1 - w_i) x_{2i+1}` with a weight `w_i ~ Beta(alpha, alpha)` for every pair.

    Reference: *mixup: Beyond Empirical Risk Minimization*, 2018, https://arxiv.org/abs/1710.09412

    Arguments:
        images: floating-point batch `(2 B, C, H, W)`.
        targets: class probabilities `(2 B, classes)`, one-hot to begin with.
        alpha: above 0; small values leave most pairs close to one of the two images.
        generator: where the weights are drawn from.

    Returns:
        Images `(B, C, H, W)` and class probabilities `(B, classes)`.

    >>> images, targets = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), torch.eye(2)
    >>> blend, probabilities = mixup(images, targets, 1.0, seeded_generator(0))
    >>> bool(blend.item() == probabilities[0, 1])
    True
    """
    # torch's own Beta takes no generator, so numpy's is seeded from it.
    draws = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    weights = torch.from_numpy(draws.beta(alpha, alpha, len(images) // 2)).to(images)
    return (
        torch.lerp(images[1::2], images[0::2], weights[:, None, None, None]),
        torch.lerp(targets[1::2], targets[0::2], weights[:, None]),
    )
