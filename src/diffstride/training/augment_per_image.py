"""Augmentation of one image at a time, by torchvision's transforms or any function.

The transforms of `torchvision.transforms.v2` draw once a call, so they would shift and flip all
images of a batch alike. They draw from the global random state, which a resumed run cannot restore.
So each image is passed on its own, after the global states were seeded by the generator of the
batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from diffstride._random_states import kept_random_states, seed_python_and_numpy


def per_image(function: Callable[[Tensor], Tensor]) -> "PerImage":
    """An augmentation of batches that calls a function on each image, for ``augment_fn``.

    The function may draw from the global random states of torch, NumPy and Python. They are seeded
    for each batch, and restored after it.

    Args:
        function: from a uint8 image `(C, H, W)`, with values of 0 to 255, to an image of the same
            dtype and shape. Conversion to floats and normalisation come later, by the loader.

    Returns:
        A callable of a batch `(B, C, H, W)` and a `torch.Generator`, which returns a new batch.

    Raises:
        ValueError: ``function`` cannot be called, or, in a call of the result, it returns no tensor
            of the same dtype and shape.

    >>> darker = per_image(lambda image: image // 2)
    >>> darker(torch.tensor([[[[200, 100]]]], dtype=torch.uint8), Generator()).tolist()
    [[[[100, 50]]]]
    """
    if not callable(function) or isinstance(function, type):
        raise ValueError(f"per_image takes a function on one image, but got {function!r}")
    return PerImage(function)


@dataclass(frozen=True)
class PerImage:
    """Calls ``function`` on each image of a batch, see `per_image`."""

    function: Callable[[Tensor], Any]

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        with global_states_seeded_by(generator):
            return torch.stack([self._change(image) for image in images])

    def _change(self, image: Tensor) -> Tensor:
        taken = image.dtype, image.shape
        return checked_result(self.function, taken, self.function(image))


def checked_result(
    function: Callable[..., Any], taken: tuple[torch.dtype, torch.Size], result: Any
) -> Tensor:
    """What an augmentation returned, if it has the dtype and the shape of what it has ``taken``.

    Raises:
        ValueError: it has others.
    """
    if isinstance(result, Tensor) and (result.dtype, result.shape) == taken:
        return result
    is_tensor = isinstance(result, Tensor)
    got = _describe(result.dtype, result.shape) if is_tensor else f"a {type(result).__name__}"
    raise ValueError(
        "augment_fn must return images of the shape and dtype that it takes, here "
        f"{_describe(*taken)}, but {name_of(function)} returned {got}: set the size by image_size, "
        "and leave out conversion to floats and normalisation, which come later"
    )


@contextmanager
def global_states_seeded_by(generator: Generator) -> Iterator[None]:
    """Seed the global random states of torch (CPU), NumPy and Python, and restore them at the end.

    >>> import random
    >>> import numpy as np
    >>> with global_states_seeded_by(Generator().manual_seed(0)):
    ...     first = torch.rand(1), random.random(), np.random.rand()
    >>> with global_states_seeded_by(Generator().manual_seed(0)):
    ...     first == (torch.rand(1), random.random(), np.random.rand())
    True
    """
    seed = int(torch.randint(2**32, (1,), generator=generator))
    with kept_random_states():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds accelerators, too
        seed_python_and_numpy(seed)
        yield


def name_of(function: Callable[..., Any]) -> str:
    """Name of a function, or of the class of a callable object.

    >>> name_of(per_image(torch.flip))
    'per_image(flip)'
    """
    if isinstance(function, PerImage):
        return f"per_image({name_of(function.function)})"
    return getattr(function, "__name__", type(function).__name__)


def _describe(dtype: torch.dtype, shape: torch.Size) -> str:
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"
