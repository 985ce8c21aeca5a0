"""Augmentation by transforms of torchvision and by functions on one image."""

import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import transforms
from torchvision.transforms import v2

from diffstride.training import command_line, gin_registry
from diffstride.training.augment import find_augmentation, per_image, seeded_generator
from diffstride.training.data import load_datasets
from tests.tiny_runs import tiny_datasets, train_tiny


def numbered(count=400, channels=3, size=8):
    """Images that differ in each pixel, uint8."""
    pixels = torch.arange(channels * size * size).reshape(1, channels, size, size)
    return (pixels + torch.arange(count)[:, None, None, None]).to(torch.uint8)


def augmented(augment_fn, images, seed=0):
    result = find_augmentation(augment_fn)(images, seeded_generator(seed))
    assert result.dtype == torch.uint8
    assert type(result) is torch.Tensor
    assert result.shape == images.shape
    return result


def test_a_flip_draws_for_each_image():
    images = numbered()
    flipped = augmented(v2.RandomHorizontalFlip(), images)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert abs(mirrored.float().mean().item() - 0.5) < 0.1


def test_a_crop_with_padding_draws_every_shift():
    images = torch.full((400, 1, 3, 3), 0, dtype=torch.uint8)
    images[:] = torch.arange(1, 10).reshape(3, 3)
    corners = augmented(v2.RandomCrop(3, padding=1), images)[:, 0, 1, 1]
    assert corners.unique().tolist() == list(range(1, 10))


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_change_by_one_factor_an_image(channels):
    images = torch.full((50, channels, 4, 4), 100, dtype=torch.uint8)
    changed = augmented(v2.ColorJitter(brightness=0.5, contrast=0.2, hue=0.1), images)
    assert (changed == changed[..., :1, :1]).all()
    assert changed[:, 0, 0, 0].unique().numel() > 20
    assert changed.min() < 80
    assert changed.max() > 120


def test_transforms_in_a_sequence_and_a_wrapped_function_agree_with_each_alone():
    chain = v2.Compose([v2.RandomVerticalFlip(1.0), v2.RandomInvert(1.0)])
    expected = 255 - numbered(5).flip(-2)
    assert torch.equal(augmented(chain, numbered(5)), expected)
    assert torch.equal(augmented(per_image(chain), numbered(5)), expected)
    assert torch.equal(
        augmented(per_image(lambda image: 255 - image.flip(-2)), numbered(5)), expected
    )


def test_old_transforms_are_wrapped_by_the_user():
    old = transforms.RandomHorizontalFlip(1.0)
    assert torch.equal(augmented(per_image(old), numbered(5)), numbered(5).flip(-1))
    message = r"got RandomHorizontalFlip\(img\): .*pass augment\.per_image\(RandomHorizontalFlip\)"
    with pytest.raises(ValueError, match=message):
        load_datasets("digits", augment_fn=old)


def draw_from_all_global_states(image):
    value = torch.randint(80, ()) + int(80 * random.random()) + int(80 * np.random.rand())
    return torch.full_like(image, int(value))


@pytest.mark.parametrize(
    "augment_fn", [v2.RandomCrop(8, 2), per_image(draw_from_all_global_states)]
)
def test_results_follow_from_the_generator_and_global_states_stay(augment_fn):
    first = augmented(augment_fn, numbered(20), seed=1)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    assert torch.equal(augmented(augment_fn, numbered(20), seed=1), first)
    after = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    assert after == (torch.rand(1), random.random(), np.random.rand())
    assert not torch.equal(augmented(augment_fn, numbered(20), seed=2), first)
    assert len({image.numpy().tobytes() for image in first}) > 10


