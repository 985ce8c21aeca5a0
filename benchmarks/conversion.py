"""Accuracy and MACs of a converted network: after conversion, after an epoch more, and frozen.

A network with integer strides is trained by the recipe of ``cifar10_small.gin``, converted, and
trained for one more epoch. `CostBudget` holds its MACs at the cost after conversion, or at the cost
before. Then it is frozen, with the learned strides and with the nearest integers. This is done with
pooling before convolutions and after them, beside one more epoch without conversion. Accuracies are
those of the whole test set in float32, MACs those of one image.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gin
import torch
from torch import nn

import diffstride
from benchmarks.common import Report, only, write_json
from benchmarks.machine import ROOT, environment
from benchmarks.tables import table
from diffstride import CostBudget, MultiplyAdds, convert, freeze, stride_layers
from diffstride.training import gin_registry
from diffstride.training.command_line import configure
from diffstride.training.data import Datasets
from experiments.markdown import write_table

RESULT = ROOT / "results" / "conversion.json"
PAGE = ROOT / "docs" / "conversion_gain.md"
FINE_TUNING = {"epochs": 1, "learning_rate": 0.02, "stride_learning_rate": 0.002}
QUICK = {
    "data.load_datasets.name": "digits",
    "data.load_datasets.augment_fn": None,
    "data.load_datasets.train_examples": 256,
    "data.load_datasets.test_examples": 128,
    "resnet.resnet18.width": 8,
    "train.train.num_epochs": 1,
    "train.train.precision": "32-true",
}


def max_pooling(strides: tuple[float, float]) -> nn.Module:
    """Max pooling as in a network with fixed strides: none at stride 1."""
    stride = int(max(strides))
    return nn.MaxPool2d(stride) if stride > 1 else nn.Identity()


NETWORKS: dict[str, Callable[..., nn.Module] | None] = {
    "strided convolutions": None,
    "max pooling": max_pooling,
}
BEFORE = {"trained": "as trained", "longer": "one epoch more, without conversion"}
AFTER = {
    "converted": "converted, at once",
    "normed": "its norms re-estimated, without training",
    "tuned": "one epoch, at the cost after conversion",
    "tuned frozen": "the same, frozen",
    "tuned rounded": "the same, frozen with `round_to=1`",
    "held": "converted, strides scaled to the cost before",
    "held normed": "its norms re-estimated, without training",
    "held tuned": "one epoch, at the cost before conversion",
    "held frozen": "the same, frozen",
    "held rounded": "the same, frozen with `round_to=1`",
}
TITLES = {"before": "pooled before", "after": "pooled after"}
# Max pooling is pooled after in any order.
ORDERS = {"strided convolutions": ("before", "after"), "max pooling": ("after",)}


class Experiment:
    """Trains, converts and evaluates one network, and records accuracies and MACs."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.folder, self.seed = name, options.workdir / name.split()[0], options.seed
        self.data: Datasets = gin_registry.load_datasets(seed=options.seed)
        self.example = torch.zeros(2, *self.data.image_shape)
        self.rows: list[dict[str, Any]] = []

    def run(self) -> list[dict[str, Any]]:
        """All stages: `BEFORE`, then `AFTER` for each of the network's `ORDERS`."""
        torch.manual_seed(self.seed)
        with gin.unlock_config():
            gin.bind_parameter("resnet.Resnet.pooling_cls", NETWORKS[self.name])
        network = gin_registry.resnet18(
            num_output_classes=self.data.num_classes, in_channels=self.data.image_shape[0]
        )
        self.train(network, "trained")
        before = self.note("trained", network)
        self.note("longer", self.train(copy.deepcopy(network), "longer", **fine_tuning()))
        for order in ORDERS[self.name]:
            self.note_conversion(network, before, order)
        return self.rows

    def note_conversion(self, network: nn.Module, before: int, order: Any) -> None:
        """The stages of `AFTER` for a copy of a trained network, whose MACs are ``before``."""
        note, fine_tune = partial(self.note, order=order), partial(self.fine_tune, order=order)
        converted = convert(network.eval(), self.example, order=order)
        cost = note("converted", converted)
        note("normed", self.re_estimated(copy.deepcopy(converted)))
        fine_tune(copy.deepcopy(converted), cost, "tuned", "tuned")
        CostBudget(converted, self.example, before)
        note("held", converted)
        note("held normed", self.re_estimated(copy.deepcopy(converted)))
        fine_tune(converted, before, "held tuned", "held")

    def fine_tune(self, network: nn.Module, cost: int, stage: str, name: str, order: str) -> None:
        """Train for one epoch at a given cost, then freeze."""
        note = partial(self.note, order=order)
        budget = diffstride.callbacks.BudgetCallback(self.example, cost, network="network")
        folder = f"{name}_{order}"
        note(stage, self.train(network, folder, callbacks=[budget], **fine_tuning()))
        note(f"{name} frozen", freeze(network.eval(), self.example))
        note(f"{name} rounded", freeze(network, self.example, round_to=1))

    def train(self, network: nn.Module, name: str, **options: Any) -> nn.Module:
        """Train in place by the recipe; a finished training is loaded and not repeated."""
        folder = self.folder / name
        # The network may be in evaluation mode, and Lightning would keep it there.
        gin_registry.train(workdir=folder, model=network.train(), seed=self.seed, **options)
        return network

    def re_estimated(self, network: nn.Module) -> nn.Module:
        """Estimate the statistics of the batch norms anew, on the training images."""
        images = (batch[0] for batch in self.data.train)
        torch.optim.swa_utils.update_bn(images, network)
        return network

    def note(self, stage: str, network: nn.Module, *, order: str | None = None) -> int:
        """Evaluate a network and add a row; returns its MACs."""
        layers: dict[str, Any] = stride_layers(network)
        multiply_adds = MultiplyAdds(network, self.example).value()
        self.rows.append(
            {
                "network": self.name,
                "stage": stage,
                "order": order,
                "test_accuracy": accuracy(network, self.data),
                "multiply_adds": multiply_adds,
                "strides": {name: list(layer.stride_values()) for name, layer in layers.items()},
            }
        )
        print(*list(self.rows[-1].values())[:5], flush=True)
        return multiply_adds


