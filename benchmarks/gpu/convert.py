"""Training steps of torchvision networks, strided and converted, at 224 x 224.

Every network is measured as it is, converted, and converted under the cost before conversion.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import MovingStrides, entry, strides_of
from benchmarks.gpu.device import PRECISIONS, peak_memory, sampler, tf32
from benchmarks.gpu.options import effort
from benchmarks.gpu.rows import Rows
from benchmarks.timing import measure
from diffstride import CostBudget, MultiplyAdds, convert, project_strides

STAGES = ("strided", "converted", "converted, cost before conversion")
CLASSES = 1000


class Network(NamedTuple):
    """A network of torchvision, and whether its strides are those of patches."""

    name: str
    patchify: bool
    batch: int
    size: int


NETWORKS = (Network("resnet50", False, 64, 224), Network("convnext_tiny", True, 64, 224))
TINY_NETWORKS = (Network("mobilenet_v3_small", False, 2, 32),)


def run(options: argparse.Namespace, rows: Rows) -> None:
    """Measure all networks that are not in the file."""
    for network in TINY_NETWORKS if options.tiny else NETWORKS:
        for precision in ("bf16",) if options.tiny else ("bf16", "float32, TF32"):
            labels = {**network._asdict(), "precision": precision}
            rows.measure(
                labels,
                lambda network=network, precision=precision: measure_network(
                    network, precision, options
                ),
            )


def measure_network(
    network: Network, precision: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Times, peak memory and multiply-adds of a network, before and after conversion."""
    device = options.device
    with tf32(PRECISIONS[precision].tf32):
        models = {stage: stage_of(network, stage, options.seed) for stage in STAGES}
        costs = {stage: cost_of(model, network) for stage, (model, _) in models.items()}

        def make(stage: str) -> Callable[[], None]:
            return training_step(*models[stage], network, precision, device)

        memory = {stage: peak_memory(device, lambda stage=stage: make(stage)) for stage in STAGES}
        timings = measure(
            {stage: make(stage) for stage in STAGES}, effort(options), sampler(device)
        )
    return {
        "measurements": [
            entry(timing, stage=stage, peak_memory=memory[stage], multiply_adds=costs[stage])
            for stage, timing in timings.items()
        ]
    }


def stage_of(network: Network, stage: str, seed: int) -> tuple[nn.Module, CostBudget | None]:
    """A network on the CPU, converted or not, and the budget that holds its cost."""
    import torchvision

    torch.manual_seed(seed)
    model = torchvision.models.get_model(network.name, num_classes=CLASSES)
    if stage == STAGES[0]:
        return model, None
    example = torch.zeros(1, 3, network.size, network.size)
    before = MultiplyAdds(model, example).value()
    converted = convert(model, example, patchify=network.patchify)
    return converted, CostBudget(converted, example, before) if stage == STAGES[2] else None


def cost_of(model: nn.Module, network: Network) -> int:
    """Multiply-adds of one image."""
    return MultiplyAdds(model, torch.zeros(1, 3, network.size, network.size)).value()


def training_step(
    model: nn.Module,
    budget: CostBudget | None,
    network: Network,
    precision: str,
    device: torch.device,
) -> Callable[[], None]:
    """Forward, loss, backward, SGD with momentum, and the budget or new strides, as a call."""
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    images = torch.randn(network.batch, 3, network.size, network.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(network.batch, device=device) % CLASSES
    move = MovingStrides(strides_of(model), network.size)
    mixed = PRECISIONS[precision].dtype == "bfloat16"

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            logits: Tensor = model(images)
            loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimiser.step()
        if budget is not None:
            budget.project_()
        else:
            project_strides(model)
            move()  # to values of their own, as steps on random labels do not repeat

    return step
