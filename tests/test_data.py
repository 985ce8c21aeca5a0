"""Data sets: content of batches, reproducibility, and errors."""

import io
import json
import os
import struct
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from conftest import DATA
from huggingface_hub import constants as hub_constants
from PIL import Image
from sklearn.datasets import load_digits
from torch import distributed

from diffstride.training import image_decoding
from diffstride.training.augment import crop_and_flip, flip, mixup, random_crop, seeded_generator
from diffstride.training.data import DataError, load_datasets

needs_cifar = pytest.mark.skipif(
    not (DATA / "cifar10" / "train.parquet").is_file(),
    reason="needs CIFAR in Parquet: set DIFFSTRIDE_DATA to its folder",
)


pytestmark = pytest.mark.usefixtures("quiet_datasets", "own_cache")


def epoch(data, number):
    data.train.sampler.set_epoch(number)
    return list(data.train)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(one, other)
        for left, right in zip(first, second, strict=True)
        for one, other in zip(left, right, strict=True)
    )


def rows(images):
    return Counter(image.numpy().tobytes() for image in images)


def pixels(seed, height=6, width=6, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def folder_of_images(root, classes=("cat", "dog"), train=4, test=2, **kwargs):
    for number, label in enumerate(classes):
        for part, count in (("train", train), ("test", test)):
            for index in range(count):
                seed = 1000 * number + 100 * (part == "test") + index
                write(root / part / label / f"{index}.png", pixels(seed, **kwargs))
    return root


def load_folder(root, **kwargs):
    return load_datasets(root.name, root=root.parent, **({"batch_size": 2} | kwargs))


def refused(match, *args, error=DataError, **kwargs):
    with pytest.raises(error, match=match) as caught:
        load_datasets(*args, **kwargs)
    assert "\n" not in str(caught.value)


# The embedded digits: contents, order, repetition


def test_digits_are_complete_and_split_by_class():
    data = load_datasets("digits", seed=3)
    train, test = data.train.dataset, data.test.dataset
    scaled = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    together = rows(train.images) + rows(test.images)
    assert together == Counter(image.tobytes() for image in scaled)
    for label, total in Counter(load_digits().target.tolist()).items():
        assert abs(int((test.labels == label).sum()) - total / 5) <= 1
    assert torch.equal(test.images, load_datasets("digits", seed=4).test.dataset.images)


def test_training_images_are_normalised_by_their_own_statistics():
    data = load_datasets("digits", batch_size=1437)
    images, _ = next(iter(data.train))
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    raw = data.test.dataset.images.double() / 255
    images, _ = next(iter(data.test))
    expected = (raw - data.mean.double()) / data.std.double()
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-6)


def test_a_channel_that_never_changes_becomes_zero(tmp_path):
    for part in ("train", "test"):
        for label in ("a", "b"):
            array = pixels(len(part + label))
            array[..., 1] = 77
            write(tmp_path / "flat" / part / label / "0.png", array)
    images, _ = next(iter(load_folder(tmp_path / "flat").train))
    assert images[:, 1].abs().max() < 1e-5
    assert images.isfinite().all()


def test_epochs_are_different_shuffles_without_repetition():
    data = load_datasets("digits", batch_size=32)
    first, second = epoch(data, 0), epoch(data, 1)
    assert len(first) == len(data.train) == 1437 // 32
    assert all(len(images) == 32 for images, _ in first)
    seen = list(iter(data.train.sampler))
    assert sorted(seen) == list(range(1437))
    assert not same(first, second)
    assert same(epoch(data, 0), first)


def test_images_keep_their_labels():
    data = load_datasets("digits", batch_size=64)
    known = {
        image.numpy().tobytes(): label.item()
        for image, label in zip(data.train.dataset.images, data.train.dataset.labels, strict=True)
    }
    for images, labels in epoch(data, 5):
        raw = (images * data.std + data.mean).mul(255).round().to(torch.uint8)
        assert [known[image.numpy().tobytes()] for image in raw] == labels.tolist()


@pytest.mark.parametrize("mixup_alpha", [0.0, 0.2])
def test_a_resumed_run_has_the_batches_of_an_uninterrupted_one(mixup_alpha):
    kwargs = {"batch_size": 100, "augment_fn": "crop_flip", "mixup_alpha": mixup_alpha, "seed": 7}
    uninterrupted = load_datasets("digits", **kwargs)
    history = [epoch(uninterrupted, number) for number in range(3)]
    torch.manual_seed(123)  # the global state has no effect
    assert same(epoch(load_datasets("digits", **kwargs), 2), history[2])
    assert not same(epoch(load_datasets("digits", **kwargs | {"seed": 8}), 2), history[2])