@torch.no_grad()
def accuracy(network: nn.Module, data: Datasets) -> float:
    """Percent of the test images that are classified correctly."""
    network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    right = [(network(images).argmax(1) == labels).sum().item() for images, labels in data.test]
    return 100 * sum(right) / len(data.test.dataset)  # type: ignore[arg-type]


def fine_tuning() -> dict[str, Any]:
    """The arguments of the epoch after conversion that differ from the recipe."""
    rate = FINE_TUNING["learning_rate"]
    return {
        "num_epochs": FINE_TUNING["epochs"],
        "optimizer": partial(torch.optim.SGD, lr=rate, momentum=0.9, nesterov=True),
        "stride_learning_rate": FINE_TUNING["stride_learning_rate"],
    }


def tables(report: Report) -> str:
    """The results in Markdown, a table for each network."""
    recipe = report["recipe"]
    parts = []
    for name in dict.fromkeys(row["network"] for row in report["rows"]):
        parts.append(
            f"ResNet-18 of width {recipe['width']} with {name}, {recipe['epochs']} epochs on "
            f"{recipe['dataset']}:"
        )
        parts.append(table_of([row for row in report["rows"] if row["network"] == name]))
    return "\n\n".join(parts)


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """A row for each stage, with three columns for each of `ORDERS`."""
    trained = only(rows, stage="trained")["test_accuracy"]

    def cells(**facts: Any) -> list[str]:
        row = only(rows, **facts)
        change = f"{row['test_accuracy'] - trained:+.2f}".replace("-", "−")
        return [f"{row['test_accuracy']:.2f} %", change, f"{row['multiply_adds'] / 1e6:.1f} M"]

    orders = ORDERS[rows[0]["network"]]
    empty = [""] * 3 * (len(orders) - 1)
    lines = [[title, *cells(stage=stage), *empty] for stage, title in BEFORE.items()]
    for stage, title in AFTER.items():
        lines.append([title])
        for order in orders:
            lines[-1] += cells(stage=stage, order=order)
    header = ["network"]
    for order in orders:
        header += [TITLES[order], "change", "multiply-adds"]
    return table(header, lines).replace("| ---:", "| ---", 1)


def main(arguments: Sequence[str] | None = None) -> Report:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversion", description=__doc__)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--seed", type=int, default=0)
    add("--workdir", type=Path, default=Path("runs/conversion"), help="folder of the run folders")
    add("--quick", action="store_true", help="tiny sizes, only to check that it runs")
    add("--out", type=Path, help="file to write instead of the result file and the page")
    options = parser.parse_args(arguments)
    quick = [f"{name} = {value!r}" for name, value in QUICK.items()] if options.quick else []
    configure(["cifar10_small.gin"], quick)
    report: Report = {
        "benchmark": "conversion",
        "contract": {"seed": options.seed, "quick": options.quick, **environment()},
        "recipe": {
            "dataset": gin.query_parameter("data.load_datasets.name"),
            "width": gin.query_parameter("resnet.resnet18.width"),
            "epochs": gin.query_parameter("train.train.num_epochs"),
            "fine_tuning": FINE_TUNING,
        },
        "rows": [],
    }
    for name in options.networks:
        report["rows"] += Experiment(name, options).run()
    print(tables(report))
    if options.out is not None:
        write_json(options.out, report)
    elif not options.quick:
        write_json(RESULT, report)
        write_table(PAGE, "conversion", tables(report))
    return report


if __name__ == "__main__":
    main()
