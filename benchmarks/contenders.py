"""The contenders: a pooling layer, and the operations that could replace it.

"forward" is evaluation: no gradients, fixed strides. "forward and backward" is training: new
strides at each call, gradients of the input and of all parameters.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import DTYPES, FORMATS, MovingStrides, strides_of
from diffstride import DiffStride, reference
from diffstride.spectral.axis_plan import EDGES, Edge, output_size

STRIDE = 2.0
DIRECTIONS = ("forward", "forward and backward")
COPIES = ("copy into a new tensor", "copy into an existing tensor")


class Row(NamedTuple):
    """The shape of the feature maps that a layer pools; they are square."""

    batch: int
    channels: int
    size: int

    def __str__(self) -> str:
        return f"{self.batch},{self.channels},{self.size}"


class Case(NamedTuple):
    """A contender, with the dtype and the memory format of its input."""

    contender: str
    dtype: str
    format: str


REFERENCE = Case("reference", "float32", "contiguous")
Operation = Callable[[Tensor], Tensor]


def contender(name: str, row: Row) -> Operation:
    """Build the operation of that name; it is a module if it has parameters."""
    for edge in EDGES:
        if name == edge:
            return DiffStride(STRIDE, edge=edge, straight_through=False)
    if name == "reference":
        return reference.DiffStride(STRIDE)
    if name == "average":
        return partial(F.avg_pool2d, kernel_size=2)
    if name == "convolution":
        return nn.Conv2d(row.channels, row.channels, 3, stride=2, padding=1, bias=False)
    inside: Edge = next(each for each in EDGES if name.endswith(each))
    size = output_size(row.size, STRIDE, edge=inside)
    return partial(F.interpolate, size=(size, size), mode="bilinear", antialias=True)


def cases(dtypes: Iterable[str]) -> list[Case]:
    """All contenders, in each dtype and memory format that they have."""
    names = (*EDGES, "average", "convolution")
    found = [Case(name, dtype, layout) for dtype in dtypes for layout in FORMATS for name in names]
    for dtype in dtypes:
        found += [Case(f"interpolation, {edge}", dtype, "contiguous") for edge in EDGES]
    return [REFERENCE, *found]


def unsupported(case: Case) -> str | None:
    """Why torch has no kernel for a contender, None if it has; other errors are raised."""
    if not case.contender.startswith("interpolation"):
        return None
    row = Row(1, 1, 32)
    try:
        forward_backward(contender(case.contender, row), new_input(row, case.dtype, case.format))()
    except NotImplementedError as error:
        return str(error)
    return None


def new_input(row: Row, dtype: str, layout: str) -> Tensor:
    x = torch.randn(row.batch, row.channels, row.size, row.size, dtype=DTYPES[dtype])
    return x.contiguous(memory_format=FORMATS[layout]).requires_grad_()


def forward(operation: Operation, x: Tensor) -> Callable[[], Tensor]:
    """A function that evaluates ``operation`` on ``x``."""
    if isinstance(operation, nn.Module):
        operation.eval()
    return torch.no_grad()(lambda: operation(x))


def forward_backward(operation: Operation, x: Tensor) -> Callable[[], Any]:
    """A function that computes the gradients of ``operation`` at ``x`` with new strides."""
    module = operation.train() if isinstance(operation, nn.Module) else nn.Identity()
    move = MovingStrides(strides_of(module), x.shape[-1])
    grad = torch.randn_like(operation(x).detach())

    def call() -> tuple[Tensor, ...]:
        move()
        return torch.autograd.grad(operation(x), [x, *module.parameters()], grad)

    return call


def calls_of(row: Row, direction: str, contenders: Sequence[Case]) -> dict[Case, Callable]:
    """The functions to time: the contenders of a row, and copies of its input."""
    inputs = {
        (case.dtype, case.format): new_input(row, case.dtype, case.format) for case in contenders
    }
    prepare = forward if direction == "forward" else forward_backward
    calls: dict[Case, Callable] = {}
    for case in contenders:
        x = inputs[case.dtype, case.format]
        calls[case] = prepare(converted(contender(case.contender, row), case), x)
    return calls | copies_of(inputs)


def copies_of(inputs: Mapping[tuple[str, str], Tensor]) -> dict[Case, Callable]:
    """Copies of the contiguous inputs, given by dtype and memory format, as calls."""
    calls: dict[Case, Callable] = {}
    for (dtype, layout), x in inputs.items():
        if layout == "contiguous":
            source, target = x.detach(), torch.empty_like(x).detach()
            calls[Case(COPIES[0], dtype, layout)] = source.clone
            calls[Case(COPIES[1], dtype, layout)] = partial(target.copy_, source)
    return calls


def converted(operation: Operation, case: Case) -> Operation:
    """The operation in the dtype and memory format of a case."""
    # Strides stay in float32, as they do in a network that computes in bf16.
    if isinstance(operation, nn.Conv2d):
        return operation.to(dtype=DTYPES[case.dtype]).to(memory_format=FORMATS[case.format])  # type: ignore[call-overload]
    return operation
