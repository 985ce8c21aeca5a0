"""A script as a user would write it, which `test_types.py` runs and has checked by pyright.

A layer in a loop, then conversion, budget, report, freezing, saving and loading.
"""

import torch
from torch import Tensor, nn

import diffstride
from diffstride.conversion import Conversion


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.pool = diffstride.DiffStride((2.0, 2.0), edge="passband", straight_through=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.second(torch.relu(self.conv(x))))
        return y.mean(dim=(-2, -1))


def train_one_layer(x: Tensor) -> Tensor:
    pool = diffstride.DiffStride(2.0, lower_limit_stride=(1.0, None))
    optimizer = torch.optim.SGD(pool.parameters(), lr=0.1)
    for _ in range(2):
        y = pool(x)
        optimizer.zero_grad()
        y.square().mean().backward()
        optimizer.step()
        pool.project_()
    fixed: Tensor = diffstride.FixedSpectralPooling(2.0)(x)
    return fixed + diffstride.MaxPooling((2, 2))(x) + diffstride.spectral_pool(x, 2.0)


def train_network(path: str) -> Tensor:
    images = torch.rand(2, 3, 64, 64)
    model = diffstride.convert(Network(), images, order="before", edge="stopband")
    groups = diffstride.parameter_groups(model, weight_decay=1e-4, stride_learning_rate=0.01)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    budget = diffstride.CostBudget(model, images, "before")
    hooks = budget.attach(optimizer)
    loss = model(images).square().mean() + 0.1 * diffstride.stride_penalty(model)
    loss.backward()
    optimizer.step()
    hooks.remove()
    found = diffstride.report(model)
    for row in found:
        print(row.module, row.strides, row.multiply_adds)
    print(found.multiply_adds_before, budget.cost.value() <= budget.multiply_adds)
    record = model.conversion
    assert isinstance(record, Conversion)
    print(record.left_out, record.multiply_adds[""])
    for name, layer in diffstride.stride_layers(model).items():
        print(name, layer.stride_values(), layer.strides.tolist())
    diffstride.save(model, path)
    loaded = diffstride.load(Network(), path)
    plain = diffstride.freeze(loaded.eval(), images)
    return plain(images)
