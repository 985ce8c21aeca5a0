"""Add a pooling layer to a module in place, without renaming anything.

A ``Conv2d`` becomes a ``PooledConv2d`` (see `diffstride.conversion.mixed_classes`), and the pooling
layer is its child.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from diffstride._arguments import map_size
from diffstride._torch_compat import saves_by_hooks, shares_memory
from diffstride.conversion.call_counting import CountsCalls, next_call, set_calls
from diffstride.conversion.dense_max_pooling import dense_axes, pool_densely
from diffstride.conversion.kernel_resampling import CoarseTaps, resampled_kernel
from diffstride.conversion.mixed_classes import mix_in
from diffstride.conversion.module_strides import set_stride
from diffstride.spectral.axis_plan import CPU
from diffstride.spectral.memory_format import full_precision


class CropPad(NamedTuple):
    """Samples to crop at the start of an axis and to pad at its end (or crop, if negative)."""

    crop: int = 0
    pad: int = 0


Slot = list[Any]
"""The sizes of the input and the output of a module, which others read, or nothing yet.

While a network is traced, the second is None.
"""


class Pooled(CountsCalls):
    """Mixed into the class of a module: ``y = pooling(crop_or_pad(module(x)))``.

    With ``pool_first`` it is ``y = module(pooling(crop_or_pad(x)))``. A convolution whose kernel
    was resampled for that has ``taps``, one for each axis, and their positions in the buffer
    ``coarse_taps``, so that a checkpoint tells for which grid its kernels are. For modules that
    mirror this one it notes the sizes of its maps in their ``slots``, a list for each call in a
    pass (`diffstride.conversion.enlarging_modules`). If its ``calls`` in a pass differ, ``layers``
    are the name and the ``crop_pads`` of the layer for each.

    A layer that several modules share is saved once, under the first of its names in what is saved.
    """

    class_prefix = "Pooled"
    pooling: nn.Module
    crop_pads: tuple[CropPad, ...]
    pool_first: bool
    sharers: int
    taps: tuple[CoarseTaps, ...]
    slots: list[list[Slot]]
    calls: int
    call_index: int
    layers: tuple[tuple[str, tuple[CropPad, ...]], ...]
    coarse_taps: Tensor
    dense_axes: int = 0

    @property
    def layer_names(self) -> list[str]:
        """The names of the pooling layers, each once."""
        return list(dict.fromkeys(["pooling", *(name for name, _ in self.layers)]))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        index = next_call(self)
        slots = self.slots[index] if self.slots else ()
        before = map_size(x) if slots else ()
        y = self._pooled_call(index, x, *args, **kwargs)
        for slot in slots:
            slot[:] = [before, None if isinstance(y, fx.Proxy) else map_size(y)]
        return y

    def _pooled_call(self, index: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name, pads = self.layers[index] if self.layers else ("pooling", self.crop_pads)
        pooling = getattr(self, name)
        if self.pool_first:
            return super().forward(self._pooled_input(x, pooling, pads), *args, **kwargs)  # type: ignore
        if self.dense_axes:
            y = pool_densely(self, self.dense_axes, super().forward, x)  # type: ignore
        else:
            y = super().forward(x, *args, **kwargs)  # type: ignore
        return pooling(crop_or_pad(y, pads))

    def _pooled_input(self, x: Tensor, pooling: Any, pads: tuple[CropPad, ...]) -> Tensor:
        """The pooled input, computed once for the modules that pool the same map."""
        if self.sharers == 1 or not _remembers(x):
            return pooling(crop_or_pad(x, pads))
        key: tuple[Any, ...] = (id(pooling), pads)
        if not isinstance(x, fx.Proxy):
            strides = pooling.stride_values()
            key += (strides, x._version, torch.is_grad_enabled())
        # An attribute of the map until the last module has it, so that it lives no longer.
        known, pooled, users = vars(x).pop("_pooled", (None, x, ()))
        if known != key or id(self) in users:  # a module that comes again is in another pass
            pooled, users = pooling(crop_or_pad(x, pads)), ()
        users = (*users, id(self))
        if len(users) < self.sharers:
            vars(x)["_pooled"] = key, pooled, users
        return pooled

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The state, without layers that are in the state of the whole already."""
        whole = args[0] if args else options.get("destination")
        saved = () if whole is None else whole.items()
        before = [x for name, x in saved if ".pooling" in name and isinstance(x, Tensor)]
        state = super().state_dict(*args, **options)
        prefix = args[1] if len(args) > 1 else options.get("prefix", "")
        own = tuple(f"{prefix}{layer}." for layer in self.layer_names)
        for name in [name for name in state if name.startswith(own)]:
            if any(shares_memory(state[name], other) for other in before):
                del state[name]
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: Any
    ) -> None:
        """Load a checkpoint; a kernel for the original grid is resampled."""
        if error := self._adapt_kernel(state_dict, prefix):
            lists[-1].append(error)
        for layer in self.layer_names:
            pooling: Any = getattr(self, layer)
            # Loaded a moment ago, with another module: here it gets what it has.
            if getattr(pooling, "loaded_with", None) is lists[-1]:
                for name, value in pooling.state_dict().items():
                    state_dict.setdefault(f"{prefix}{layer}.{name}", value)
            elif getattr(pooling, "fixed_axes", ()):
                self._keep_strides(pooling, state_dict, f"{prefix}{layer}.strides")
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)

    def _keep_strides(self, pooling: Any, state_dict: dict[str, Any], name: str) -> None:
        """Keep the strides of a layer that a checkpoint lacks, as 0.2 pinned all axes."""
        own = pooling.state_dict().get("strides")
        if own is not None and name not in state_dict:
            warnings.warn(
                f"the checkpoint has no {name}, as of a version that pinned all axes of this "
                f"module: they stay {pooling.stride_values()}, at which maps of the example's size "
                "are as before",
                stacklevel=2,
            )
            state_dict[name] = own

    def _adapt_kernel(self, state_dict: dict[str, Any], prefix: str) -> str | None:
        """Resample a kernel for the original grid, the error if it is for another coarse grid.

        A kernel without `coarse_taps` in the checkpoint is for the original grid: of the network
        before conversion, of one pooled after its convolutions, or of a version before 0.2.
        """
        key, name = f"{prefix}coarse_taps", f"{prefix}weight"
        own = _positions(self.taps)  # not the buffer, which a device such as meta leaves empty
        saved = state_dict.get(key)
        if saved is not None:
            if self.taps and own.shape == saved.shape and _agree(own, saved):
                return None
            return (
                f"the kernel of {prefix[:-1] or 'this module'} in the checkpoint is for another "
                "grid: convert the network as the saved one was, with the same order and an "
                "example of the same size"
            )
        kernel: Any = state_dict.get(name)
        if not self.taps or getattr(kernel, "shape", 0) != self.weight.shape:
            return None
        if any(each.startswith(f"{prefix}pooling.") for each in state_dict):
            warnings.warn(
                f"the checkpoint has strides of {prefix[:-1] or 'this module'}, but no "
                "coarse_taps: its kernel is taken for one of the original grid, as of a network "
                "pooled after its convolutions, and resampled; save buffers, too, if it is not",
                stacklevel=2,
            )
        state_dict[key] = own.to(kernel.device)
        state_dict[name] = resampled_kernel(kernel, self.taps)
        return None


