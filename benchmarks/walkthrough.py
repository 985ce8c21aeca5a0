"""Train a ResNet-18 as built and converted, side by side, for ``docs/walkthrough.md``.

Both start from the same weights and see the same batches. They take turns, an epoch each. The
converted one learns its strides within the MACs of the other. Writes ``results/walkthrough.json``,
the picture ``docs/images/walkthrough.png`` and the table of the page.
"""

import argparse
import json
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import walkthrough_picture
from benchmarks.common import Report, write_json
from benchmarks.machine import ROOT, environment, multiplies_bfloat16
from benchmarks.small_networks import resnet18
from benchmarks.tables import table
from diffstride import (
    CostBudget,
    MultiplyAdds,
    convert,
    freeze,
    parameter_groups,
    report,
    stride_scalars,
)
from diffstride.training.data import Datasets, load_datasets
from diffstride.training.hardware import keep_freed_memory
from experiments.markdown import write_table

RESULT = ROOT / "results" / "walkthrough.json"
PAGE = ROOT / "docs" / "walkthrough.md"
PICTURE = ROOT / "docs" / "images" / "walkthrough.png"
NAMES = {"strided": "as built, strided", "converted": "converted, learned strides"}
EVERY = 10  # steps between two records of the strides


class Training:
    """A network in training, with its optimiser, its clock and the records of its strides."""

    def __init__(self, name: str, model: nn.Module, example: Tensor, steps: int) -> None:
        self.name, self.model = name, model.to(memory_format=torch.channels_last)  # type: ignore
        groups = parameter_groups(model, weight_decay=5e-4, stride_learning_rate=0.02)
        self.optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9, nesterov=True)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, rates, steps, pct_start=0.3, cycle_momentum=False
        )
        self.cost = MultiplyAdds(model, example)
        if self.cost.layers:
            budget = CostBudget(model, example, "before")
            budget.attach(self.optimizer)
            self.cost = budget.cost
        self.steps, self.seconds, self.processor_seconds = 0, 0.0, 0.0
        self.epochs: list[dict[str, float]] = []
        self.history: list[dict[str, Any]] = []
        self.record()

    def record(self) -> None:
        """Note strides, map sizes and MACs."""
        maps = {name: [a.output_size for a in axes] for name, axes in self.cost.maps().items()}
        self.history.append(
            {
                "step": self.steps,
                "multiply_adds": self.cost.value(),
                "strides": {k: round(v, 4) for k, v in stride_scalars(self.model).items()},
                "maps": maps,
            }
        )

    def run_epoch(self, batches: Any) -> None:
        """Train for an epoch; only the time of steps is counted, not that of reading images."""
        self.model.train()
        for images, labels in batches:
            start, used = time.perf_counter(), time.process_time()
            self.step(images, labels)
            self.seconds += time.perf_counter() - start
            self.processor_seconds += time.process_time() - used
            self.steps += 1
            if self.steps % EVERY == 0:
                self.record()
            if self.steps % 100 == 0:
                print(f"  {self.name}: step {self.steps}, {self.seconds / 60:.1f} min", flush=True)
        if self.steps % EVERY:
            self.record()  # of the last step, too

    def step(self, images: Tensor, labels: Tensor) -> None:
        images = images.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16()):
            loss = nn.functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()  # the budget that is attached moves the strides onto its cost
        self.schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, batches: Any) -> float:
    """Share of correctly classified images, in percent."""
    model.eval()
    correct = count = 0
    for images, labels in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16()):
            outputs = model(images.to(memory_format=torch.channels_last))
        correct += int((outputs.argmax(1) == labels).sum())
        count += len(labels)
    return 100 * correct / count


