"""Tells early how long a training takes on a CPU, where a recipe for GPUs takes days."""

import sys
import time
from typing import Any

from diffstride._wording import counted
from diffstride.training.lightning_compat import pl

STEPS = 3  # that are timed, after the first, which also prepares memory and matrices
LONG = 6 * 3600  # seconds from which on the estimate is printed
ADVICE = "cifar10_small.gin trains a ResNet-18 for 10 epochs on a CPU with two cores"


class TimeEstimate(pl.Callback):
    """Prints after a few steps how long a training on a CPU takes, if that is `LONG` or more."""

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self.timed, self.start = 0, 0.0
        self.on_cpu = pl_module.device.type == "cpu"

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", *args: Any
    ) -> None:
        self.timed += 1
        if self.timed == 1:
            self.start = time.perf_counter()
        elif self.timed == STEPS + 1 and self.on_cpu:
            seconds = (time.perf_counter() - self.start) / STEPS
            steps = float(trainer.estimated_stepping_batches) - trainer.global_step
            if seconds * steps >= LONG:
                pl_module.print(describe(seconds, steps))
                sys.stdout.flush()  # progress bars replace print, and take no argument flush


def describe(seconds: float, steps: float) -> str:
    """The estimate as text.

    >>> print(describe(9.0, 78_000))
    estimate: 195 hours on this CPU, without tests: 78,000 steps of 9.0 s, the mean of steps 2 to 4;
    cifar10_small.gin trains a ResNet-18 for 10 epochs on a CPU with two cores
    """
    hours = seconds * steps / 3600
    return (
        f"estimate: {hours:.0f} hours on this CPU, without tests: {counted(round(steps), 'step')} "
        f"of {seconds:.1f} s, the mean of steps 2 to {STEPS + 1};\n{ADVICE}"
    )
