"""Add a pooling layer to a module in place, without renaming anything.

A ``Conv2d`` becomes a ``PooledConv2d`` (see `diffstride.conversion.mixed_classes`), and the pooling
layer is its child.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from diffstride._arguments import map_size
from diffstride._torch_compat import saves_by_hooks
from diffstride.conversion.kernel_resampling import CoarseTaps, resampled_kernel
from diffstride.conversion.mixed_classes import Mixin, mix_in
from diffstride.spectral.memory_format import full_precision


class CropPad(NamedTuple):
    """Samples to crop at the start of an axis and to pad at its end (or crop, if negative)."""

    crop: int = 0
    pad: int = 0


class Pooled(Mixin):
    """Mixed into the class of a module: ``y = pooling(crop_or_pad(module(x)))``.

    With ``pool_first`` it is ``y = module(pooling(crop_or_pad(x)))``. A convolution whose kernel
    was resampled for that has ``taps``, one for each axis. For modules that mirror this one
    it notes the size of its input in their ``slots`` (`diffstride.conversion.enlarging_modules`).
    """

    class_prefix = "Pooled"
    pooling: nn.Module
    crop_pads: tuple[CropPad, ...]
    pool_first: bool
    sharers: int
    taps: tuple[CoarseTaps, ...]
    slots: list[list[Any]]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        for slot in self.slots:
            slot[:] = map_size(x), True
        if self.pool_first:
            return super().forward(self._pooled_input(x), *args, **kwargs)  # type: ignore
        return self.pooling(crop_or_pad(super().forward(x, *args, **kwargs), self.crop_pads))  # type: ignore

    def _pooled_input(self, x: Tensor) -> Tensor:
        """The pooled input, computed once for the modules that pool the same map."""
        if self.sharers == 1 or not _remembers(x):
            return self.pooling(crop_or_pad(x, self.crop_pads))
        key: tuple[Any, ...] = (id(self.pooling), self.crop_pads)
        if not isinstance(x, fx.Proxy):
            strides = self.pooling.stride_values()  # type: ignore[operator]
            key += (strides, x._version, torch.is_grad_enabled())
        # An attribute of the map until the last module has it, so that it lives no longer.
        known, pooled, users = vars(x).pop("_pooled", (None, x, ()))
        if known != key or id(self) in users:  # a module that comes again is in another pass
            pooled, users = self.pooling(crop_or_pad(x, self.crop_pads)), ()
        users = (*users, id(self))
        if len(users) < self.sharers:
            vars(x)["_pooled"] = key, pooled, users
        return pooled

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Load a checkpoint, also that of the network before conversion: resample its kernel."""
        name = f"{prefix}weight"
        converted = any(key.startswith(f"{prefix}pooling.") for key in state_dict)
        kernel = state_dict.get(name)
        if self.taps and not converted and getattr(kernel, "shape", 0) == self.weight.shape:
            state_dict = {**state_dict, name: resampled_kernel(kernel, self.taps)}
        super()._load_from_state_dict(state_dict, prefix, *args)


def _remembers(x: Any) -> bool:
    """Whether what is computed of ``x`` may be stored on it: it is plain, and made in this pass."""
    if torch.compiler.is_compiling() or saves_by_hooks():
        return False  # a checkpoint of one module would not find the pooled map again
    if isinstance(x, fx.Proxy):
        return True
    made_here = x.grad_fn is not None or not torch.is_grad_enabled()
    return type(x) is Tensor and made_here and not x.is_inference()


def attach_pooling(
    module: nn.Module,
    pooling: nn.Module,
    crop_pads: Sequence[CropPad],
    placement: str = "after",
    sharers: int = 1,
    taps: Sequence[CoarseTaps] = (),
) -> None:
    """Give ``module`` a pooling layer, in place.

    Args:
        module: the module.
        pooling: the layer, which other modules may share.
        crop_pads: how to crop or pad the map before it is pooled.
        placement: ``"before"``, ``"after"`` or ``"on top"``, see `diffstride.conversion.placement`.
        sharers: how many modules, this one included, pool the same map by the same layer.
        taps: of a resampled kernel, for each axis.

    >>> conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    >>> attach_pooling(conv, nn.AvgPool2d(4), [CropPad(), CropPad()])
    >>> conv
    PooledConv2d(
      3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)
      (pooling): AvgPool2d(kernel_size=4, stride=4, padding=0)
    )
    >>> isinstance(conv, nn.Conv2d), list(conv.state_dict())
    (True, ['weight', 'bias'])
    """
    if placement != "on top":
        set_stride(module, 1)
    mix_in(module, Pooled)
    module.pooling = pooling
    module.crop_pads = tuple(crop_pads)  # type: ignore[assignment]
    module.pool_first = placement == "before"  # type: ignore[assignment]
    module.sharers = sharers  # type: ignore[assignment]
    module.taps = tuple(taps)  # type: ignore[assignment]
    module.slots = []  # type: ignore[assignment]


def set_stride(module: nn.Module, stride: int) -> None:
    """Set ``module.stride`` on all axes, keeping its type; do nothing if there is none."""
    if hasattr(module, "stride"):
        old = module.stride
        many = isinstance(old, (tuple, list))
        module.stride = type(old)(stride for _ in old) if many else stride  # type: ignore


def crop_or_pad(x: Tensor, crop_pads: Sequence[CropPad]) -> Tensor:
    """Crop each spatial axis at its start, and crop it or repeat the last sample at its end.

    At stride 1, parallel branches may return maps of slightly different sizes, due to an even
    kernel, no padding or ``ceil_mode``. After this they are equal at every stride.

    >>> import torch
    >>> crop_or_pad(torch.arange(4.0).reshape(1, 1, 4), [CropPad(crop=1, pad=2)])
    tensor([[[1., 2., 3., 3., 3.]]])
    """
    for dim, (crop, pad) in enumerate(crop_pads, start=2):
        if crop or pad < 0:
            x = x.narrow(dim, crop, x.shape[dim] - crop + min(pad, 0))
    if any(pad > 0 for _, pad in crop_pads):
        pads = [size for _, pad in reversed(crop_pads) for size in (0, max(pad, 0))]
        with full_precision(x):  # autocast would return float32
            x = F.pad(x, pads, mode="replicate")
    return x
