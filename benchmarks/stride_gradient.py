"""What the gradient of a stride is worth: next to the measured change of the loss.

A ResNet-18 of width 16 trains on CIFAR-100 at fixed strides. After some epochs, and with the
weights as they are, three numbers are measured for each layer and axis, in units of the loss:

- the gradient of the stride, times the change of the stride for one sample less;
- half the difference between the loss with one sample less and with one more;
- the loss with one sample less, and with one more, above the present one.

Then copies of the network train on with the same batches, one as it is and one for each map with
one row less: what the smaller map costs once the weights have adapted.

The command trains for about a quarter of an hour for each start on one thread. It appends a row for
each layer and axis to ``results/stride_gradient.jsonl``; a training that was cut off goes on from
its last epoch, and epochs that have their rows are not measured again.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from math import log
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common import append_row, read_rows, select, training_parser
from benchmarks.machine import ROOT, environment
from benchmarks.tables import table
from diffstride import CostBudget, MultiplyAdds, stride_layers
from diffstride.cost.rise_measurements import undisturbed
from diffstride.cost.smaller_maps import smaller_maps
from diffstride.spectral.axis_plan import Axis
from diffstride.training import gin_registry, lightning_compat
from diffstride.training.command_line import configure
from experiments.guesses import SEARCHES, short
from experiments.markdown import write_table

RESULT = ROOT / "results" / "stride_gradient.jsonl"
PAGE = ROOT / "docs" / "stride_gradient.md"
STARTS = {"2, 2, 2": [2.07, 2.14, 2.33], "1.5, 3, 6": [1.56, 2.81, 6.0]}
EPOCHS = 10
MEASURED = (1, 3, 6)  # after these epochs
BATCHES = 32
ADAPTING_STEPS = 100
KEYS = "by_gradient", "measured"
QUICK = {
    "data.load_datasets.name": "digits",
    "data.load_datasets.augment_fn": None,
    "data.load_datasets.train_examples": 256,
    "data.load_datasets.test_examples": 128,
    "resnet.resnet18.width": 4,
    "train.train.precision": "32-true",
}
Row = dict[str, Any]
Batch = tuple[Tensor, Tensor]


class Estimate(dict[str, float]):
    """A mean over batches with its standard error."""

    def __init__(self, values: Sequence[float]) -> None:
        error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        super().__init__(mean=mean(values), error=error)


def stride_for(axis: Axis, output_size: int) -> float:
    """The middle of the strides that give an axis an output size."""
    return short(axis._replace(output_size=output_size))


def losses(network: nn.Module, batches: Sequence[Batch]) -> list[float]:
    with torch.no_grad():
        return [cross_entropy(network(x), y).item() for x, y in batches]


def gradients(network: nn.Module, batches: Sequence[Batch]) -> dict[str, list[Tensor]]:
    """The gradient of the strides of each layer, for each batch."""
    found: dict[str, list[Tensor]] = {name: [] for name in stride_layers(network)}
    for x, y in batches:
        network.zero_grad()
        cross_entropy(network(x), y).backward()
        for name, layer in stride_layers(network).items():
            found[name].append(layer.strides.grad.double().clone())  # type: ignore[union-attr]
    network.zero_grad()
    return found


def measure(network: nn.Module, batches: Sequence[Batch]) -> Iterator[Row]:
    """The numbers of each layer and axis, with the weights as they are.

    The norms normalise by the batch, as in training, and keep their statistics.
    """
    network = keep_statistics(copy.deepcopy(network))
    by_gradient = gradients(network, batches)
    now = losses(network, batches)
    layers: dict[str, Any] = stride_layers(network)
    maps = MultiplyAdds(network, batches[0][0][:1]).maps()
    for name, layer in layers.items():
        for i, axis in enumerate(maps[name]):
            if not 1 < axis.output_size < axis.size:
                continue
            own, above = layer.strides.data[i].item(), {}
            strides = {change: stride_for(axis, axis.output_size + change) for change in (-1, 1)}
            for change, stride in strides.items():
                layer.strides.data[i] = stride
                above[change] = [a - b for a, b in zip(losses(network, batches), now, strict=True)]
            layer.strides.data[i] = own
            step = (strides[-1] - strides[1]) / 2  # of the stride, for one sample less
            yield {
                "layer": name,
                "axis": i,
                "size": axis.size,
                "output_size": axis.output_size,
                "by_gradient": Estimate([step * g[i].item() for g in by_gradient[name]]),
                "measured": Estimate(
                    [(less - more) / 2 for less, more in zip(above[-1], above[1], strict=True)]
                ),
                "one_less": Estimate(above[-1]),
                "one_more": Estimate(above[1]),
            }


def keep_statistics(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    return network.train()


def adapt(network: nn.Module, batches: Sequence[Batch], rate: float) -> list[float]:
    """The losses while a copy of the network trains on."""
    network = copy.deepcopy(network).train()
    kernels = [weight for weight in network.parameters() if weight.ndim > 1]
    optimizer = torch.optim.SGD(kernels, lr=rate, momentum=0.9, nesterov=True)
    found = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def adapted(network: nn.Module, batches: Sequence[Batch], rate: float) -> Iterator[Row]:
    """What one row less of each map costs over the second half of the steps."""
    half = len(batches) // 2
    now = adapt(network, batches, rate)[half:]
    maps = MultiplyAdds(network, batches[0][0][:1]).maps()
    for name, axes in maps.items():
        if axes[0].output_size > 1:
            changed = copy.deepcopy(network)
            layer: Any = stride_layers(changed)[name]
            layer.strides.data[0] = stride_for(axes[0], axes[0].output_size - 1)
            later = adapt(changed, batches, rate)[half:]
            yield {"layer": name} | Estimate([a - b for a, b in zip(later, now, strict=True)])


class Measure:
    """Measures after chosen epochs of a training, and appends rows to a file."""

    def __init__(
        self,
        epochs: Sequence[int],
        batches: int,
        adapting_steps: int,
        labels: Row,
        contract: Row,
        out: Path,
    ) -> None:
        self.epochs, self.batches, self.adapting_steps = epochs, batches, adapting_steps
        self.labels, self.contract, self.out = labels, contract, out

    def after_epoch(self, trainer: Any, pl_module: Any) -> None:
        epoch = trainer.current_epoch + 1
        labels = self.labels | {"epoch": epoch}
        if epoch not in self.epochs or select(read_rows(self.out), **labels):
            return
        images: list[Batch] = list(islice(cycle(trainer.train_dataloader), self.adapting_steps))
        network = copy.deepcopy(pl_module.network)
        for layer in stride_layers(network).values():
            layer.strides.requires_grad_(True)  # type: ignore[union-attr]
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        later = {row["layer"]: row for row in adapted(network, images, rate)}
        # All at once, since an epoch with a row is not measured again.
        for row in list(measure(network, images[: self.batches])):
            more = {"adapted": later.get(row["layer"]), "contract": self.contract}
            append_row(self.out, labels | row | more)
            print(labels | row, flush=True)


def run(start: str, workdir: Path, bindings: dict[str, Any], measurement: Measure) -> None:
    """Train from a start, or go on with it."""
    strides = [1, 1, *STARTS[start]]
    bound = bindings | {"resnet.resnet18.strides": strides}
    lines = [f"{name} = {value!r}" for name, value in bound.items()]
    configure(["cifar10_small.gin"], [*lines, "pooling.DiffStride.trainable = False"])
    callback = lightning_compat.callbacks.LambdaCallback(on_train_epoch_end=measurement.after_epoch)
    gin_registry.train(workdir=workdir, callbacks=[callback])


def shown(estimate: dict[str, float] | None) -> str:
    """An estimate in thousandths of the loss."""
    if not estimate:
        return "–"
    number, error = 1000 * estimate["mean"], 1000 * estimate["error"]
    return f"{number:+.1f} ± {error:.1f}".replace("-", "−")


def without_disturbance(row: Row) -> dict[str, float]:
    """The rise with one sample less as measured strides count it, see `undisturbed`."""
    change = log(row["output_size"] / (row["output_size"] - 1))
    return {key: undisturbed(each, change) for key, each in row["one_less"].items()}


def average(*estimates: dict[str, float]) -> dict[str, float]:
    """The mean of independent estimates."""
    error = sum(each["error"] ** 2 for each in estimates) ** 0.5 / len(estimates)
    return {"mean": mean(each["mean"] for each in estimates), "error": error}


def worth(row: Row, share: float) -> str:
    """The loss of a smaller map once adapted, in thousandths, by what a hundredth of MACs buys."""
    found = row["adapted"]
    if not found:
        return shown(None)
    saved = share * log(row["output_size"] / (row["output_size"] - 1))
    return shown({key: found[key] / saved for key in ("mean", "error")})


def cost_shares(start: str) -> dict[str, float]:
    """What the map of each layer costs by itself, for one axis, in hundredths of the network."""
    search = SEARCHES["cifar"]
    budget = CostBudget(search.build(STARTS[start]), search.example)
    maps = smaller_maps(budget.space, budget.in_use)
    total = budget.cost.value()
    return {name: 100 * maps[name, 0].cost / total for name in budget.in_use}


def summary_table(rows: Sequence[Row]) -> str:
    """A line for each map, with the mean of its axes."""
    lines = []
    shares = {start: cost_shares(start) for start in dict.fromkeys(row["start"] for row in rows)}
    for first, second in zip(rows[::2], rows[1::2], strict=True):

        def both(key: str, first: Row = first, second: Row = second) -> str:
            return shown(average(first[key], second[key]))

        lines.append(
            [
                first["start"],
                str(first["epoch"]),
                f"{first['size']} → {first['output_size']}",
                *map(both, ("by_gradient", "measured", "one_less", "one_more")),
                shown(average(*map(without_disturbance, (first, second)))),
                shown(first["adapted"]),
                worth(first, shares[first["start"]][first["layer"]]),
            ]
        )
    header = ["start", "epoch", "map", "by the gradient", "measured"]
    changes = ["one sample less", "one more", "one less, undisturbed"]
    adapted = ["one less, adapted", "adapted, for a hundredth"]
    return table([*header, *changes, *adapted], lines)


def agreement(rows: Sequence[Row]) -> str:
    """In how many rows gradient and measurement have one sign, where both are clear."""

    def clear(row: Row) -> bool:
        return all(abs(row[key]["mean"]) > 2 * row[key]["error"] for key in KEYS)

    chosen = [row for row in rows if clear(row)]
    same = sum(row["by_gradient"]["mean"] * row["measured"]["mean"] > 0 for row in chosen)
    return f"one sign in {same} of the {len(chosen)} rows of {len(rows)} where both are clear"


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    options = training_parser("stride_gradient", __doc__, RESULT).parse_args(arguments)
    bindings: dict[str, Any] = {"data.load_datasets.name": options.dataset}
    if options.quick:
        bindings |= QUICK | {"train.train.num_epochs": 1}
    effort = ((1,), 2, 4) if options.quick else (MEASURED, BATCHES, ADAPTING_STEPS)
    contract = environment()
    for start in () if options.table else STARTS:
        labels = {"dataset": bindings["data.load_datasets.name"], "start": start}
        measurement = Measure(*effort, labels, contract, options.out)
        run(start, options.workdir / start.replace(", ", "-"), bindings, measurement)
    rows = read_rows(options.out)
    text = summary_table(rows)
    print(text)
    print(agreement(rows))
    if options.out == RESULT and not options.quick:
        write_table(PAGE, "stride gradient", text)
    return rows


if __name__ == "__main__":
    main()
