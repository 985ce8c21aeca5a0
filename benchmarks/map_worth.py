"""What the maps of networks are worth, next to the layers that run on them.

`MeasuredStrides` takes a map to be worth the root of the number of layers that run on it, before
losses tell more. This command measures what maps are worth in trained networks of other kinds than
those of `benchmarks.stride_gradient`. It takes the run of `benchmarks.scratch` at equal fixed
strides, and trains it if it is not in the folder of runs. On some training batches it measures, as
`MeasuredStrides` does, by how much the loss rises with each axis of each map smaller. It appends a
row for each map to ``results/map_worth.jsonl``; networks with rows are skipped.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks import scratch
from benchmarks.common import append_row, read_rows, select, training_parser
from benchmarks.machine import ROOT, environment
from benchmarks.small_networks import NETWORKS
from benchmarks.stride_gradient import average, shown
from benchmarks.tables import table
from diffstride import CostBudget, stride_layers
from diffstride.cost.rise_measurements import RiseMeasurements
from diffstride.training import gin_registry
from diffstride.training.command_line import configure
from diffstride.training.data import Datasets
from experiments.markdown import write_table

RESULT = ROOT / "results" / "map_worth.jsonl"
PAGE = ROOT / "docs" / "stride_gradient.md"
DEFAULT_NETWORKS = ("torchvision vgg11_bn", "timm regnety_002")
BATCHES = 64
Row = dict[str, Any]


def trained(network: str, seed: int, epochs: int, data: Datasets, workdir: Path) -> nn.Module:
    """The network of a run at equal fixed strides, which is trained if it is not there."""
    scratch.run(network, "fixed", seed, epochs, workdir, {})
    folder = scratch.run_folder(workdir, network, "fixed", seed, data.name)
    file = folder / "checkpoints" / "last.ckpt"
    state = torch.load(file, map_location="cpu", weights_only=False)["state_dict"]
    model, _ = scratch.build(network, "fixed", data, seed)
    model.load_state_dict({name.removeprefix("network."): each for name, each in state.items()})
    for layer in stride_layers(model).values():
        layer.strides.requires_grad_(True)  # type: ignore[union-attr]
    return model.train()


def measure(model: nn.Module, data: Datasets, batches: int) -> Iterator[Row]:
    """What each map is worth, by the rises of the loss alone; means over its axes."""
    budget = CostBudget(model, torch.zeros(1, *data.image_shape), fraction=1.0)
    measurements = RiseMeasurements(budget, batches, batches)
    measurements.prepare()
    for x, y in islice(data.train, batches):
        measurements.measure(lambda x=x, y=y: cross_entropy(model(x), y))
    found = measurements.gather()
    assert found is not None
    layers, maps = budget.space.layers_on_maps(budget.in_use), budget.cost.maps()
    for name in budget.in_use:
        worth = [each for key, each in found.worth.items() if key[0] == name]
        if not worth:
            continue  # of one sample
        estimates = [{"mean": each.mean, "error": each.error} for each in worth]
        yield {
            "layer": name,
            "size": [axis.size for axis in maps[name]],
            "output_size": [axis.output_size for axis in maps[name]],
            "layers": layers[name, 0],
            "multiply_adds": mean(each.cost for each in worth),
            "worth": average(*estimates),
            "loss": found.loss,
        }


def summary_table(rows: Sequence[Row]) -> str:
    """A line for each map."""
    lines = []
    for row in rows:
        worth, layers = row["worth"], row["layers"]
        of_layer, of_root, of_million = (
            shown({key: each / share for key, each in worth.items()})
            for share in (layers, layers**0.5, row["multiply_adds"] / 1e6)
        )
        before, after = ("x".join(map(str, row[key])) for key in ("size", "output_size"))
        first = [row["network"], f"{before} → {after}", f"{layers:.0f}"]
        lines.append([*first, shown(worth), of_layer, of_root, of_million])
    header = ["network", "map", "layers on it", "worth", "for each layer", "by their root"]
    return table([*header, "for each million MACs"], lines)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = training_parser("map_worth", __doc__, RESULT)
    parser.set_defaults(workdir=Path("runs/scratch"))  # where `benchmarks.scratch` trains
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(DEFAULT_NETWORKS))
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args(arguments)
    bindings = {"data.load_datasets.name": options.dataset}
    bindings |= scratch.QUICK if options.quick else {}
    configure(["cifar10_small.gin"], [f"{name} = {value!r}" for name, value in bindings.items()])
    contract = environment()
    epochs, batches = (1, 2) if options.quick else (scratch.EPOCHS, BATCHES)
    for network in () if options.table else options.networks:
        labels = {"network": network, "seed": options.seed}
        if not select(read_rows(options.out), **labels):
            data: Datasets = gin_registry.load_datasets(seed=options.seed)
            model = trained(network, options.seed, epochs, data, options.workdir)
            for row in list(measure(model, data, batches)):  # all rows of a network, or none
                append_row(options.out, labels | row | {"contract": contract})
    rows = read_rows(options.out)
    text = summary_table(rows)
    print(text)
    if options.out == RESULT and not options.quick:
        write_table(PAGE, "map worth", text)
    return rows


if __name__ == "__main__":
    main()
