"""What the analysis of a network knows a pooling layer by."""

from collections.abc import Sequence

from torch import nn


class SizedPooling(nn.Module):
    """A pooling layer that keeps batch and channels, and tells the size of what it returns.

    Networks are followed on shapes alone through such a layer, by its `output_size`, and without
    running it. A method of that name in another module means something else, and does not count.
    """

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the map that comes out for one of ``input_size``."""
        raise NotImplementedError(f"{type(self).__name__} does not tell its output size")