def _positions(taps: Sequence[CoarseTaps]) -> Tensor:
    """The positions of the old and the new taps, one axis after the other."""
    positions = [position for axis in taps for position in (*axis.old, *axis.new)]
    return torch.tensor(positions, dtype=torch.float32, device=CPU)


def _agree(positions: Tensor, others: Tensor) -> bool:
    """Whether taps lie at the same positions, as far as half precision tells."""
    return torch.allclose(positions.cpu().float(), others.cpu().float(), rtol=0, atol=0.02)


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
    axes = dense_axes(module)  # found by the class, which changes now
    mix_in(module, Pooled)
    module.dense_axes = axes  # type: ignore[assignment]
    module.pooling = pooling
    module.crop_pads = tuple(crop_pads)  # type: ignore[assignment]
    module.pool_first = placement == "before"  # type: ignore[assignment]
    module.sharers = sharers  # type: ignore[assignment]
    module.taps = tuple(taps)  # type: ignore[assignment]
    module.slots, module.layers = [], ()  # type: ignore[assignment]
    set_calls(module, 1)
    if taps:
        module.register_buffer("coarse_taps", _positions(taps).to(module.weight.device))  # type: ignore


def set_layers(module: Any, layers: Sequence[tuple[nn.Module, tuple[CropPad, ...]]]) -> None:
    """Give a pooled module a layer for each of its calls in a pass, in place.

    Args:
        module: a module from `attach_pooling`.
        layers: the layer and the ``crop_pads`` of each call, in order.
    """
    names: dict[nn.Module, str] = {module.pooling: "pooling"}
    for layer, _ in layers:
        if layer not in names:
            names[layer] = f"pooling_{len(names)}"
            module.add_module(names[layer], layer)
    module.layers = tuple((names[layer], tuple(pads)) for layer, pads in layers)
    set_calls(module, len(layers))


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
