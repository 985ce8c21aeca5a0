"""Optimisers and trainers of other packages, with the groups of `parameter_groups`."""

import pytest
import torch
from torch import nn

import diffstride
from diffstride import CostBudget, stride_layers

IMAGES = torch.rand(2, 3, 64, 64)
RATE, STRIDE_RATE, DECAY = 1e-3, 1e-4, 0.05


def grouped(model):
    return diffstride.parameter_groups(model, DECAY, stride_learning_rate=STRIDE_RATE)


def groups_of_strides(model, optimizer):
    """Learning rate and weight decay of each stride."""
    strides = {id(layer.strides) for layer in stride_layers(model).values()}
    found = [
        (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in strides
    ]
    assert len(found) == len(strides) > 0
    return set(found)


@pytest.fixture
def timm_model():
    timm = pytest.importorskip("timm", reason="needs timm")
    torch.manual_seed(0)
    return diffstride.convert(timm.create_model("resnet18", num_classes=10), IMAGES)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_timm_takes_the_groups(timm_model, name):
    from timm.optim import create_optimizer_v2

    optimizer = create_optimizer_v2(grouped(timm_model), opt=name, lr=RATE)
    assert groups_of_strides(timm_model, optimizer) == {(STRIDE_RATE, 0.0)}
    budget = CostBudget(timm_model, IMAGES, "before")
    budget.attach(optimizer)
    before = diffstride.stride_scalars(timm_model)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(timm_model(IMAGES), torch.tensor([0, 1])).backward()
        optimizer.step()
        assert budget.cost.value() <= budget.multiply_adds
    assert diffstride.stride_scalars(timm_model) != before


def test_groups_of_timm_have_strides_without_decay_at_the_rate_of_weights(timm_model):
    from timm.optim import create_optimizer_v2

    optimizer = create_optimizer_v2(timm_model, opt="adamw", lr=RATE, weight_decay=DECAY)
    assert groups_of_strides(timm_model, optimizer) == {(RATE, 0.0)}


def test_schedules_of_timm_scale_the_rate_of_strides(timm_model):
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    optimizer = create_optimizer_v2(grouped(timm_model), opt="adamw", lr=RATE)
    schedule = CosineLRScheduler(optimizer, t_initial=10)
    schedule.step(5)
    ((rate, decay),) = groups_of_strides(timm_model, optimizer)
    assert rate == pytest.approx(STRIDE_RATE / 2)
    assert decay == 0


@pytest.fixture
def transformers_model():
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("accelerate", reason="needs accelerate")
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 32, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        num_labels=10,
    )
    torch.manual_seed(0)
    return diffstride.convert(transformers.ResNetForImageClassification(config), IMAGES)


def trainer(model, folder, **options):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=RATE,
        weight_decay=DECAY,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    images = torch.rand(12, 3, 64, 64)
    data = [{"pixel_values": image, "labels": label % 10} for label, image in enumerate(images)]
    return Trainer(model, arguments, train_dataset=data, **options)


def test_trainer_of_transformers_holds_the_budget(transformers_model, tmp_path):
    model = transformers_model
    optimizer = torch.optim.AdamW(grouped(model), lr=RATE)
    assert groups_of_strides(model, optimizer) == {(STRIDE_RATE, 0.0)}
    budget = CostBudget(model, IMAGES, "before")
    costs = []
    budget.attach(optimizer)
    optimizer.register_step_post_hook(lambda *_: costs.append(budget.cost.value()))
    before = diffstride.stride_scalars(model)
    trainer(model, tmp_path, optimizers=(optimizer, None)).train()
    assert len(costs) == 3  # of 6 batches
    assert max(costs) <= budget.multiply_adds
    assert diffstride.stride_scalars(model) != before


def test_trainer_of_transformers_decays_strides_by_itself(transformers_model, tmp_path):
    """If this fails, docs/training.md says something that is no longer true."""
    alone = trainer(transformers_model, tmp_path)
    alone.create_optimizer()
    assert groups_of_strides(transformers_model, alone.optimizer) == {(RATE, DECAY)}