def test_the_same_image_is_augmented_differently_in_another_epoch():
    data = load_datasets("digits", batch_size=1437, augment_fn="crop")
    plain = load_datasets("digits", batch_size=1437)
    changed = []
    for number in range(2):
        (images, _), (originals, _) = epoch(data, number)[0], epoch(plain, number)[0]
        order = torch.tensor(list(plain.train.sampler)).argsort()
        changed.append((images - originals)[order])
    assert (changed[0] != changed[1]).flatten(1).any(1).float().mean() > 0.9


def test_a_batch_of_one_image_is_augmented_differently_in_another_epoch():
    data = load_datasets("digits", batch_size=1, augment_fn="crop", train_examples=40)
    made = [torch.cat([images for images, _ in epoch(data, number)]) for number in (0, 1, 0)]
    orders = []
    for number in (0, 1, 0):
        data.train.sampler.set_epoch(number)
        orders.append(torch.tensor(list(data.train.sampler)).argsort())
    first, second, again = (images[order] for images, order in zip(made, orders, strict=True))
    assert torch.equal(first, again)
    assert (first != second).flatten(1).any(1).float().mean() > 0.8


def test_a_sample_is_neither_augmented_nor_mixed():
    drawn = load_datasets("digits", batch_size=32, augment_fn="crop_flip", mixup_alpha=0.2)
    assert torch.equal(load_datasets("digits").sample(16), drawn.sample(16))


def test_another_seed_augments_the_same_batch_differently():
    one, other = (load_datasets("digits", augment_fn="crop", seed=seed).train for seed in (0, 1))
    batch = one.dataset.__getitems__(list(range(64)))
    assert same([one.collate_fn(batch)], [one.collate_fn(batch)])
    assert not same([one.collate_fn(batch)], [other.collate_fn(batch)])


def test_seed_and_epoch_are_not_summed():
    one = load_datasets("digits", seed=0)
    other = load_datasets("digits", seed=1)
    one.train.sampler.set_epoch(1)
    other.train.sampler.set_epoch(0)
    assert list(one.train.sampler) != list(other.train.sampler)


def test_batches_of_several_processes_add_up_to_those_of_one(monkeypatch):
    whole = [labels for _, labels in epoch(load_datasets("digits", batch_size=60), 4)]
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        data = load_datasets("digits", batch_size=20)
        assert len(data.train) == len(whole)
        parts.append([labels for _, labels in epoch(data, 4)])
    for step, labels in enumerate(whole):
        assert torch.equal(torch.stack([part[step] for part in parts], 1).flatten(), labels)


def test_lightning_leaves_the_training_sampler_alone():
    # Lightning would wrap any other sampler and shuffle a second time.
    assert isinstance(load_datasets("digits").train.sampler, torch.utils.data.DistributedSampler)


def test_the_test_set_is_complete_in_order_and_not_augmented():
    data = load_datasets("digits", batch_size=100, augment_fn="crop_flip", mixup_alpha=0.2)
    batches = list(data.test)
    assert [len(labels) for _, labels in batches] == [100, 100, 100, 60]
    labels = torch.cat([labels for _, labels in batches])
    assert torch.equal(labels, data.test.dataset.labels)
    images = torch.cat([images for images, _ in batches])
    raw = (images * data.std + data.mean).mul(255).round().to(torch.uint8)
    assert torch.equal(raw, data.test.dataset.images)


def test_holdout_takes_the_last_training_rows_and_leaves_the_test_split_unread():
    plain, held = load_datasets("digits"), load_datasets("digits", holdout=300)
    assert torch.equal(held.train.dataset.images, plain.train.dataset.images[:-300])
    assert torch.equal(held.test.dataset.images, plain.train.dataset.images[-300:])
    assert torch.equal(held.test.dataset.labels, plain.train.dataset.labels[-300:])


def test_examples_limit_both_splits_to_their_first_rows():
    plain = load_datasets("digits")
    short = load_datasets("digits", batch_size=10, train_examples=35, test_examples=7)
    assert torch.equal(short.train.dataset.images, plain.train.dataset.images[:35])
    assert torch.equal(short.test.dataset.labels, plain.test.dataset.labels[:7])
    assert len(short.train) == 3


# Augmentation


