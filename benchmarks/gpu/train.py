"""Trainings of the published network, the data held on the device, as long as the time allows.

All rows of a call train for the same number of epochs, as many as fit into ``--minutes``. The
schedule of the configuration is scaled to them. A training that is stopped by the time limit saves
a checkpoint beside the file, and the same command resumes it.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gpu.data import DeviceData, accuracy, batches, read_data, steps_per_epoch
from benchmarks.gpu.device import synchronize
from benchmarks.gpu.rows import OutOfTimeError, Rows
from diffstride import (
    CostBudget,
    DiffStride,
    FixedSpectralPooling,
    MultiplyAdds,
    parameter_groups,
    project_strides,
    stride_layers,
)
from diffstride.resnet import resnet18

POOLINGS: dict[str, Callable[..., nn.Module] | None] = {
    "stopband": DiffStride,
    "spectral": FixedSpectralPooling,
    "strided": None,
    "published": partial(DiffStride, edge="passband", straight_through=False),
}
BUDGETED = ("stopband",)  # held to the cost of the strided network
FIRST_ROWS = ("stopband", "spectral", "strided")  # the published window needs a call of its own
WARM_UP, TIMED = 5, 20  # steps from which the number of epochs is planned
SHARE = 0.85  # of the time that is planned; the rest is for reading, tests and drift


class Recipe(NamedTuple):
    """What a Gin configuration says about a training."""

    dataset: str
    batch_size: int
    mixup_alpha: float
    epochs: int
    learning_rate: float
    momentum: float
    weight_decay: float
    boundaries: tuple[int, ...]
    factors: tuple[float, ...]
    strides: tuple[float, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", default="cifar10.gin", help="Gin file of the recipe (default: cifar10.gin)")
    add("--rows", nargs="+", choices=POOLINGS, default=list(FIRST_ROWS), help="what to train")
    add("--data", type=Path, help="folder with cifar10/*.parquet (default: DIFFSTRIDE_DATA)")
    add("--width", type=int, default=64, help="channels of the first convolution")
    add("--epochs", type=int, help="epochs (default: as many as fit into --minutes)")


def read_recipe(config: str) -> Recipe:
    """The recipe of a Gin file, which must be one with `schedules.multi_step`.

    Raises:
        ValueError: the file does not bind a number that the recipe needs, or it augments images.
    """
    import gin

    from diffstride.training.command_line import configure

    configure([config])
    try:
        ask = gin.query_parameter
        if ask("data.load_datasets.augment_fn") is not None:
            raise ValueError(f"{config} augments images, which this loop does not: use cifar10.gin")
        return Recipe(
            ask("data.load_datasets.name"),
            ask("data.load_datasets.batch_size"),
            ask("data.load_datasets.mixup_alpha"),
            ask("train.train.num_epochs"),
            ask("torch.optim.SGD.lr"),
            ask("torch.optim.SGD.momentum"),
            ask("resnet.Resnet.weight_decay"),
            tuple(ask("schedules.multi_step.boundaries")),
            tuple(ask("schedules.multi_step.factors")),
            tuple(ask("resnet.resnet18.strides")),
        )
    finally:
        gin.clear_config()


def scaled(boundaries: tuple[int, ...], steps: int, published_steps: int) -> list[int]:
    """The boundaries of a schedule of ``published_steps`` for a training of ``steps``.

    They stay increasing, also in a training of few steps.

    >>> scaled((400, 18_000, 32_000), steps=7_800, published_steps=78_000)
    [40, 1800, 3200]
    >>> scaled((400, 18_000, 32_000), steps=4, published_steps=78_000)
    [1, 2, 3]
    """
    found: list[int] = []
    for boundary in boundaries:
        least = found[-1] + 1 if found else 1
        found.append(max(least, round(boundary * steps / published_steps)))
    return found


class Training:
    """One training: network, optimiser, schedule, budget, and how far it is."""

    def __init__(
        self, row: str, recipe: Recipe, data: DeviceData, options: argparse.Namespace
    ) -> None:
        from diffstride.training.schedules import multi_step

        self.recipe, self.data, self.options = recipe, data, options
        channels, height, width = data.train.images.shape[1:]
        build = partial(
            resnet18,
            recipe.strides,
            options.width,
            num_output_classes=data.num_classes,
            in_channels=channels,
        )
        example = torch.zeros(1, channels, height, width)
        torch.manual_seed(options.seed)
        self.network = build(pooling_cls=POOLINGS[row])
        cost = MultiplyAdds(build(pooling_cls=None), example).value() if row in BUDGETED else None
        self.budget = CostBudget(self.network, example, cost) if cost else None
        self.example = example
        self.start = self.cost()
        self.network.to(options.device, memory_format=torch.channels_last)  # type: ignore
        groups = parameter_groups(self.network, 2 * recipe.weight_decay)
        self.optimizer = torch.optim.SGD(groups, recipe.learning_rate, momentum=recipe.momentum)
        self.steps = options.epochs * steps_per_epoch(data, recipe.batch_size, recipe.mixup_alpha)
        published = recipe.epochs * steps_per_epoch(data, recipe.batch_size, recipe.mixup_alpha)
        self.boundaries = scaled(recipe.boundaries, self.steps, published)
        self.schedule = multi_step(self.optimizer, self.boundaries, recipe.factors)
        self.epoch, self.seconds, self.losses = 0, 0.0, []

    def cost(self) -> int:
        """Multiply-adds of one image."""
        device = next(self.network.parameters()).device
        return MultiplyAdds(self.network, self.example.to(device)).value()

    def step(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One step; returns the loss, on the device."""
        self.optimizer.zero_grad()
        with self.autocast():
            loss = F.cross_entropy(self.network(images), targets)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        if self.budget is None:
            project_strides(self.network)
        else:
            self.budget.project_()
        return loss.detach()

    def autocast(self) -> torch.autocast:
        """bf16 on a GPU, float32 on a CPU."""
        kind = self.options.device.type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda")

    def batches(self, epoch: int) -> Any:
        seed = 10_000 * self.options.seed + epoch
        return batches(self.data, self.recipe.batch_size, self.recipe.mixup_alpha, seed)

    def run_epoch(self) -> None:
        """Train for one epoch, and note its mean loss and its seconds."""
        start = time.monotonic()
        losses = [self.step(*batch) for batch in self.batches(self.epoch)]
        self.losses.append(float(torch.stack(losses).mean()))
        self.seconds += time.monotonic() - start
        self.epoch += 1

    def test(self) -> float:
        """Test accuracy in percent."""
        with self.autocast():
            return accuracy(self.network, self.data.test)

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "budget": self.budget and self.budget.state_dict(),
            "progress": (self.epoch, self.seconds, self.losses),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.budget is not None:
            self.budget.load_state_dict(state["budget"])
        self.epoch, self.seconds, self.losses = state["progress"]


