"""Networks of a user trained from scratch: strided as published, blurred, converted.

Each network trains on CIFAR-100 by the recipe of ``cifar10_small.gin``, all methods with the same
number of parameters and from the same weights, except for the strides:

- ``strided``: as its library builds it.
- ``blur``: `BlurPooling` before each strided convolution, which runs at stride 1 behind it.
- ``fixed``: converted, with equal strides that cost what the strided network costs, fixed.
- ``learned``: converted, the strides learned within that cost by their gradients.
- ``measured``: converted, the strides moved within that cost by measured losses.
- ``learned, equal time``: likewise, for as many epochs as fit into the time of the strided network.
- ``fixed, 0.7 of the cost`` and ``fixed, 0.5 of the cost``: as ``fixed``, at less.
- ``fixed, stem before`` and ``fixed, stem after``: as ``fixed``, but the first convolution strides
  by 1 and is pooled before or after, where otherwise it keeps its stride and is pooled on top.
- ``learned, kernels resampled``: as ``learned``, but each step resamples the kernels for its
  strides (`benchmarks.moving_kernels`); ``fixed, kernels resampled`` likewise.

Rows of a ``measured, earlier rule`` are of another version of `MeasuredStrides`, and not in the
tables.

Each run appends a row to ``results/scratch.jsonl``; runs with a row are skipped, and a run that was
cut off goes on from its last epoch. Several processes may work side by side, each on a shard.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from benchmarks import gain_picture
from benchmarks.common import append_row, read_rows, select
from benchmarks.gain_table import gain_table
from benchmarks.machine import ROOT, environment
from benchmarks.moving_kernels import resample_each_step
from benchmarks.small_networks import NETWORKS
from benchmarks.tables import table
from diffstride import BlurPooling, CostBudget, MultiplyAdds, convert, stride_layers
from diffstride.training import gin_registry
from diffstride.training.command_line import configure
from diffstride.training.data import Datasets
from experiments.markdown import write_table

RESULT = ROOT / "results" / "scratch.jsonl"
TIMES = ROOT / "benchmarks" / "results" / "conversion_time.json"
PAGE = ROOT / "docs" / "conversion_gain.md"
README = ROOT / "README.md"
EPOCHS = 10
DEFAULT_NETWORKS = [name for name in NETWORKS if "stem" not in name]
METHODS = ("strided", "blur", "fixed", "learned", "measured", "learned, equal time")
FRACTIONS = {"fixed": 1.0, "fixed, 0.7 of the cost": 0.7, "fixed, 0.5 of the cost": 0.5}
STEMS = {"fixed, stem before": "before", "fixed, stem after": "after"}
STEM = "conv1"
RESAMPLED = ("fixed, kernels resampled", "learned, kernels resampled")
EVERY_METHOD = tuple(dict.fromkeys((*METHODS, *FRACTIONS, *STEMS, *RESAMPLED)))
PICTURE = ROOT / "docs" / "images" / "conversion_gain.png"
QUICK = {
    "data.load_datasets.name": "digits",
    "data.load_datasets.augment_fn": None,
    "data.load_datasets.train_examples": 256,
    "data.load_datasets.test_examples": 128,
    "train.train.precision": "32-true",
}
Row = dict[str, Any]


def build(network: str, method: str, data: Datasets, seed: int) -> tuple[nn.Module, int]:
    """A network as a method trains it, and the MACs of the strided one."""
    torch.manual_seed(seed)
    strided = NETWORKS[network](data.num_classes, data.image_shape[0])
    example = torch.zeros(1, *data.image_shape)
    before = MultiplyAdds(strided, example).value()
    if method == "strided":
        return strided, before
    if method in STEMS:
        options = {"order": STEMS[method], "filter_fn": lambda module, name: name == STEM}
        strided = convert(strided, example, min_channels=0, **options)
    converted = convert(strided, example)
    if method == "blur":
        blur = BlurPooling(2)
        for module in converted.modules():
            if hasattr(module, "pooling"):
                module.pooling = blur
    elif method.startswith("fixed"):
        CostBudget(converted, example, FRACTIONS.get(method, 1.0) * before)
        for layer in stride_layers(converted).values():
            layer.strides.requires_grad_(False)  # type: ignore[union-attr]
    if method in RESAMPLED:
        resample_each_step(converted, strided)
    return converted, before


def run(
    network: str, method: str, seed: int, epochs: int, workdir: Path, contract: dict[str, Any]
) -> Row:
    """Train one network, and return its row."""
    data: Datasets = gin_registry.load_datasets(seed=seed)
    model, before = build(network, method, data, seed)
    learns = method.startswith(("learned", "measured"))
    summary = gin_registry.train(
        workdir=run_folder(workdir, network, method, seed, data.name),
        model=model,
        num_epochs=epochs,
        seed=seed,
        weight_decay=2.5e-4,
        budget=before if learns else None,
        stride_rule="measured" if method == "measured" else "gradient",
    )
    example = torch.zeros(1, *data.image_shape)
    layers: dict[str, Any] = stride_layers(model)
    return {
        "network": network,
        "method": method,
        "seed": seed,
        "dataset": data.name,
        "epochs": epochs,
        "test_accuracy": summary["test_accuracy"],
        "multiply_adds_before": before,
        "multiply_adds": MultiplyAdds(model, example).value(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "strides": {name: list(layer.stride_values()) for name, layer in layers.items()},
        "minutes": round(summary["seconds"] / 60, 1),
        "contract": contract,
    }


def run_folder(workdir: Path, network: str, method: str, seed: int, dataset: str) -> Path:
    """The folder of a run, whose name says all of it."""
    name = f"{network} {method} {seed} {dataset}"
    return workdir / name.replace(", ", " ").replace(" ", "_").replace("/", "_")


def epochs_of(network: str, method: str) -> int:
    """How many epochs a method trains: fewer where steps take longer and time is the limit."""
    if method != "learned, equal time":
        return EPOCHS
    ratio = equal_cost_ratio(network)
    if ratio is None:
        raise ValueError(
            f"the training step of {network!r} has not been timed: call "
            "python -m benchmarks.conversion_time first"
        )
    return min(EPOCHS, int(EPOCHS / ratio + 0.01))


def equal_cost_ratio(network: str) -> float | None:
    """How much longer a training step takes converted, at equal MACs; None if not measured."""
    found = [row["held"] for row in select(step_times(), network=network, dtype="bf16")]
    return found[0] if found else None


def step_times() -> list[Row]:
    """The rows of `benchmarks.conversion_time`; none if they have not been measured."""
    return json.loads(TIMES.read_text())["rows"] if TIMES.exists() else []


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """The runs of this process, in order."""
    every = [
        (network, method, seed)
        for network in options.networks
        for seed in options.seeds
        for method in options.methods
    ]
    yield from every[options.shard[0] :: options.shard[1]]


def summary_table(rows: Sequence[Row]) -> str:
    """A line for each network and method: accuracy, gain and MACs."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        base = [row["test_accuracy"] for row in select(rows, network=network, method="strided")]
        for method in EVERY_METHOD:
            found = select(rows, network=network, method=method)
            if not found:
                continue
            accuracies = [row["test_accuracy"] for row in found]
            gain = f"{mean(accuracies) - mean(base):+.2f}".replace("-", "−") if base else "–"
            spread = f" ± {stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
            lines.append(
                [
                    network,
                    method,
                    f"{mean(accuracies):.2f}{spread} %",
                    gain if method != "strided" else "",
                    f"{mean(row['multiply_adds'] for row in found) / 1e6:.1f} M",
                    str(found[0]["epochs"]),
                    str(len(found)),
                ]
            )
    header = ["network", "method", "test accuracy", "gain", "MACs", "epochs", "seeds"]
    return table(header, lines)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scratch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=DEFAULT_NETWORKS)
    add("--methods", nargs="+", choices=EVERY_METHOD, default=list(METHODS))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--shard", nargs=2, type=int, default=(0, 1), metavar=("I", "N"), help="every N-th run")
    add("--dataset", default="cifar100", help="name as for load_datasets")
    add("--workdir", type=Path, default=Path("runs/scratch"), help="folder of the run folders")
    add("--quick", action="store_true", help="tiny sizes, only to check that it runs")
    add("--out", type=Path, help="file of the rows (default: results/scratch.jsonl and the page)")
    add("--table", action="store_true", help="only write the tables of pages and README")
    options = parser.parse_args(arguments)
    bindings = {"data.load_datasets.name": options.dataset} | (QUICK if options.quick else {})
    out = options.out or RESULT
    if not options.table:
        configure(
            ["cifar10_small.gin"], [f"{name} = {value!r}" for name, value in bindings.items()]
        )
        contract = environment()  # now: files may change while the runs train
        for network, method, seed in jobs(options):
            labels = {"network": network, "method": method, "seed": seed}
            labels["dataset"] = bindings["data.load_datasets.name"]
            if not select(read_rows(out), **labels):
                epochs = 1 if options.quick else epochs_of(network, method)
                append_row(out, run(network, method, seed, epochs, options.workdir, contract))
    rows = read_rows(out)
    writes = options.out is None and not options.quick
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        text = summary_table(select(rows, dataset=dataset))
        print(f"{dataset}:\n\n{text}\n")
        if writes:
            write_table(PAGE, f"scratch {dataset}", text)
    if writes:
        write_table(README, "gain", gain_table(rows, step_times()))
        gain_picture.plot_gain(rows, PICTURE)
    return rows


if __name__ == "__main__":
    main()
