"""Tensors that a network stores, and makes anew where its maps have another size."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from diffstride._torch_compat import FakeTensorMode, tree_map_only
from diffstride.graph.example_inputs import empty_like_weights
from diffstride.graph.fake_run import call_on_shapes, shapes_only
from diffstride.graph.restoring import restoring


@contextmanager
def another_size_stored(
    model: nn.Module, inputs: tuple, fake_mode: FakeTensorMode
) -> Iterator[bool]:
    """A context in which a network has run last with maps of twice the size, on shapes alone.

    A ``forward`` may store a grid of positions, and make it anew where it does not fit: ``if
    self.grid.shape != x.shape``. A trace of it at the size at which the network has run last would
    hold the grid as a constant of one size. Here it is made anew, and follows the maps.

    Yields:
        Whether the network has stored anything; it is as it was if it fails with larger maps.
    """
    with restoring(model) as snapshot:
        try:
            with shapes_only(fake_mode):
                call_on_shapes(model, tree_map_only(Tensor, partial(_larger, model=model), inputs))
        except Exception:
            snapshot.restore()
        yield snapshot.stores_others()


def _larger(x: Tensor, model: nn.Module) -> Tensor:
    size = [2 * length for length in x.shape[2:]]
    return empty_like_weights(x, model).new_empty((*x.shape[:2], *size))