def run(options: argparse.Namespace, rows: Rows) -> None:
    """Train all rows that are not in the file."""
    recipe = read_recipe(options.config)
    if options.tiny:
        recipe, options.width = recipe._replace(batch_size=16), min(options.width, 8)
    data = read_data(recipe.dataset, options.data, options.device, options.tiny)
    options.epochs = options.epochs or planned_epochs(recipe, data, options, rows)
    for row in options.rows:
        labels = {"row": row, "config": options.config, "width": options.width}
        labels |= {"epochs": options.epochs}
        rows.measure(labels, partial(train_row, row, recipe, data, options, rows))


def planned_epochs(
    recipe: Recipe, data: DeviceData, options: argparse.Namespace, rows: Rows
) -> int:
    """Epochs that fit into the time for all rows together, at least 1; kept in the file."""
    plans = rows.report.setdefault("plans", {})
    key = f"{options.config}, width {options.width}, {options.minutes:g} minutes: " + ", ".join(
        options.rows
    )
    if key not in plans:
        epoch = sum(epoch_seconds(row, recipe, data, options) for row in options.rows)
        plans[key] = max(1, int(SHARE * rows.remaining() / epoch))
        if options.tiny:
            plans[key] = 1
        rows.write()
    return plans[key]


def epoch_seconds(row: str, recipe: Recipe, data: DeviceData, options: argparse.Namespace) -> float:
    """The time of an epoch, from a few steps."""
    options = argparse.Namespace(**vars(options) | {"epochs": 1})
    training = Training(row, recipe, data, options)
    steps = iter(training.batches(0))
    for _ in range(WARM_UP if not options.tiny else 1):
        training.step(*next(steps))
    synchronize(options.device)
    start, count = time.monotonic(), 0
    for count, batch in enumerate(steps, start=1):
        training.step(*batch)
        if count == (1 if options.tiny else TIMED):
            break
    synchronize(options.device)
    seconds = (time.monotonic() - start) / max(count, 1)
    return seconds * steps_per_epoch(data, recipe.batch_size, recipe.mixup_alpha)


def train_row(
    row: str, recipe: Recipe, data: DeviceData, options: argparse.Namespace, rows: Rows
) -> dict[str, Any]:
    """Train one row, or resume it, and test it at the end.

    Raises:
        OutOfTimeError: the time limit is reached first; a checkpoint is saved.
    """
    training = Training(row, recipe, data, options)
    identity = {"row": row, "options": str((recipe, options.width, options.epochs, options.seed))}
    contract = rows.report["contract"]
    identity |= {name: str(contract.get(name)) for name in ("device", "torch", "commit")}
    checkpoint = rows.path.with_name(f"{rows.path.stem}-{row}.pt")
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=options.device, weights_only=True)
        if saved["identity"] == identity:
            training.load_state_dict(saved["state"])
    longest = 0.0
    while training.epoch < options.epochs:
        if rows.remaining() < longest:
            save(checkpoint, {"identity": identity, "state": training.state_dict()})
            raise OutOfTimeError
        before = training.seconds
        training.run_epoch()
        longest = max(longest, training.seconds - before)
    result = summary(training, row)
    checkpoint.unlink(missing_ok=True)
    return result


def save(path: Path, content: Any) -> None:
    """Write a checkpoint such that a reader finds the old one or the new one."""
    temporary = path.with_suffix(".pt.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, temporary)
    temporary.replace(path)


def summary(training: Training, row: str) -> dict[str, Any]:
    """What the file holds of a finished training."""
    layers: dict[str, Any] = stride_layers(training.network)
    return {
        "test_accuracy": training.test(),
        "multiply_adds_start": training.start,
        "multiply_adds_end": training.cost(),
        "budget": row in BUDGETED,
        "strides": {name: list(layer.stride_values()) for name, layer in layers.items()},
        "steps": training.steps,
        "published_epochs": training.recipe.epochs,
        "boundaries": training.boundaries,
        "factors": list(training.recipe.factors),
        "batch_size": training.recipe.batch_size,
        "precision": "bf16-mixed" if training.options.device.type == "cuda" else "float32",
        "training_seconds": round(training.seconds, 2),
        "losses": [round(loss, 4) for loss in training.losses],
    }
