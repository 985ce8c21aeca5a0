"""Strides that move on evidence: a trial of another rule for learning strides under a budget.

`CostBudget` moves the strides by the optimiser's step, a little after each batch. Here the
optimiser leaves them alone. They move at decisions, ten in a training, from clear gradients only:

1. Gradients are those by the logarithms of map sizes. The gradient of a stride says what the loss
   loses when its own map shrinks, with the maps behind as they are, so it counts in these
   coordinates, next to what a map costs by itself.
2. Between two decisions gradients are averaged. A map moves only where its advantage, the mean
   gradient less the price of what the map costs, is clearly above its standard error.
3. After a decision some batches are left out, and a map that has grown is not shrunk for a tenth of
   the training: for the weights as they are, a new frequency does harm until they use it.
4. Nothing moves in the first tenth of the training, where gradients favour small maps, nor after
   six tenths.

The network is the ResNet-18 of width 16 of ``guesses.gin``, whose pooling layers follow one
another. Each run appends a row to ``results/evidence.jsonl``; runs with a row are skipped.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common import append_row, read_rows, select, write_table
from benchmarks.machine import ROOT, environment
from benchmarks.tables import table
from diffstride import CostBudget, DiffStride, MultiplyAdds, parameter_groups, stride_layers
from diffstride.cost.stride_space import Logs, scale_to_budget
from diffstride.resnet import resnet18
from diffstride.training import gin_registry
from diffstride.training.command_line import configure

RESULT = ROOT / "results" / "evidence.jsonl"
PAGE = ROOT / "docs" / "stride_gradient.md"
BUDGET = 35.6e6
TOLERANCE = 0.99  # share of the budget that has to be used
STARTS = {
    "2, 2, 2": [2.07, 2.14, 2.33],
    "1.5, 3, 6": [1.56, 2.81, 6.0],
    "5, 1, 1": [4.96, 1.28, 1.1],
}
RULES = ("fixed", "gradient", "evidence")
EPOCHS = 10
QUICK = {
    "data.load_datasets.name": "digits",
    "data.load_datasets.augment_fn": None,
    "data.load_datasets.image_size": 32,
    "data.load_datasets.train_examples": 640,
    "data.load_datasets.test_examples": 128,
}


class Evidence:
    """Collects gradients of the strides, and decides how the maps move.

    Args:
        network: its pooling layers follow one another.
        budget: of the network, not attached.
        steps: number of steps of the training.
        clear: how many standard errors an advantage has to be away from 0.
        largest: the largest move of the logarithm of a map size.
    """

    def __init__(
        self,
        network: nn.Module,
        budget: CostBudget,
        steps: int,
        clear: float = 2.5,
        largest: float = 0.15,
    ) -> None:
        self._budget, self._steps, self._clear, self._largest = budget, steps, clear, largest
        self._layers: list[Any] = list(stride_layers(network).values())
        self._names = list(stride_layers(network))
        self._first, self._last = steps // 10, 6 * steps // 10
        self._period, self._settle, self._hold = max(4, steps // 20), steps // 60, steps // 10
        self._gradients: list[Tensor] = []
        self._sizes = self._output_sizes()
        self._grown = torch.full(self._sizes.shape, -steps)

    def step(self, step: int) -> bool:
        """Look at the gradients after a step's backward pass; returns whether maps were moved."""
        if not self._first <= step < self._last:
            return False
        phase = (step - self._first) % self._period
        if phase >= self._settle:
            self._gradients.append(self._gradient())
        if phase < self._period - 1:
            return False
        self._move(self._moves(step), step)
        self._gradients.clear()
        return True

    def _strides(self) -> Tensor:
        return torch.tensor([layer.stride_values() for layer in self._layers], dtype=torch.float64)

    def _output_sizes(self) -> Tensor:
        maps = self._budget.cost.maps()
        return torch.tensor([[axis.output_size for axis in maps[name]] for name in self._names])

    def _gradient(self) -> Tensor:
        """The derivative of the loss by the logarithm of each map's own shrinking."""
        gradients = torch.stack([layer.strides.grad.double() for layer in self._layers])
        return self._strides() * gradients

    def _costs(self) -> Tensor:
        """What each map costs by itself, as shares: by the logarithm of its shrinking."""
        _, slopes = self._budget.cost.slopes()
        by_stride = self._strides() * torch.tensor([slopes[name] for name in self._names])
        own = by_stride.clone()
        own[:-1] -= by_stride[1:]  # a stride also shrinks the maps behind
        return own / own.abs().sum()

    def _moves(self, step: int) -> Tensor:
        """How the logarithms of the shrinking of the maps move."""
        seen = torch.stack(self._gradients)
        mean = seen.mean(0)
        error = seen.std(0) / len(seen) ** 0.5
        cost, weight = self._costs(), 1 / error**2
        price = min(0.0, ((cost * mean * weight).sum() / (cost**2 * weight).sum()).item())
        advantage = mean - price * cost
        shrinks_new = (advantage < 0) & (step - self._grown < self._hold)
        unclear = advantage.abs() < self._clear * error
        relative = advantage / (abs(price) * cost.abs() + error)
        chosen = torch.where(shrinks_new | unclear, 0.0, relative).clamp(-1, 1)
        largest = self._largest * (1 - step / self._last) ** 0.5
        moves = -largest * chosen
        moves -= (cost * moves).sum() / (cost**2).sum() * cost  # at constant cost
        return moves.clamp(-1.5 * largest, 1.5 * largest)

    def _move(self, moves: Tensor, step: int) -> None:
        by_stride = moves.clone()
        by_stride[1:] -= moves[:-1]
        target: Logs = {
            name: [max(0.0, at + by) for at, by in zip(self._target[name], row, strict=True)]
            for name, row in zip(self._names, by_stride.tolist(), strict=True)
        }
        limits = TOLERANCE * self._budget.multiply_adds, self._budget.multiply_adds
        self._budget._target = scale_to_budget(target, self._budget._space, *limits)
        self._budget._write(self._budget._size_search.use_up(self._target, *limits))
        sizes = self._output_sizes()
        self._grown[sizes > self._sizes] = step
        self._sizes = sizes

    @property
    def _target(self) -> Logs:
        return self._budget._target