def train_both(data: Datasets, epochs: int, seed: int) -> dict[str, Training]:
    """Train the network as built and converted, in turns."""
    torch.manual_seed(seed)
    example = data.sample(2)
    strided = resnet18(data.num_classes, data.image_shape[0])
    models = {"strided": strided, "converted": convert(deepcopy(strided), example)}
    steps = epochs * len(data.train)
    trainings = {name: Training(name, m, example, steps) for name, m in models.items()}
    sampler: Any = data.train.sampler
    for epoch in range(epochs):
        for name, training in trainings.items():
            sampler.set_epoch(epoch)  # the same batches for both
            training.run_epoch(data.train)
            right = accuracy(training.model, data.test)
            training.epochs.append(
                {
                    "test_accuracy": right,
                    "minutes": training.seconds / 60,
                    "processor_minutes": training.processor_seconds / 60,
                }
            )
            print(
                f"epoch {epoch + 1} of {epochs}, {NAMES[name]}: {right:.2f} % of the test images, "
                f"{training.cost.value() / 1e6:.1f} M MACs, {training.seconds / 60:.1f} min",
                flush=True,
            )
    return trainings


def results(data: Datasets, trainings: dict[str, Training], facts: dict[str, Any]) -> Report:
    """The content of the file of results."""
    example = data.sample(2)
    converted = trainings["converted"].model.eval()
    frozen = freeze(converted, example)
    return {
        "benchmark": "walkthrough",
        "contract": facts,
        "dataset": data.name,
        "steps": trainings["converted"].steps,
        "networks": {
            name: {"epochs": t.epochs, "multiply_adds": t.cost.value()}
            for name, t in trainings.items()
        },
        "frozen_accuracy": accuracy(frozen, data.test),
        "report": str(report(converted)),
        "history": trainings["converted"].history,
    }


def shown(found: Report) -> str:
    """The section of the page: accuracy, MACs and time of both networks, and the report."""
    lines = []
    for name, label in NAMES.items():
        network = found["networks"][name]
        last = network["epochs"][-1]
        cost = f"{network['multiply_adds'] / 1e6:.2f} M"
        lines.append([label, f"{last['test_accuracy']:.2f} %", cost, f"{last['minutes']:.1f} min"])
    costs = [each["multiply_adds"] for each in found["history"]]
    before = found["networks"]["strided"]["multiply_adds"]
    least, most = (f"{100 * cost / before:.2f} %" for cost in (min(costs), max(costs)))
    parts = [
        table(["ResNet-18", "test accuracy", "MACs an image", "time of training"], lines),
        f"In the {found['steps']:,} steps the converted network cost {least} to {most} of the MACs "
        f"before conversion. Frozen, it classifies {found['frozen_accuracy']:.2f} % correctly.",
        "![Strides, map sizes and MACs over the training](images/walkthrough.png)",
        "The report of the converted network after the training:",
        f"```text\n{found['report'].rstrip()}\n```",
    ]
    return "\n\n".join(parts)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.walkthrough", description=__doc__)
    add = parser.add_argument
    add("--dataset", default="cifar10", help="name as for load_datasets [%(default)s]")
    add("--epochs", type=int, default=4, help="epochs of each network [%(default)s]")
    add("--seed", type=int, default=0, help="seed of weights and batches [%(default)s]")
    add("--quick", action="store_true", help="few digits, only to check that it runs")
    add("--out", type=Path, help="folder of file and picture (default: those of the page)")
    add("--page", action="store_true", help="only draw the picture and fill the page")
    options = parser.parse_args(arguments)
    if options.quick and options.out is None:
        parser.error("--quick needs --out: the page shows no quick run")
    return options


def measure(options: argparse.Namespace) -> Report:
    """Train both networks as the options say."""
    keep_freed_memory()
    few = {"image_size": 32, "train_examples": 256, "test_examples": 128}
    quick: dict[str, Any] = few if options.quick else {"augment_fn": "crop_flip"}
    name = "digits" if options.quick else options.dataset
    facts = {"seed": options.seed, "quick": options.quick, **environment()}  # before files change
    data = load_datasets(name, batch_size=128, seed=options.seed, **quick)
    return results(data, train_both(data, options.epochs, options.seed), facts)


def main(arguments: Sequence[str] | None = None) -> Report:
    options = parse(arguments)
    out: Path | None = options.out
    file = RESULT if out is None else out / RESULT.name
    if options.page:
        found = json.loads(file.read_text())
    else:
        found = measure(options)
        write_json(file, found)
    walkthrough_picture.plot_walkthrough(found, PICTURE if out is None else out / PICTURE.name)
    if out is None:
        write_table(PAGE, "walkthrough", shown(found))
    print(shown(found))
    return found


if __name__ == "__main__":
    main()