@pytest.mark.parametrize("padding_mode", ["constant", "reflect"])
def test_crop_agrees_with_a_loop_over_the_images(padding_mode):
    images = torch.from_numpy(np.stack([pixels(seed, 5, 7) for seed in range(50)])).movedim(3, 1)
    cropped = random_crop(images, seeded_generator(1), padding=3, padding_mode=padding_mode)
    shifts = torch.randint(0, 7, (2, 50), generator=seeded_generator(1)).T.tolist()
    assert len(set(map(tuple, shifts))) > 20
    border = ((0, 0), (3, 3), (3, 3))
    for image, result, (down, right) in zip(images, cropped, shifts, strict=True):
        padded = np.pad(image.numpy(), border, mode=padding_mode)
        expected = padded[:, down : down + 5, right : right + 7]
        assert np.array_equal(result.numpy(), expected)
    assert cropped.dtype == torch.uint8


def test_crop_draws_every_shift_equally_often():
    images = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3).expand(9000, 1, 3, 3)
    corners = random_crop(images, seeded_generator(0), padding=1)[:, 0, 1, 1]
    assert corners.unique().tolist() == list(range(1, 10))
    counts = torch.bincount(corners)[1:]
    assert (counts - 1000).abs().max() < 150  # five standard deviations


def test_flip_mirrors_half_of_the_images_and_leaves_the_others():
    images = torch.arange(12).reshape(1, 1, 3, 4).repeat(4000, 1, 1, 1)
    flipped = flip(images, seeded_generator(0))
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert abs(mirrored.float().mean().item() - 0.5) < 0.04


def test_crop_and_flip_crops_and_flips():
    images = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(500, 1, 1, 1)
    changed = crop_and_flip(images, seeded_generator(2), padding=2)
    inside = changed[:, 0, 2:6, 2:6].int()
    steps = inside[:, :, 1:] - inside[:, :, :-1]
    assert steps.abs().eq(1).all()  # neighbours stay neighbours
    assert 0.4 < steps.gt(0).flatten(1).all(1).float().mean() < 0.6
    assert inside[:, 0, 0].unique().numel() > 20


def test_a_custom_function_augments():
    data = load_datasets("digits", augment_fn=lambda images, generator: torch.zeros_like(images))
    images, _ = next(iter(data.train))
    expected = (-data.mean / data.std).expand(128)
    torch.testing.assert_close(images.mean((1, 2, 3)), expected)


# Mixup


def test_mixup_blends_each_consecutive_pair_with_its_own_weight():
    plain = load_datasets("digits", batch_size=64, seed=2)
    mixed = load_datasets("digits", batch_size=32, mixup_alpha=0.2, seed=2)
    assert len(mixed.train) == len(plain.train) == 1437 // 64
    weights = []
    for (images, labels), (blend, probabilities) in zip(
        epoch(plain, 1), epoch(mixed, 1), strict=True
    ):
        torch.testing.assert_close(probabilities.sum(1), torch.ones(32))
        for pair in range(32):
            first, second = labels[2 * pair : 2 * pair + 2]
            if first == second:
                assert probabilities[pair, first] == pytest.approx(1)
                continue
            weight = probabilities[pair, first]
            expected = weight * images[2 * pair] + (1 - weight) * images[2 * pair + 1]
            torch.testing.assert_close(blend[pair], expected, rtol=1e-4, atol=1e-4)
            weights.append(weight.item())
    assert len(set(weights)) > 0.9 * len(weights)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_weights_are_beta_distributed(alpha):
    images = torch.tensor([1.0, 0.0]).repeat(20_000).reshape(-1, 1, 1, 1)
    weights, _ = mixup(images, torch.eye(2).repeat(20_000, 1), alpha, seeded_generator(0))
    assert weights.mean().item() == pytest.approx(0.5, abs=0.015)
    assert weights.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


# Folders of images


def test_a_folder_of_images_is_read_pixel_by_pixel(tmp_path):
    root = folder_of_images(tmp_path / "pets", train=3)
    data = load_folder(root)
    assert data.class_names == ("cat", "dog")
    assert data.image_shape == (3, 6, 6)
    expected = Counter(
        np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes()
        for path in (root / "train").glob("*/*.png")
    )
    assert rows(data.train.dataset.images) == expected
    for image, label in zip(data.test.dataset.images, data.test.dataset.labels, strict=True):
        name = data.class_names[label]
        shown = [np.asarray(Image.open(path)) for path in (root / "test" / name).glob("*.png")]
        assert any(np.array_equal(image.permute(1, 2, 0), array) for array in shown)


def test_the_environment_variable_replaces_root(tmp_path, monkeypatch):
    folder_of_images(tmp_path / "pets")
    monkeypatch.setenv("DIFFSTRIDE_DATA", str(tmp_path))
    assert load_datasets("pets", batch_size=2).class_names == ("cat", "dog")


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    root = folder_of_images(tmp_path / "odd [1]", classes=("test", "train", "val"))
    data = load_folder(root)
    assert data.class_names == ("test", "train", "val")
    assert (len(data.train.dataset), len(data.test.dataset)) == (12, 6)
    assert not rows(data.train.dataset.images) & rows(data.test.dataset.images)


