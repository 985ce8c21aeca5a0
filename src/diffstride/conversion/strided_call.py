"""A call of a strided module: its strides and the sizes of its maps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from torch import fx, nn

from diffstride._torch_compat import Conv
from diffstride.conversion.kernel_resampling import CoarseTaps, coarse_taps
from diffstride.conversion.module_strides import patchifies, per_axis
from diffstride.conversion.pooled_module import CropPad


@dataclass
class StridedCall:
    """One call of a module whose stride can be learned. Strides and sizes are per spatial axis.

    Attributes:
        node, module: the call, and the module that it calls.
        strides: the stride to replace.
        input_size: size of the input map.
        full_size: size of the output at stride 1, without its first ``crop`` samples.
        crop: how many samples the output at stride 1 has before the first strided one.
        strided_size: size of the strided output.
        affine: whether the module is an affine function of its input, if it is a convolution.
        placement: where the pooling goes, see `diffstride.conversion.placement`.
        only_after: why it cannot be pooled before, empty if it can.
        kept: the axes that keep their samples, of stride 1.
    """

    node: fx.Node
    module: nn.Module
    strides: tuple[int, ...]
    input_size: tuple[int, ...]
    full_size: tuple[int, ...]
    crop: tuple[int, ...]
    strided_size: tuple[int, ...]
    affine: bool = True
    placement: str = "after"
    only_after: str = ""
    kept: frozenset[int] = frozenset()

    @property
    def name(self) -> str:
        """The name of the module."""
        return str(self.node.target)

    @property
    def pointwise(self) -> bool:
        """Whether the module is a convolution that may be called after the pooling."""
        return (
            isinstance(self.module, Conv)
            and self.affine
            and max(self.module.kernel_size) == 1
            and self.full_size == self.input_size
        )

    @property
    def patchifies(self) -> bool:
        """Whether the patches of a convolution do not overlap along some axis."""
        kernels = per_axis(self.module, "kernel_size", len(self.strides))
        return isinstance(self.module, Conv) and patchifies(kernels, self.strides)

    @property
    def fits_coarse_grid(self) -> bool:
        """Whether taps as far apart as those of a convolution exist on the coarse grid."""
        dilations = per_axis(self.module, "dilation", len(self.strides))
        return all(d == 1 or d % s == 0 for d, s in zip(dilations, self.strides, strict=True))

    def crop_pad_to(self, size: Sequence[int]) -> tuple[CropPad, ...]:
        """How to crop or pad the map that is pooled to this size."""
        crops, sizes = self.crop, self.full_size
        if self.placement == "before":
            # Cropped so that the middle tap of the first sample lies on the map's first sample.
            crops = tuple(max(0, int(middle)) for middle in self._middles)
            sizes = tuple(size - c for size, c in zip(self.input_size, crops, strict=True))
        each = zip(crops, sizes, size, strict=True)
        return tuple(CropPad(crop, new - old) for crop, old, new in each)

    @property
    def _middles(self) -> list[float]:
        """Where the middle of the kernel lies on the input for the first output, per axis."""
        conv: Any = self.module
        each = zip(conv.dilation, conv.kernel_size, _padding_before(conv), strict=True)
        return [dilation * (size - 1) / 2 - padding for dilation, size, padding in each]

    def coarse_taps(self, size: Sequence[int], crop_pads: Sequence[CropPad]) -> list[CoarseTaps]:
        """The taps of the convolution on the pooled map, which is made of one of ``size``."""
        conv: Any = self.module
        kernels = zip(conv.kernel_size, conv.dilation, _padding_before(conv), strict=True)
        spacings = [old / new for old, new in zip(size, self.strided_size, strict=True)]
        return [
            coarse_taps(length, dilation, padding, crop, spacing)
            for (length, dilation, padding), (crop, _), spacing in zip(
                kernels, crop_pads, spacings, strict=True
            )
        ]

    def on_top(self) -> "StridedCall":
        """The same call with its stride as it is, to be pooled on top from a stride of 1."""
        zeros, ones = (0,) * len(self.strides), (1,) * len(self.strides)
        sizes = {"input_size": self.strided_size, "full_size": self.strided_size}
        return replace(self, strides=ones, crop=zeros, placement="on top", **sizes)


def _padding_before(conv: Any) -> Sequence[int]:
    """How many samples a convolution pads before each axis."""
    if not isinstance(conv.padding, str):
        return conv.padding
    same = int(conv.padding == "same")
    each = zip(conv.dilation, conv.kernel_size, strict=True)
    return tuple(same * (dilation * (size - 1) // 2) for dilation, size in each)


def common_size(calls: Sequence[StridedCall], axis: int) -> int:
    """The size to crop or pad outputs to before a layer that these calls share.

    It must give the strided size after pooling. Of the input and output sizes that do, the one
    closest to stride times that size shifts samples least.
    """
    stride, wanted = calls[0].strides[axis], calls[0].strided_size[axis]
    sizes = [size[axis] for call in calls for size in (call.input_size, call.full_size)]
    fitting = [size for size in sizes if ceil(size / stride) == wanted]
    return min(fitting, key=lambda n: abs(n - stride * wanted), default=(wanted - 1) * stride + 1)
