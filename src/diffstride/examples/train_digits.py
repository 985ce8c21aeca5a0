"""Train a network with learnable strides on the digits of scikit-learn, then freeze it.

python3 -m diffstride.examples.train_digits [PICTURE]

Plain PyTorch, with scikit-learn for the images and matplotlib for PICTURE (default: digits.png).
It takes under a minute on one core. The strides move, while the multiply-adds stay the same.
"""

import argparse
from collections import OrderedDict
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffstride import CostBudget, DiffStride, freeze, parameter_groups, stride_scalars

IMAGE_SIZE = (32, 32)
TEST_IMAGES = 360
EPOCHS = 10
BATCH_SIZE = 64


def load_images() -> tuple[Tensor, Tensor]:
    """All 1,797 digits, shuffled: images ``(N, 1, 32, 32)``, enlarged from 8 x 8, and labels."""
    from sklearn.datasets import load_digits  # here, so that --help need not wait for it

    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    images = (images.float().reshape(-1, 1, 8, 8) - 4.9) / 6.0  # mean and standard deviation
    order = torch.randperm(len(images))
    return F.interpolate(images[order], IMAGE_SIZE, mode="bilinear"), labels[order]


def build_network() -> nn.Sequential:
    """Three convolutions with two learnable pooling layers, both with initial stride 2."""

    def conv(in_channels: int, channels: int) -> nn.Module:
        layer = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU())

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    layers = OrderedDict(conv1=conv(1, 16), pool1=DiffStride(2.0))
    layers.update(conv2=conv(16, 32), pool2=DiffStride(2.0), conv3=conv(32, 64), head=head)
    return nn.Sequential(layers)


def map_sizes(network: nn.Sequential) -> dict[str, int]:
    """Height and width after each pooling layer at the current strides."""
    sizes, size = {}, IMAGE_SIZE
    for name, layer in network.named_children():
        if isinstance(layer, DiffStride):
            size = layer.output_size(size)
            sizes[f"{name}/height"], sizes[f"{name}/width"] = size
    return sizes


def train(network: nn.Sequential, budget: CostBudget, images: Tensor, labels: Tensor) -> list:
    """Train by SGD with decaying learning rates; returns strides and map sizes of each step."""
    groups = parameter_groups(network, weight_decay=1e-3, stride_learning_rate=0.05)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    steps = EPOCHS * ceil(len(images) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    history = [(stride_scalars(network), map_sizes(network))]
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH_SIZE):
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            budget.project_()  # moves the strides back onto the budget
            history.append((stride_scalars(network), map_sizes(network)))
        sizes = "{} x {}, {} x {}".format(*history[-1][1].values())
        print(f"epoch {epoch + 1:>2}/{EPOCHS}  loss {loss.item():.3f}  maps after pooling {sizes}")
    return history


def plot(history: list, path: str) -> None:
    """Plot strides and map sizes over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for panel, curves, title in zip(
        figure.subplots(1, 2), zip(*history, strict=True), ("stride", "map size"), strict=True
    ):
        for name in curves[0]:
            panel.plot([values[name] for values in curves], label=name.removeprefix("stride/"))
        panel.set(xlabel="step", ylabel=title)
        panel.legend()
    figure.savefig(path)


def main(picture: str = "digits.png") -> None:
    torch.manual_seed(0)
    images, labels = load_images()
    network = build_network()
    budget = CostBudget(network, images[:1])  # the multiply-adds of the network as built
    history = train(network, budget, images[TEST_IMAGES:], labels[TEST_IMAGES:])
    plot(history, picture)

    network.eval()
    frozen = freeze(network, images[:1])  # constant matrices, ready for export
    with torch.no_grad():
        logits = network(images[:TEST_IMAGES])
        torch.testing.assert_close(frozen(images[:TEST_IMAGES]), logits)
    accuracy = (logits.argmax(1) == labels[:TEST_IMAGES]).float().mean().item()
    for name, stride in stride_scalars(network).items():
        print(f"{name}: {stride:.4f}")
    cost = f"{budget.cost.value() / 1e6:.2f} M of {budget.multiply_adds / 1e6:.2f} M multiply-adds"
    print(f"test accuracy: {accuracy:.1%} at {cost} per image")
    print(f"frozen outputs agree; picture: {picture}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("picture", nargs="?", default="digits.png", help="file of the picture")
    main(**vars(parser.parse_args()))