def test_the_first_and_last_rows_of_a_folder_have_all_classes(tmp_path):
    root = folder_of_images(tmp_path / "pets", classes=("a", "b", "c"), train=40)
    data = load_folder(root, train_examples=30, holdout=30)
    assert len(data.train.dataset.labels.unique()) == 3
    assert len(data.test.dataset.labels.unique()) == 3


def test_grey_images_have_one_channel_however_stored(tmp_path):
    grey = pixels(5, channels=1)
    for part in ("train", "test"):
        write(tmp_path / "grey" / part / "a" / "0.png", grey)
        write(tmp_path / "grey" / part / "b" / "0.png", np.stack([255 - grey] * 3, 2))
    data = load_folder(tmp_path / "grey")
    assert data.image_shape == (1, 6, 6)
    assert rows(data.test.dataset.images) == Counter([grey.tobytes(), (255 - grey).tobytes()])


def test_one_coloured_image_makes_all_of_them_coloured(tmp_path):
    root = folder_of_images(tmp_path / "mixed", channels=1)
    write(root / "test" / "cat" / "0.png", pixels(1))
    data = load_folder(root)
    assert data.image_shape == (3, 6, 6)
    images = data.train.dataset.images
    assert torch.equal(images[:, 0], images[:, 2])


def test_image_size_resizes_the_shorter_side_and_keeps_the_centre(tmp_path):
    root = folder_of_images(tmp_path / "sizes", height=6, width=10)
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200
    write(root / "test" / "cat" / "0.png", wide)
    data = load_folder(root, image_size=8)
    assert data.image_shape == (3, 8, 8)
    assert any(bool((image == 200).all()) for image in data.test.dataset.images)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "tiff", "webp"])
def test_other_formats_are_read_too(tmp_path, suffix):
    root = folder_of_images(tmp_path / "pets")
    buffer = np.full((6, 6, 3), 120, np.uint8)
    write(root / "test" / "cat" / f"other.{suffix}", buffer)
    images = load_folder(root).test.dataset.images
    assert any(bool((image.int() - 120).abs().max() <= 2) for image in images)


def test_exif_orientation_is_applied(tmp_path):
    root = folder_of_images(tmp_path / "pets")
    turned = Image.fromarray(pixels(9))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    turned.save(root / "test" / "cat" / "0.png", exif=exif)
    upright = np.rot90(pixels(9), -1).transpose(2, 0, 1)
    assert rows(load_folder(root).test.dataset.images)[upright.tobytes()] == 1


# What is wrong with a folder


def test_images_of_different_sizes_ask_for_image_size(tmp_path):
    root = folder_of_images(tmp_path / "sizes")
    write(root / "train" / "cat" / "1.png", pixels(0, 6, 9))
    refused(r"6 x (6|9) pixels.*6 x (6|9).*pass image_size=", "sizes", tmp_path, 2)
    root = folder_of_images(tmp_path / "test_sizes")
    for path in (root / "test").glob("*/*.png"):  # all alike, but unlike the training images
        write(path, pixels(0, 7, 6))
    refused(r"7 x 6 pixels.*6 x 6: pass image_size=", "test_sizes", tmp_path, 2)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_the_error_of_a_corrupt_image_names_it(tmp_path, keep):
    root = folder_of_images(tmp_path / "pets")
    damaged = root / "train" / "dog" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:keep])
    reason = "" if keep else "0 bytes, not 1 to"
    place = rf"cannot decode row \d+ \('.*dog/2\.png'\) of the train split of 'pets' \({reason}"
    refused(place, "pets", tmp_path, 2)


def test_sixteen_bits_a_pixel_are_refused_rather_than_clipped(tmp_path):
    root = folder_of_images(tmp_path / "pets")
    write(root / "train" / "dog" / "2.png", pixels(0, channels=1).astype(np.uint16) * 257)
    refused(r"dog/2\.png.*more than 8 bits", "pets", tmp_path, 2)


def test_the_error_of_a_class_missing_in_a_split_names_it(tmp_path):
    root = folder_of_images(tmp_path / "pets", classes=("cat", "dog", "emu"))
    for path in (root / "test" / "emu").glob("*"):
        path.unlink()
    refused(
        r"the test split of 'pets' has no images of class 'emu' to test on; "
        r"only the train split of 'pets' has them: add some, or remove the class",
        *("pets", tmp_path, 2),
    )
    write(root / "test" / "emu" / "0.png", pixels(0))
    write(root / "test" / "yak" / "0.png", pixels(1))
    refused(
        r"the train split of 'pets' has no images of class 'yak' to train on; "
        r"only the test split of 'pets' has them: add some",
        *("pets", tmp_path, 2),
    )


