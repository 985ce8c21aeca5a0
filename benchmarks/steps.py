"""Networks with each pooling, and their training and inference steps."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import FORMATS, MovingStrides, strides_of
from diffstride import (
    DiffStride,
    FixedSpectralPooling,
    SpatialPooling,
    reference,
    spectral,
    stride_layers,
)
from diffstride.resnet import resnet18
from diffstride.spectral.axis_plan import Edge

NUM_CLASSES = 10
# With fewer, oneDNN writes out of bounds in the gradient of a strided 1 x 1 convolution,
# channels-last (https://github.com/uxlfoundation/oneDNN/issues/6035).
FEWEST_CHANNELS = 8
PRECISIONS = ("float32", "bf16-mixed")
PHASES = ("training", "inference")
Wrap = Callable[[nn.Module], Callable[[Tensor], Tensor]]


def eager(network: nn.Module) -> nn.Module:
    """The network as it is, in place of a compiled one."""
    return network


class AdaptivePooling(nn.Module):
    """Adaptive average pooling to the map sizes of `DiffStride`."""

    def __init__(self, strides: tuple[float, float], edge: Edge) -> None:
        super().__init__()
        self.strides = strides
        self.edge: Edge = edge

    def forward(self, x: Tensor) -> Tensor:
        size = partial(spectral.output_size, edge=self.edge)
        height, width = map(size, x.shape[2:], self.strides)
        return F.adaptive_avg_pool2d(x, (height, width))


def average_pooling(strides: tuple[float, float], edge: Edge) -> nn.Module:
    """The cheapest average pooling to the map sizes of `DiffStride`; none at stride 1.

    `SpatialPooling` with a window of the stride is ``F.avg_pool2d`` and has the sizes of
    ``edge="stopband"``.
    """
    if max(strides) == 1:
        return nn.Identity()
    if edge == "passband":
        return AdaptivePooling(strides, edge)
    window = tuple(map(int, strides))
    return SpatialPooling(window, window)


POOLINGS: dict[str, Callable[..., nn.Module] | None] = {
    "strided": None,
    "average": partial(average_pooling, edge="stopband"),
    "average, passband sizes": partial(average_pooling, edge="passband"),
    "spectral": FixedSpectralPooling,
    "stopband": partial(DiffStride, edge="stopband", straight_through=False),
    "passband": partial(DiffStride, edge="passband", straight_through=False),
    "reference": reference.DiffStride,
}


class Task(NamedTuple):
    """A network, its precision and memory format, and the size of its input."""

    pooling: str
    precision: str
    format: str
    width: int
    batch: int
    size: int
    seed: int

    def network(self) -> nn.Module:
        torch.manual_seed(self.seed)
        network = resnet18(
            width=self.width, num_output_classes=NUM_CLASSES, pooling_cls=POOLINGS[self.pooling]
        )
        return network.to(memory_format=FORMATS[self.format])  # type: ignore[call-overload]

    def images(self) -> Tensor:
        images = torch.randn(self.batch, 3, self.size, self.size)
        return images.contiguous(memory_format=FORMATS[self.format])

    def autocast(self, device_type: str) -> AbstractContextManager:
        mixed = self.precision == "bf16-mixed"
        return torch.autocast(device_type, dtype=torch.bfloat16, enabled=mixed)


def step_of(task: Task, phase: str, wrap: Wrap = eager) -> Callable[[], object]:
    """A step of inference or training, as a call; ``wrap`` may compile the network.

    Make it inside ``with torch.device(...)`` for another device than the CPU.
    """
    return inference_step(task, wrap) if phase == "inference" else training_step(task, wrap)


def inference_step(task: Task, wrap: Wrap = eager) -> Callable[[], Tensor]:
    network, images = wrap(task.network().eval()), task.images()
    device_type = images.device.type

    def step() -> Tensor:
        with torch.no_grad(), task.autocast(device_type):
            return network(images)

    return step


def training_step(task: Task, wrap: Wrap = eager) -> Callable[[], None]:
    """Forward, loss, backward, SGD with momentum, projection of the strides.

    After each step the strides get new values near the initial ones. With random labels the
    optimiser could move them anywhere, and another map size would change the work.
    """
    network: nn.Module = task.network().train()
    images = task.images()
    labels = torch.arange(task.batch) % NUM_CLASSES
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    pools: list[Any] = list(stride_layers(network).values())
    move = MovingStrides(strides_of(network), task.size)
    run, device_type = wrap(network), images.device.type

    def step() -> None:
        optimiser.zero_grad()
        with task.autocast(device_type):
            loss = F.cross_entropy(run(images), labels)
        loss.backward()
        optimiser.step()
        for pool in pools:
            pool.project_()
        move()

    return step


def multiply_adds(task: Task) -> int:
    """MACs of a network for one image, as torch's ``FlopCounterMode`` counts them.

    It counts convolutions and matrix products, at two operations a MAC, but no FFTs.
    """
    network, image = task.network().eval(), task._replace(batch=1).images()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops() // 2
