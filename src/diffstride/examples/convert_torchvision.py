"""Convert a torchvision network, train it at the cost that it had, freeze, export and run it."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diffstride import CostBudget, convert, freeze, parameter_groups, report, stride_scalars
from diffstride.training.data import Datasets, load_datasets


def batches_of(data: Datasets, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of all epochs, shuffled and cropped anew in each."""
    sampler: Any = data.train.sampler
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        yield from data.train


def main(dataset: str = "digits", network: str = "resnet18", epochs: str = "1") -> None:
    import onnxruntime  # here, so that --help need not wait for these
    from torchvision.models import get_model

    from diffstride import plots

    torch.manual_seed(0)
    data = load_datasets(dataset, batch_size=64, image_size=32, augment_fn="crop")
    test = [(images.expand(-1, 3, -1, -1), labels) for images, labels in data.test]
    example, moves = test[0][0][:2], []
    model = convert(get_model(network, num_classes=data.num_classes), example)
    optimizer = torch.optim.SGD(parameter_groups(model, 5e-4, 0.002), 0.02, 0.9)
    CostBudget(model, example, "before").attach(optimizer)
    for step, (images, labels) in enumerate(batches_of(data, int(epochs)), start=1):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images.expand(-1, 3, -1, -1)), labels).backward()
        optimizer.step()
        moves.append(stride_scalars(model))
        if step % 10 == 0:
            print(f"step {step}/{int(epochs) * len(data.train)}", file=sys.stderr, flush=True)
    print(report(model))
    plots.plot_stride_trajectories(plots.trajectories_of(moves), "strides.png")
    plots.plot_windows(model, example, "windows.png")
    frozen, file, n = freeze(model.eval(), example), f"{network}.onnx", torch.export.Dim("n")
    torch.onnx.export(frozen, (example,), file, dynamo=True, verbose=False, dynamic_shapes=[{0: n}])
    session = onnxruntime.InferenceSession(file)
    for run in (frozen, lambda x: torch.tensor(session.run(None, {"x": x.numpy()})[0])):
        correct = sum((run(x).argmax(1) == y).sum().item() for x, y in test)
        print(correct, "test images classified correctly")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", nargs="?", default="digits", help="as for load_datasets")
    parser.add_argument("network", nargs="?", default="resnet18", help="name in torchvision")
    parser.add_argument("epochs", nargs="?", default="1")
    main(**vars(parser.parse_args()))