def test_a_missing_test_split_suggests_holdout(tmp_path):
    folder_of_images(tmp_path / "pets", train=20, test=0)
    refused(r"no test split beside the train split of 'pets'.*holdout=", "pets", tmp_path, 2)
    data = load_datasets("pets", tmp_path, 2, holdout=20)
    assert (len(data.train.dataset), len(data.test.dataset)) == (20, 20)


def test_a_missing_train_split_is_refused(tmp_path):
    table = datasets.Dataset.from_dict({"label": [0]})
    (tmp_path / "pets").mkdir()
    table.to_parquet(tmp_path / "pets" / "test.parquet")
    refused(r"'pets' has no train split, only 'test'", "pets", tmp_path)


def test_the_error_of_a_missing_folder_says_what_to_put_there(tmp_path):
    refused(r"no folder '.*pets': put train\.parquet and .* there", "pets", tmp_path)


def test_an_empty_folder_and_a_single_class_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(r"empty' has no Parquet files, .* expected train\.parquet", "empty", tmp_path)
    folder_of_images(tmp_path / "single", classes=("cat",))
    refused(r"'single' has files of 'cat' only: add a second class", "single", tmp_path)
    write(tmp_path / "flat" / "train" / "0.png", pixels(0))
    refused(r"flat' has no Parquet files, .* move folders of classes into", "flat", tmp_path)


def test_folders_of_classes_without_train_are_refused(tmp_path):
    for label in ("cat", "dog"):
        write(tmp_path / "flat" / label / "0.png", pixels(0))
    refused(r"move folders of classes into .*flat/train", "flat", tmp_path, holdout=1)


def test_a_path_is_read_as_a_folder_below_root(tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFSTRIDE_DATA", raising=False)
    folder = folder_of_images(tmp_path / "pets")
    expected = load_folder(folder).train.dataset.images
    assert torch.equal(load_datasets(str(folder), batch_size=2).train.dataset.images, expected)
    (folder / "train/cat/photo.heic").write_bytes(b"no image")
    refused(
        r"photo\.heic'\) of the train split of .* \(not one of the formats",
        str(folder),
        batch_size=2,
    )


def test_arguments_that_the_embedded_digits_do_not_take_are_refused(tmp_path):
    refused(r"'digits' is the data set of scikit-learn, which takes no root:", "digits", tmp_path)
    refused(r"which takes no label_column: leave", "digits", label_column="number")


@pytest.mark.parametrize(
    ("function", "returned"),
    [
        (lambda images, generator: images.float() / 255, r"float32 \(\d+, 1, 8, 8\)"),
        (lambda images, generator: images[..., :4], r"uint8 \(\d+, 1, 8, 4\)"),
    ],
)
def test_augmentations_that_change_dtype_or_shape_are_refused(function, returned):
    match = rf"here uint8 \(\d+, 1, 8, 8\), but <lambda> returned {returned}: set the size"
    refused(match, "digits", augment_fn=function, error=ValueError)


def test_transparent_pixels_are_white(tmp_path):
    opaque = np.concatenate([pixels(0), np.full((6, 6, 1), 255, dtype=np.uint8)], 2)
    drawing = opaque.copy()
    drawing[:3, :, 3] = 0
    expected = opaque.copy()
    expected[:3] = 255
    for part in ("train", "test"):
        write(tmp_path / "icons" / part / "a" / "0.png", drawing)
        write(tmp_path / "icons" / part / "b" / "0.png", opaque)
    found = load_folder(tmp_path / "icons").test.dataset.images
    assert rows(found.permute(0, 2, 3, 1)) == rows(
        torch.from_numpy(np.stack([expected, opaque])[..., :3].copy())
    )


def move(root, name, target):
    (root / "train/cat" / name).rename(root / "train" / target)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda root: write(root / "train/cat/camera/0.png", pixels(0)),
            r"train/cat/camera' is a folder inside a class: move its files",
        ),
        (lambda root: move(root, "0.png", "0.png"), r"train/0\.png' lies beside the class folders"),
        (
            lambda root: (root / "train/cat/notes.txt").write_text("cats"),
            r"cat/notes\.txt'\) of the train split of 'pets' \(not one of the formats WEBP",
        ),
        (lambda root: os.mkfifo(root / "train/cat/4.png"), r"cat/4\.png' is no regular file"),
        (
            lambda root: (root / "train/cat/4.png").symlink_to("nowhere"),
            r"cannot open '.*cat/4\.png' \(No such file or directory\)",
        ),
        (
            lambda root: move(root, "0.png", os.fsdecode(b"cat/\xff.png")),
            r"the name of '.*cat/\\udcff\.png' is not UTF-8",
        ),
        (
            lambda root: [(root / part / "yak").mkdir() for part in ("train", "test")],
            r"the train split of 'pets' has no images of class 'yak' to train on: add some",
        ),
    ],
    ids=["nested", "beside", "format", "pipe", "dangling link", "name", "empty class"],
)
def test_nothing_in_a_folder_of_images_is_left_out_without_a_word(tmp_path, change, match):
    change(folder_of_images(tmp_path / "pets"))
    refused(match, "pets", tmp_path, 2)


