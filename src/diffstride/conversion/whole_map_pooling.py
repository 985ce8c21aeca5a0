"""Poolings whose window is the whole map: made global, so that they are at every size."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from diffstride.conversion.mixed_classes import Mixin, mix_in
from diffstride.conversion.stride_search import takes_whole_maps
from diffstride.graph.tracer import Trace

FUNCTIONS: dict[type[nn.Module], Any] = {
    nn.AvgPool1d: F.avg_pool1d,
    nn.AvgPool2d: F.avg_pool2d,
    nn.AvgPool3d: F.avg_pool3d,
    nn.MaxPool1d: F.max_pool1d,
    nn.MaxPool2d: F.max_pool2d,
    nn.MaxPool3d: F.max_pool3d,
}


class PoolsWholeMaps(Mixin):
    """Mixed into the class of an average or max pooling: its window is the map that comes in."""

    class_prefix = "WholeMap"

    def forward(self, x: Tensor) -> Tensor:
        # One call of the same function: `function_modules` tells calls apart by their number.
        function: Any = next(each for kind, each in FUNCTIONS.items() if isinstance(self, kind))
        return function(x, tuple(x.shape[2:]))


def pool_whole_maps(trace: Trace) -> None:
    """Make the poolings of a network global that take whole maps in every call, in place."""
    for node in trace.graph.nodes:
        module, maps = trace.module(node), trace.maps(node)
        if maps is None or type(module) not in FUNCTIONS:
            continue
        options: Any = module
        plain = options.padding in (0, (0,), (0, 0), (0, 0, 0)) and not (
            getattr(options, "divisor_override", None) or getattr(options, "return_indices", False)
        )
        if plain and set(maps[1].shape[2:]) == {1} and takes_whole_maps(trace, node):
            mix_in(options, PoolsWholeMaps)
