"""Learned strides turned into constants, for deployment."""

from collections.abc import Sequence
from math import ceil, log
from typing import Any

import torch
from torch import Tensor, nn

from diffstride.base import SizedPooling
from diffstride.execution import evaluating
from diffstride.inputs import Model, cast_to_weights, copied
from diffstride.layout import FIRST_DIM, full_precision, layout_of
from diffstride.one_axis import multiply
from diffstride.pooling import DiffStride, FixedSpectralPooling
from diffstride.products import axis_order
from diffstride.spectrum import Axis, axis_matrix, plan_axis, plan_spectral_axis, whole


class FrozenPooling(SizedPooling):
    """A pooling layer as constant matrices: ``y = A_1 … A_n x`` for the map sizes it has met.

    Made by `freeze`. Nothing but matrix products with buffers is left, so that programs can be
    exported.

    >>> pool = FrozenPooling(DiffStride(2.0, edge="stopband"))
    >>> pool.meet((8, 8))
    >>> pool(torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 1, 4, 4])
    >>> pool
    FrozenPooling((8, 8) -> (4, 4))
    """

    def __init__(
        self, layer: DiffStride | FixedSpectralPooling, round_to: float | None = None
    ) -> None:
        super().__init__()
        self.layer_axes = [_Planner(layer, i, round_to) for i in range(layer.num_axes)]
        self.sizes: dict[tuple[int, ...], tuple[int, ...]] = {}
        self.orders: dict[tuple[int, ...], list[int]] = {}

    def meet(
        self, sizes: Sequence[int], dtype: torch.dtype = torch.float32, device: Any = None
    ) -> None:
        """Make the matrices for maps of these sizes."""
        axes = [plan(size) for plan, size in zip(self.layer_axes, sizes, strict=True)]
        self.sizes[tuple(sizes)] = tuple(axis.output_size for axis in axes)
        self.orders[tuple(sizes)] = axis_order(axes)
        for i, axis in enumerate(axes):
            self.register_buffer(f"matrix_{i}_{axis.size}", axis_matrix(axis).to(device, dtype))

    def forward(self, x: Tensor) -> Tensor:
        sizes = tuple(int(size) for size in x.shape[2:])  # TorchScript traces them as tensors
        self._check_met(sizes)
        with full_precision(x):
            return self._pool(x, {i: f"matrix_{i}_{sizes[i]}" for i in self.orders[sizes]})

    def _pool(self, x: Tensor, names: dict[int, str]) -> Tensor:
        matrices = {i: getattr(self, name) for i, name in names.items()}
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore
            for i, matrix in matrices.items():
                x = _multiply(matrix.to(x.dtype), x, 2 + i)
            return x
        layout = layout_of(x, len(matrices))
        dense = layout.enter(x).to(layout.compute_dtype)
        for i, matrix in matrices.items():
            dense = multiply(matrix.to(dense.dtype), dense, FIRST_DIM + i, len(matrix))
        return layout.leave(dense)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the map that comes out for one of ``input_size``."""
        self._check_met(tuple(input_size))
        return self.sizes[tuple(input_size)]

    def _check_met(self, sizes: tuple[int, ...]) -> None:
        if sizes not in self.sizes:
            met = " or ".join(map(str, self.sizes)) or "no size, as the example did not reach it"
            raise ValueError(
                f"the pooling was frozen for maps of {met}, but got {sizes}: freeze the network "
                "with an example of the size to be used"
            )

    def extra_repr(self) -> str:
        return ", ".join(f"{before} -> {after}" for before, after in self.sizes.items())


class _Planner:
    """How one axis of a layer is pooled, its stride being what it is now."""

    def __init__(self, layer: Any, index: int, round_to: float | None) -> None:
        self.fixed = isinstance(layer, FixedSpectralPooling)
        self.stride = layer.strides[index] if self.fixed else layer.stride_values()[index]
        self.round_to = round_to
        if not self.fixed:
            self.settings = layer.window_settings

    def __call__(self, size: int) -> Axis:
        if self.fixed:
            axis = plan_spectral_axis(size, self.stride)
        else:
            axis = plan_axis(size, self.stride, *self.settings)
        if self.round_to is None or axis.output_size == size:
            return axis
        stride = nearest_stride(axis, self.round_to)
        if self.fixed:
            return plan_spectral_axis(size, stride)
        smoothness_factor, *_, straight_through = self.settings
        window = smoothness_factor, "stopband", True, straight_through
        return plan_axis(size, stride, *window)


def nearest_stride(axis: Axis, round_to: float) -> float:
    """The multiple of ``round_to``, or 1, whose map size ``ceil(N/s)`` is nearest to an axis'.

    Of two as near, the nearer in stride.

    >>> [nearest_stride(plan_axis(32, s, edge="stopband"), 1) for s in (1.2, 1.4, 2.4, 2.8)]
    [1, 2, 2, 3]
    """
    strides = [1, *(k * round_to for k in range(1, ceil(axis.size / round_to) + 1))]

    def distance(stride: float) -> tuple[float, float]:
        size = whole(axis.size / stride)
        return abs(size - axis.output_size), abs(log(stride / axis.stride))

    return min((stride for stride in strides if stride >= 1), key=distance)


@torch.inference_mode(mode=False)  # what is made there could not be trained
def freeze(model: Model, example: Any, round_to: float | None = None) -> Model:
    """The same network with constant matrices in place of its pooling layers.

    The outputs stay the same, for inputs of the example's size and any batch; the strides learn no
    more. `torch.export`, ``torch.compile(fullgraph=True)`` and ``torch.onnx.export(dynamo=True)``
    take the result. The model given is left as it is.

    Args:
        model: a network with `DiffStride` (or `FixedSpectralPooling`) layers.
        example: an input, or a tuple of inputs, of the size that will be used; where the weights
            have one dtype, it is taken to have that.
        round_to: if given, every map gets the nearest size that a strided network could have,
            whose stride is 1 or a multiple of ``round_to``: 1 for integer strides, 2 for even
            ones. This changes the outputs.

    Returns:
        A copy, in the mode of the model, with `FrozenPooling` layers.

    Raises:
        ValueError: if ``round_to`` is not positive or the model has no layer to freeze.

    >>> net = nn.Sequential(DiffStride(1.9, edge="stopband"), nn.Flatten(2))
    >>> freeze(net, torch.zeros(1, 1, 32, 32))
    Sequential(
      (0): FrozenPooling((32, 32) -> (17, 17))
      (1): Flatten(start_dim=2, end_dim=-1)
    )
    >>> freeze(net, torch.zeros(1, 1, 32, 32), round_to=1)[0]
    FrozenPooling((32, 32) -> (16, 16))
    """
    if round_to is not None and not round_to > 0:
        raise ValueError(f"round_to must be positive or None, but got {round_to!r}")
    root = nn.Sequential(copied(model))  # so that a lone layer has a parent, too
    layers = _replace(root, round_to)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no pooling layer to freeze")
    for layer in layers:
        layer.train(model.training)
    inputs = cast_to_weights(example, model)
    hooks = [layer.register_forward_pre_hook(_meet) for layer in layers]
    with torch.no_grad(), evaluating(root):
        root[0](*inputs)
    for hook in hooks:
        hook.remove()
    return root[0]  # type: ignore[return-value]


def _replace(model: nn.Module, round_to: float | None) -> list[FrozenPooling]:
    """Put frozen layers in place, and return them; layers that were shared stay so."""
    frozen: dict[nn.Module, FrozenPooling] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, (DiffStride, FixedSpectralPooling)):
                layer = frozen.get(child) or FrozenPooling(child, round_to)
                frozen[child] = layer
                setattr(parent, name, layer)
    return list(frozen.values())


def _meet(layer: FrozenPooling, args: tuple[Tensor, ...]) -> None:
    x = args[0]
    if tuple(x.shape[2:]) not in layer.sizes:
        layer.meet(tuple(x.shape[2:]), x.dtype, x.device)


def _multiply(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """``matrix`` times one axis of ``x``, in operations that every exporter knows."""
    if dim == x.dim() - 1:
        return x @ matrix.T
    if dim == x.dim() - 2:
        return matrix @ x
    return (matrix @ x.flatten(dim + 1)).unflatten(-1, x.shape[dim + 1 :])