def test_global_states_are_restored_after_an_error():
    def fail(image):
        raise KeyError

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with pytest.raises(KeyError):
        augmented(per_image(fail), numbered(2))
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("function", "came"),
    [
        (v2.CenterCrop(6), r"CenterCrop returned uint8 \(1, 6, 6\)"),
        (v2.ToDtype(torch.float32, scale=True), r"ToDtype returned float32 \(1, 8, 8\)"),
        (v2.ToPILImage(), "ToPILImage returned a Image"),
        (per_image(lambda image: image[0]), r"<lambda> returned uint8 \(8, 8\)"),
        (per_image(partial(torch.flatten)), r"partial returned uint8 \(64,\)"),
    ],
)
def test_another_shape_or_dtype_is_refused_when_the_data_are_loaded(function, came):
    expected = rf"here uint8 \(1, 8, 8\), but {came}: set the size by image_size"
    with pytest.raises(ValueError, match=expected):
        load_datasets("digits", augment_fn=function)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda image: image, r"but got <lambda>\(image\): for a function on one image pass"),
        (v2.RandomCrop, "augment_fn must be None.*but got <class 'torchvision"),
        (per_image, r"but got per_image\(function"),
        (3, "augment_fn must be text or a function or class or None, but got 3"),
    ],
)
def test_what_takes_no_batches_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        load_datasets("digits", augment_fn=function)


@pytest.mark.parametrize("function", [None, "flip", v2.RandomCrop])
def test_what_cannot_be_called_on_an_image_is_refused(function):
    with pytest.raises(ValueError, match="per_image takes a function on one image, but got"):
        per_image(function)


class OnBatches(nn.Module):
    def forward(self, images, generator):
        return images.flip(-1)


def test_a_module_of_batches_gets_them_whole():
    assert torch.equal(augmented(OnBatches(), numbered(3)), numbered(3).flip(-1))


def test_labels_stay_and_mixup_blends_the_augmented_images():
    plain = load_datasets("digits", batch_size=64)
    flipped = load_datasets("digits", batch_size=64, augment_fn=v2.RandomHorizontalFlip(1.0))
    for (images, labels), (mirrored, same) in zip(plain.train, flipped.train, strict=True):
        assert torch.equal(labels, same)
        assert torch.equal(mirrored, images.flip(-1))
    grey = per_image(lambda image: torch.full_like(image, 51))
    mixed = load_datasets("digits", batch_size=32, augment_fn=grey, mixup_alpha=0.2)
    images, targets = next(iter(mixed.train))
    value = (0.2 - mixed.mean) / mixed.std
    torch.testing.assert_close(images, torch.full_like(images, value.item()))
    torch.testing.assert_close(targets.sum(1), torch.ones(32))
    assert (targets.max(1).values < 1).any()


def test_another_argument_of_a_transform_is_another_run(tmp_path):
    options = [tiny_datasets(augment_fn=v2.RandomCrop(8, padding=each)) for each in (1, 2)]
    train_tiny(tmp_path, num_epochs=1, datasets=options[0])
    with pytest.raises(ValueError, match=r"augment_fn \('per_image\(RandomCrop\) \w{12}' there"):
        train_tiny(tmp_path, num_epochs=1, datasets=options[1])


def of_gin(*bindings):
    command_line.configure([], ["data.load_datasets.name = 'digits'", *bindings])
    return gin_registry.load_datasets()


@pytest.mark.usefixtures("gin_folder")
def test_gin_names_transforms_and_functions_on_one_image():
    data = of_gin(
        "data.load_datasets.augment_fn = @Compose()",
        "Compose.transforms = [@RandomCrop(), @v2.RandomHorizontalFlip(), @v2.ColorJitter()]",
        "RandomCrop.size = 8",
        "RandomCrop.padding = 2",
        "torchvision.transforms.v2.ColorJitter.brightness = 0.2",
    )
    crop, jitter = v2.RandomCrop(8, padding=2), v2.ColorJitter(brightness=0.2)
    chain = v2.Compose([crop, v2.RandomHorizontalFlip(), jitter])
    expected = load_datasets("digits", augment_fn=chain)
    assert data.settings == expected.settings
    assert torch.equal(next(iter(data.train))[0], next(iter(expected.train))[0])


@pytest.mark.usefixtures("gin_folder")
def test_gin_wraps_a_function_of_the_user(monkeypatch):
    Path("user_augmentation.py").write_text(
        "import gin\n\n@gin.configurable\ndef darken(image, shift=1):\n    return image >> shift\n"
    )
    monkeypatch.syspath_prepend(".")
    data = of_gin(
        "import user_augmentation",
        "data.load_datasets.augment_fn = @augment.per_image()",
        "augment.per_image.function = @darken",
        "darken.shift = 2",
    )
    expected = load_datasets("digits", augment_fn=per_image(lambda image: image >> 2))
    assert torch.equal(next(iter(data.train))[0], next(iter(expected.train))[0])
