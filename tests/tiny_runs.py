"""Trainings of a few seconds for several test modules; as a script, one in its own process.

python tests/tiny_runs.py WORKDIR [--kill STEP] [--terminate STEP] [--processes N]
    [--strides FOLDER]
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn

from diffstride import DiffStride
from diffstride.resnet import Resnet
from diffstride.strides import stride_scalars
from diffstride.training.data import load_datasets
from diffstride.training.run import train

STEPS_PER_EPOCH = 5
EPOCHS = 3


POOLING = partial(DiffStride, edge="stopband", straight_through=False)


def tiny_network(
    num_output_classes: int,
    in_channels: int,
    frozen_norms: bool = False,
    pooling_cls=POOLING,
    strides=(2, 2),
) -> Resnet:
    network = Resnet(
        [4, 8], strides, num_output_classes, in_channels=in_channels, pooling_cls=pooling_cls
    )
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms if frozen_norms else []:
        norm.eval().train = lambda mode=True, norm=norm: norm  # ignores a request for training mode
    return network


def tiny_datasets(**options):
    sizes = {"batch_size": 64, "train_examples": STEPS_PER_EPOCH * 64, "test_examples": 101}
    return partial(load_datasets, **sizes | options)


def train_tiny(workdir, frozen_norms=False, batch_size=64, **options):
    options = {
        "model": partial(tiny_network, frozen_norms=frozen_norms),
        "num_epochs": EPOCHS,
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        "schedule": torch.optim.lr_scheduler.OneCycleLR,
        "datasets": tiny_datasets(batch_size=batch_size),
        "accelerator": "cpu",
        "devices": 1,
    } | options
    return train(workdir, **options)


def read_log(workdir):
    """The rows of a run's log by step, without empty cells."""
    with (workdir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): {k: float(v) for k, v in row.items() if v} for row in rows}


class At(pl.Callback):
    """Calls a function with the trainer after the given step."""

    def __init__(self, step, action):
        self.step = step
        self.action = action

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            self.action(trainer)


def kill(trainer):
    os.kill(os.getpid(), signal.SIGKILL)


class Terminate(pl.Callback):
    """Sends SIGTERM to the main process after a step, while the others exchange gradients."""

    def __init__(self, step):
        self.step = step

    def on_before_backward(self, trainer, *args):
        if trainer.global_step == self.step and trainer.is_global_zero:
            time.sleep(1)  # until they wait for the gradients of this process
            os.kill(os.getpid(), signal.SIGTERM)


class WriteStrides(pl.Callback):
    """Writes the strides after every step to one file per process."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.history = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.history.append(stride_scalars(pl_module.network))

    def on_train_end(self, trainer, pl_module):
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.history))


def run_script(*arguments):
    """Run this file with the given arguments in its own process."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--kill", type=int)
    parser.add_argument("--terminate", type=int)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--strides")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = {}
    if arguments.kill:
        options["callbacks"] = [At(arguments.kill, kill)]
    if arguments.terminate:
        options["callbacks"] = [Terminate(arguments.terminate)]
    if arguments.strides:
        options["callbacks"] = [WriteStrides(arguments.strides)]
        options["frozen_norms"] = True
    if arguments.processes > 1:
        options |= {"devices": arguments.processes, "strategy": "ddp"}
        options["batch_size"] = 64 // arguments.processes
    train_tiny(arguments.workdir, **options)


if __name__ == "__main__":
    main()