def build(start: str, rule: str, num_classes: int, in_channels: int) -> nn.Module:
    """The network at the strides of a start."""

    def pooling(strides: Any) -> DiffStride:
        return DiffStride(strides, trainable=rule != "fixed")

    return resnet18(
        [1, 1, *STARTS[start]],
        width=16,
        num_output_classes=num_classes,
        in_channels=in_channels,
        pool_stem=False,
        order="before",
        pooling_cls=pooling,
    ).to(memory_format=torch.channels_last)


def run(start: str, rule: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train one network, and return its row."""
    data = gin_registry.load_datasets(seed=seed)
    torch.manual_seed(seed)
    network = build(start, rule, data.num_classes, data.image_shape[0])
    rate = 0.02 if rule == "gradient" else 0.0
    groups = parameter_groups(network, 5e-4, rate)
    optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9, nesterov=True)
    steps = epochs * len(data.train)
    peaks = [group["lr"] or 1e-12 for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peaks, total_steps=steps, pct_start=0.3, cycle_momentum=False
    )
    example, evidence = data.sample(1), None
    if rule != "fixed":
        budget = CostBudget(network, example, multiply_adds=BUDGET)
        if rule == "gradient":
            budget.attach(optimizer)
        else:
            evidence = Evidence(network, budget, steps)
    step, started = 0, time.perf_counter()
    for epoch in range(epochs):
        data.train.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for images, labels in data.train:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                maps = images.contiguous(memory_format=torch.channels_last)
                loss = cross_entropy(network(maps), labels)
            loss.backward()
            optimizer.step()
            if evidence is not None and evidence.step(step):
                print(f"step {step}: maps {evidence._sizes.tolist()}", flush=True)
            schedule.step()
            step += 1
    return {
        "dataset": data.name,
        "start": start,
        "rule": rule,
        "seed": seed,
        "epochs": epochs,
        "test_accuracy": accuracy(network, data.test),
        "multiply_adds": MultiplyAdds(network, example).value(),
        "strides": {name: layer.stride_values() for name, layer in stride_layers(network).items()},
        "minutes": round((time.perf_counter() - started) / 60, 1),
    }


@torch.no_grad()
def accuracy(network: nn.Module, batches: Any) -> float:
    """The share of images that are classified correctly, in percent."""
    network.eval()
    right = [(network(images).argmax(1) == labels).float() for images, labels in batches]
    return round(100 * torch.cat(right).mean().item(), 2)


def summary_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each start and rule: accuracy, MACs and strides, means over the seeds."""
    lines = []
    for start in STARTS:
        for rule in RULES:
            found = select(rows, start=start, rule=rule)
            if not found:
                continue
            accuracies = [row["test_accuracy"] for row in found]
            spread = f" ± {stdev(accuracies):.2f}" if len(found) > 1 else ""
            strides = torch.tensor([list(row["strides"].values()) for row in found]).mean(0)
            lines.append(
                [
                    start,
                    rule,
                    f"{mean(accuracies):.2f}{spread} %",
                    f"{mean(row['multiply_adds'] for row in found) / 1e6:.1f} M",
                    ", ".join(f"{high:.2f} x {wide:.2f}" for high, wide in strides.tolist()),
                    str(len(found)),
                ]
            )
    return table(["start", "rule", "test accuracy", "MACs", "strides at the end", "seeds"], lines)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence_moves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", default="cifar100", help="name as for load_datasets")
    add("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    add("--rules", nargs="+", choices=RULES, default=list(RULES))
    add("--seeds", nargs="+", type=int, default=[0])
    add("--quick", action="store_true", help="tiny sizes, only to check that it runs")
    add("--out", type=Path, default=RESULT, help="file of the rows")
    options = parser.parse_args(arguments)
    bindings = {"data.load_datasets.name": options.dataset} | (QUICK if options.quick else {})
    configure(["cifar10_small.gin"], [f"{name} = {value!r}" for name, value in bindings.items()])
    contract = environment()
    for seed in options.seeds:
        for start in options.starts:
            for rule in options.rules:
                labels = {"start": start, "rule": rule, "seed": seed}
                labels["dataset"] = bindings["data.load_datasets.name"]
                if not select(read_rows(options.out), **labels):
                    row = run(start, rule, seed, 4 if options.quick else EPOCHS)
                    append_row(options.out, row | {"contract": contract})
                    print(row, flush=True)
    rows = read_rows(options.out)
    text = summary_table(rows)
    print(text)
    if options.out == RESULT and not options.quick:
        write_table(PAGE, "evidence", text)
    return rows


if __name__ == "__main__":
    main()
