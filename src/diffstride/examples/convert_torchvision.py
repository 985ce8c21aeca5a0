"""A torchvision network converted, trained at its old cost, frozen, exported and run elsewhere.

``python3 -m diffstride.examples.convert_torchvision cifar10 resnet18`` (DATASET NETWORK EPOCHS)"""

import sys
import time

import onnxruntime
import torch
from torchvision.models import get_model

from diffstride import CostBudget, convert, freeze, report
from diffstride.examples.data import load_datasets


def main(dataset: str = "digits", network: str = "resnet18", epochs: str = "1") -> None:
    data = load_datasets(dataset, batch_size=64, image_size=32, augment_fn="crop")
    test = [(images.expand(-1, 3, -1, -1), labels) for images, labels in data.test]
    example = test[0][0][:2]
    model = convert(get_model(network, num_classes=data.num_classes), example)
    budget = CostBudget(model, example, model.conversion.multiply_adds[""])  # type: ignore
    optimizer, loss = torch.optim.SGD(model.parameters(), 0.02, 0.9), torch.nn.CrossEntropyLoss()
    for images, labels in (batch for _ in range(int(epochs)) for batch in data.train):
        optimizer.zero_grad()
        loss(model(images.expand(-1, 3, -1, -1)), labels).backward()
        optimizer.step()
        budget.project_()
    print(report(model))
    frozen, file, sizes = freeze(model.eval(), example), f"{network}.onnx", torch.export.Dim("n")
    torch.onnx.export(frozen, (example,), file, dynamo=True, dynamic_shapes=({0: sizes},))
    session = onnxruntime.InferenceSession(file)
    for run in (frozen, lambda x: session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]):
        start = time.perf_counter()
        right = sum((torch.as_tensor(run(x)).argmax(1) == y).sum().item() for x, y in test)
        print(f"{right} right, {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