def test_a_class_that_cannot_be_opened_is_refused(tmp_path, monkeypatch):
    def scan(folder):
        if str(folder).endswith("train/dog"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    scandir = os.scandir
    folder_of_images(tmp_path / "pets")
    monkeypatch.setattr(os, "scandir", scan)
    refused(r"cannot open '.*train/dog' \(Permission denied\)", "pets", tmp_path, 2)


def test_links_are_followed_and_hidden_files_left_out(tmp_path):
    root = folder_of_images(tmp_path / "pets")
    plain = load_folder(root)
    (root / "train/dog").rename(tmp_path / "elsewhere")
    (root / "train/dog").symlink_to(tmp_path / "elsewhere")
    (root / "train/cat/.DS_Store").write_bytes(b"x")
    (root / ".hidden").mkdir()
    linked = load_folder(root)
    assert torch.equal(plain.train.dataset.images, linked.train.dataset.images)
    assert torch.equal(plain.train.dataset.labels, linked.train.dataset.labels)


def header(width, height):
    """A BMP file that states these sizes."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "BMP")
    content = bytearray(file.getvalue())
    content[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(content)


def no_pixels(*args):
    raise AssertionError("decoded")


@pytest.mark.parametrize("size", [(8192, 8193), (10_000, 10_000), (100_000, 100_000)])
def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(size, monkeypatch):
    encoded = header(*size)
    monkeypatch.setattr(Image.Image, "load", no_pixels)
    with pytest.raises(DataError, match=r"cannot decode row 7 of the train split \(.* pixels"):
        image_decoding._decode({"bytes": encoded, "path": None}, "row 7 of the train split")


def test_a_long_image_that_resizing_would_blow_up_is_refused(tmp_path):
    root = folder_of_images(tmp_path / "pets")
    write(root / "train/dog/3.png", pixels(0, height=1, width=20_000))
    refused(
        r"1 x 20000 pixels, too many where .* image_size=64", "pets", tmp_path, 2, image_size=64
    )


@pytest.mark.parametrize("error", [KeyError("Exif"), EOFError(), MemoryError(), struct.error("x")])
def test_any_error_of_a_decoder_names_the_image(tmp_path, monkeypatch, error):
    def transpose(*args, **kwargs):
        raise error

    folder_of_images(tmp_path / "pets")
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", transpose)
    refused(
        r"cannot decode row \d \('.*png'\) of the train split of 'pets' \(", "pets", tmp_path, 2
    )


# Parquet and the Hub


def table(count=12, labels=None, column="label", feature=None):
    images = [Image.fromarray(pixels(seed)) for seed in range(count)]
    values = labels or [number % 3 for number in range(count)]
    features = datasets.Features(
        {"img": datasets.Image(), column: feature or datasets.ClassLabel(names=["x", "y", "z"])}
    )
    return datasets.Dataset.from_dict({"img": images, column: values}, features=features)


def save(root, train, test):
    root.mkdir(parents=True)
    train.to_parquet(root / "train.parquet")
    test.to_parquet(root / "test.parquet")


def test_parquet_is_read_in_its_own_order(tmp_path):
    save(tmp_path / "own", table(12), table(6))
    data = load_datasets("own", tmp_path, 4)
    expected = torch.from_numpy(np.stack([pixels(seed) for seed in range(12)])).movedim(3, 1)
    assert torch.equal(data.train.dataset.images, expected)
    assert data.train.dataset.labels.tolist() == [0, 1, 2] * 4
    assert data.class_names == ("x", "y", "z")


def test_files_that_number_their_classes_differently_are_refused(tmp_path):
    swapped = table(6, feature=datasets.ClassLabel(names=["y", "x", "z"]))
    save(tmp_path / "own", table(12), swapped)
    refused(
        r"the classes of column 'label' are 'x', 'y', 'z' in .*train\.parquet, "
        r"but 'y', 'x', 'z' in .*test\.parquet: write both files with the same class names",
        "own",
        tmp_path,
    )


def test_settings_depend_on_images_and_labels(tmp_path):
    first, other = table(12), table(12, [0, 1, 2, 2, 1, 0] * 2)
    darker = first.map(lambda row: {"img": row["img"].point(lambda level: level // 2)})
    found = []
    for name, train in (("first", first), ("again", first), ("other", other), ("darker", darker)):
        save(tmp_path / name, train, table(6))
        found.append(load_datasets(name, tmp_path, 4).settings)
    assert found[0] == found[1]
    differing = [{key for key in found[0] if found[0][key] != each[key]} for each in found[2:]]
    assert differing == [{"labels"}, {"mean", "std"}]
    assert json.loads(json.dumps(found[0])) == found[0]


def test_labels_may_be_strings_in_a_column_of_any_name(tmp_path):
    words = {"column": "kind", "feature": datasets.Value("string")}
    save(tmp_path / "own", table(4, list("baba"), **words), table(2, list("ba"), **words))
    refused(r"'own' has no column of labels, only 'img', 'kind'", "own", tmp_path)
    data = load_datasets("own", tmp_path, 2, label_column="kind")
    assert data.class_names == ("a", "b")
    assert data.train.dataset.labels.tolist() == [1, 0, 1, 0]
    assert data.test.dataset.labels.tolist() == [1, 0]


def test_the_error_of_a_row_without_label_names_it(tmp_path):
    save(tmp_path / "own", table(3, [0, None, 2]), table(3))
    refused(r"row 1 of the train split of 'own' has the label None", "own", tmp_path)
    save(tmp_path / "hidden", table(3), table(3, [-1, -1, -1]))
    refused(r"row 0 of the test split of 'hidden' has the label -1", "hidden", tmp_path)


def test_the_error_of_a_corrupt_image_in_parquet_names_its_row(tmp_path):
    good = io.BytesIO()
    Image.fromarray(pixels(0)).save(good, "png")
    cells = [{"bytes": good.getvalue(), "path": None} for _ in range(6)]
    cells[4] = {"bytes": good.getvalue()[:50], "path": None}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    damaged = datasets.Dataset.from_dict({"img": cells, "label": [0, 1] * 3}, features=features)
    save(tmp_path / "own", damaged, table(2, [0, 1], feature=datasets.Value("int64")))
    refused(r"cannot decode row 4 of the train split of 'own'.*replace", "own", tmp_path, 2)
    assert load_datasets("own", tmp_path, 2, train_examples=4).num_classes == 2


@pytest.mark.parametrize("kind", ["pipe", "device", "system"])
def test_a_path_in_parquet_is_opened_only_if_it_is_a_file(tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    path = {"pipe": str(tmp_path / "pipe"), "device": "/dev/zero", "system": "/proc/self/status"}
    cells = [{"bytes": None, "path": path[kind]}] * 4
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    foreign = datasets.Dataset.from_dict({"img": cells, "label": [0, 1] * 2}, features=features)
    (tmp_path / "own").mkdir()
    for part in ("train", "test"):
        foreign.to_parquet(tmp_path / "own" / f"{part}.parquet", batch_size=None)
    refused(r"cannot decode row 0 .*(no regular file|0 bytes)", "own", tmp_path, 2)


def test_parquet_files_that_would_hang_or_be_left_out_are_refused(tmp_path):
    save(tmp_path / "own", table(3), table(3))
    (tmp_path / "more").mkdir()
    (tmp_path / "own" / "more").symlink_to(tmp_path / "more")
    refused(r"own/more' is a link to a folder, which is not followed", "own", tmp_path)
    (tmp_path / "own" / "more").unlink()
    os.mkfifo(tmp_path / "own" / "train-2.parquet")
    refused(r"own/train-2\.parquet' is no regular file", "own", tmp_path)


def test_an_empty_parquet_file_is_refused(tmp_path):
    save(tmp_path / "own", table(3).select([]), table(3))
    refused(r"own/train\.parquet has no rows", "own", tmp_path)


def test_the_error_of_corrupt_parquet_names_its_folder(tmp_path):
    save(tmp_path / "own", table(3), table(3))
    (tmp_path / "own" / "train.parquet").write_bytes(b"not parquet")
    refused(r"cannot read '.*own' \(.*\): expected train\.parquet", "own", tmp_path)


@pytest.mark.parametrize(
    ("name", "hub_name", "column"),
    [
        ("cifar10", "uoft-cs/cifar10", "label"),
        ("cifar100", "uoft-cs/cifar100", "fine_label"),
        ("fashion_mnist", "zalando-datasets/fashion_mnist", "label"),
        ("someone/images", "someone/images", "label"),
    ],
)
def test_known_and_other_names_are_loaded_from_the_hub(monkeypatch, name, hub_name, column):
    asked = []

    def load_dataset(path):
        asked.append(path)
        both = table(column=column).add_column("coarse_label", [0] * 12)
        return datasets.DatasetDict(train=both, test=both)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_datasets(name, batch_size=4)
    assert asked == [hub_name]
    assert data.train.dataset.labels.tolist() == [0, 1, 2] * 4


def test_the_error_of_an_unreachable_hub_says_how_to_load_without_it(monkeypatch):
    # The same error as without a network, but without 23 seconds of retries.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    advice = r"cannot reach the Hugging Face Hub for 'uoft-cs/cifar10'.*FOLDER/cifar10.*root=.*"
    refused(advice + "DIFFSTRIDE_DATA=FOLDER.*HF_HOME", "cifar10")


def test_the_error_of_a_name_unknown_to_the_hub_quotes_it(monkeypatch):
    def load_dataset(path):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist\non it")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    refused(r"cannot load 'no/thing' from the Hugging Face Hub \(Dataset .* exist\)", "no/thing")


def test_the_error_of_an_unknown_name_lists_the_known_ones():
    refused(r"unknown data set 'cifar11': expected 'digits', 'cifar10'.*root", "cifar11")


def test_a_set_without_images_is_refused(monkeypatch):
    words = datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"], "label": [0]}))
    monkeypatch.setattr(datasets, "load_dataset", lambda path: words)
    refused(r"'a/b' has no column of images or sounds, only 'text', 'label'", "a/b")


# Arguments


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, but got 0"),
        ({"batch_size": "64"}, "batch_size must be a whole number, but got '64'"),
        ({"image_size": 8193}, "image_size must be at most 8192, but got 8193"),
        ({"image_size": -8}, "image_size must be 1 or more, but got -8"),
        ({"train_examples": 0}, "train_examples must be 1 or more, but got 0"),
        ({"test_examples": 0}, "test_examples must be 1 or more, but got 0"),
        ({"mixup_alpha": -0.1}, "mixup_alpha must be 0, .* but got -0.1"),
        ({"mixup_alpha": float("nan")}, "mixup_alpha must be 0, .* but got nan"),
        ({"holdout": -1}, "holdout must be 0 to 1436, but got -1"),
        ({"holdout": 1437}, "holdout must be 0 to 1436, but got 1437"),
        ({"augment_fn": "rotate"}, "augment_fn must be None.*'crop_flip'.*but got 'rotate'"),
        (
            {"batch_size": 1438},
            "needs 1438 images per step, but 'digits' has 1,437 .*smaller batch_size",
        ),
        ({"batch_size": 720, "mixup_alpha": 0.2}, "needs 1440 images per step"),
        ({"holdout": 5}, "has no images of class .* to test on: choose another holdout"),
    ],
)
def test_arguments_out_of_range_are_refused(kwargs, match):
    refused(match, "digits", error=ValueError, **kwargs)


def test_an_unknown_home_folder_is_refused():
    refused(
        "home folder that is not known: write ./~", "x", root="~nobody_here/x", error=ValueError
    )


# The real CIFAR


@needs_cifar
@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_only_the_rows_asked_for_are_decoded(name, classes, monkeypatch):
    decoded = []
    decode = image_decoding._decode
    monkeypatch.setattr(
        image_decoding, "_decode", lambda *args: decoded.append(args) or decode(*args)
    )
    data = load_datasets(name, DATA, train_examples=600, test_examples=150)
    assert len(decoded) == 751  # the first one twice, for the size of all
    assert (data.num_classes, data.image_shape) == (classes, (3, 32, 32))
    stored = datasets.load_dataset("parquet", data_files=str(DATA / name / "test.parquet"))["train"]
    label = "fine_label" if name == "cifar100" else "label"
    assert data.test.dataset.labels.tolist() == stored[label][:150]
    for row in range(5):
        expected = np.asarray(stored[row]["img"])
        assert np.array_equal(data.test.dataset.images[row].permute(1, 2, 0), expected)
    published = torch.tensor([0.4914, 0.4822, 0.4465])
    assert (data.mean - published).abs().max() < 0.05


@needs_cifar
@pytest.mark.slow
def test_the_training_means_of_cifar10_are_the_published_ones():
    data = load_datasets("cifar10", DATA, test_examples=1)
    assert data.mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
    assert data.std.tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=5e-5)
    assert data.train.dataset.labels.bincount().tolist() == [5000] * 10


def test_settings_depend_on_the_number_held_out():
    sizes = {"batch_size": 32, "train_examples": 320, "test_examples": 100}
    one, other = (load_datasets("digits", holdout=held, **sizes) for held in (200, 300))
    assert one.settings != other.settings
