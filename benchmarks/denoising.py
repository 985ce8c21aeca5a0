"""A U-Net that removes noise from images: as built, and converted, at equal MACs.

The network halves maps by strided convolutions and enlarges them by transposed ones. Converted, the
transposed convolutions return the sizes that they mirror, so that all strides learn. Both train on
noisy CIFAR-10 images from the same weights, for as many steps. The result is the peak
signal-to-noise ratio (PSNR) of the restored test images in decibels: 3 dB more are half the squared
error.

Each run appends a row to ``results/denoising.jsonl``; runs with a row are skipped.
"""

import argparse
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import append_row, read_rows, select
from benchmarks.machine import ROOT, environment
from benchmarks.tables import table
from diffstride import (
    CostBudget,
    MultiplyAdds,
    convert,
    parameter_groups,
    stride_layers,
    stride_scalars,
)
from diffstride.training.data import Datasets, load_datasets
from experiments.markdown import write_table

RESULT = ROOT / "results" / "denoising.jsonl"
PAGE = ROOT / "docs" / "conversion_gain.md"
METHODS = ("as built", "fixed", "learned")
NOISE = 0.5  # standard deviation, in standard deviations of the images
WIDTH, EPOCHS, BATCH_SIZE = 16, 4, 64
LEARNING_RATE, STRIDE_LEARNING_RATE = 2e-3, 2e-3


class UNet(nn.Module):
    """A U-Net of three levels below the image, with strided and transposed convolutions."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 2 * width, 2 * width]
        self.stem = block(channels, width)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairs)
        self.encoder = nn.ModuleList(block(b, b) for _, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.decoder = nn.ModuleList(block(2 * a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The noise in ``x``."""
        skips = [self.stem(x)]
        for down, encode in zip(self.down, self.encoder, strict=True):
            skips.append(encode(down(skips[-1])))
        y = skips.pop()
        for up, decode in zip(self.up, self.decoder, strict=True):
            y = decode(torch.cat([skips.pop(), up(y)], 1))
        return self.head(y)


def block(in_channels: int, channels: int) -> nn.Module:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def build(method: str, example: Tensor, width: int, seed: int) -> tuple[nn.Module, int]:
    """A network as a method trains it, and the MACs of the one as built."""
    torch.manual_seed(seed)
    network: nn.Module = UNet(example.shape[1], width)
    before = MultiplyAdds(network, example).value()
    if method != "as built":
        network = convert(network, example)
        CostBudget(network, example, before)
    for layer in stride_layers(network).values() if method == "fixed" else ():
        layer.strides.requires_grad_(False)  # type: ignore[union-attr]
    return network, before


def train(network: nn.Module, data: Datasets, epochs: int, seed: int, budget: int | None) -> None:
    """Train by AdamW with one cycle of the learning rate, held to a budget if there is one."""
    groups = parameter_groups(network, 1e-3, stride_learning_rate=STRIDE_LEARNING_RATE)
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    rates = [group.get("lr", LEARNING_RATE) for group in optimizer.param_groups]
    steps = epochs * len(data.train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, steps)
    held = None if budget is None else CostBudget(network, data.sample(1), budget)
    generator = torch.Generator().manual_seed(seed)
    sampler: Any = data.train.sampler
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for clean, _ in data.train:
            noise = NOISE * torch.randn(clean.shape, generator=generator)
            noisy = (clean + noise).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                found = network(noisy)
            optimizer.zero_grad()
            F.mse_loss(found.float(), noise).backward()
            if held is not None:
                held.project_gradients_()  # AdamW rescales them
            optimizer.step()
            schedule.step()
            if held is not None:
                held.project_()


@torch.no_grad()
def psnr(network: nn.Module, data: Datasets) -> float:
    """The PSNR of the restored test images in decibels, with the same noise in every call."""
    network.eval()
    generator, errors = torch.Generator().manual_seed(0), []
    for clean, _ in data.test:
        noise = NOISE * torch.randn(clean.shape, generator=generator)
        restored = clean + noise - network(clean + noise)
        errors.append(((restored - clean) * data.std.view(-1, 1, 1)).square().mean((1, 2, 3)))
    return -10 * torch.cat(errors).mean().log10().item()


def run(method: str, seed: int, data: Datasets, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network, and return its row."""
    example = data.sample(1)
    network, before = build(method, example, options.width, seed)
    network = network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    started = time.perf_counter()
    train(network, data, options.epochs, seed, before if method == "learned" else None)
    minutes = (time.perf_counter() - started) / 60
    return {
        "method": method,
        "seed": seed,
        "psnr": psnr(network, data),
        "multiply_adds": MultiplyAdds(network, example).value(),
        "multiply_adds_before": before,
        "strides": stride_scalars(network),
        "epochs": options.epochs,
        "minutes": round(minutes, 1),
    }


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each method: PSNR, gain and MACs."""
    base = mean(row["psnr"] for row in select(rows, method="as built"))
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        found = [row["psnr"] for row in select(rows, method=method)]
        spread = f" ± {stdev(found):.2f}" if len(found) > 1 else ""
        gain = f"{mean(found) - base:+.2f}".replace("-", "−") if method != "as built" else ""
        cost = mean(row["multiply_adds"] for row in select(rows, method=method))
        lines.append(
            [method, f"{mean(found):.2f}{spread} dB", gain, f"{cost / 1e6:.1f} M", str(len(found))]
        )
    return table(["U-Net", "PSNR", "gain", "MACs", "seeds"], lines)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.denoising", description=__doc__)
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--epochs", type=int, default=EPOCHS)
    add("--width", type=int, default=WIDTH, help="channels at the size of the image")
    add("--quick", action="store_true", help="tiny sizes, only to check that it runs")
    add("--out", type=Path, help="file of the rows (default: results/denoising.jsonl)")
    add("--table", action="store_true", help="only write the table of the page")
    options = parser.parse_args(arguments)
    out, contract = options.out or RESULT, environment()
    name: str = "cifar10"
    some: dict[str, Any] = {}
    if options.quick:
        name, options.width, options.epochs = "digits", 4, 1
        some = {"train_examples": 128, "test_examples": 64, "image_size": 16}
    for seed in () if options.table else options.seeds:
        for method in options.methods:
            if not select(read_rows(out), method=method, seed=seed):
                data = load_datasets(
                    name, batch_size=BATCH_SIZE, augment_fn="flip", seed=seed, **some
                )
                append_row(out, run(method, seed, data, options) | {"contract": contract})
    rows = read_rows(out)
    print(summary(rows))
    if options.out is None and not options.quick:
        write_table(PAGE, "denoising", summary(rows))
    return rows


if __name__ == "__main__":
    main()
