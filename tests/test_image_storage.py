"""Images that exceed the limit of memory are decoded for each batch, with the same results."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import datasets
import pytest
import torch
from torchvision.transforms import v2

from diffstride.training import storage
from diffstride.training.data import DataError, load_datasets
from diffstride.training.storage import EncodedExamples
from tests.test_data import epoch, folder_of_images, pixels, same, write
from tests.test_resume import Interrupted, assert_same_end, assert_same_log, interrupt
from tests.tiny_runs import At, train_tiny

# A queue of workers that end may fail in a thread of its own, after the test that started them.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SIZE, TRAIN, TEST = 24, 30, 9  # of each of two classes
BYTES = 2 * (TRAIN + TEST) * 3 * SIZE**2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "pets"
    return folder_of_images(folder, train=TRAIN, test=TEST, height=SIZE, width=SIZE + 4)


def load(root, limit, workers=2, **options):
    options = {"batch_size": 8, "image_size": SIZE} | options
    limits = {"memory_limit": limit, "num_workers": workers}
    return load_datasets(root.name, root.parent, **options, **limits)


def assert_same_data(streamed, held):
    assert isinstance(streamed.train.dataset.images, EncodedExamples)
    assert isinstance(held.train.dataset.images, torch.Tensor)
    assert streamed.settings == held.settings
    assert streamed.image_shape == held.image_shape
    assert torch.equal(streamed.sample(3), held.sample(3))
    for number in (0, 1):
        assert same(epoch(streamed, number), epoch(held, number))
    assert same(list(streamed.test), list(held.test))


@pytest.mark.parametrize("workers", [0, 2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"augment_fn": "crop_flip", "mixup_alpha": 0.2, "seed": 3},
        {"augment_fn": v2.Compose([v2.RandomCrop(SIZE, 2), v2.ColorJitter(0.3)])},
        {"augment_fn": "crop", "batch_size": 1, "train_examples": 20},
        {"holdout": 20, "test_examples": 10},
    ],
    ids=["plain", "mixup", "transforms", "single images", "holdout"],
)
def test_batches_are_those_of_images_in_memory(root, options, workers):
    assert_same_data(load(root, 0, workers, **options), load(root, BYTES, 0, **options))


def test_the_limit_holds_for_both_splits_together_as_decoded(root):
    kinds = [type(load(root, limit).test.dataset.images) for limit in (BYTES, BYTES - 1, 0)]
    assert kinds == [torch.Tensor, EncodedExamples, EncodedExamples]


def test_images_over_the_limit_are_not_held(root):
    held, streamed = load(root, BYTES), load(root, BYTES - 1)
    assert len(pickle.dumps(held.train)) > BYTES * TRAIN / (TRAIN + TEST)
    for loader in (streamed.train, streamed.test):
        assert len(pickle.dumps(loader)) < BYTES / 10


@pytest.mark.slow
def test_workers_that_are_spawned_give_the_same_batches(root):
    streamed = load(root, 0, 1, augment_fn="flip")
    streamed.train.multiprocessing_context = "spawn"
    assert same(epoch(streamed, 1), epoch(load(root, BYTES, augment_fn="flip"), 1))


def test_grey_images_have_one_channel(tmp_path):
    for part in ("train", "test"):
        for label in ("a", "b"):
            write(tmp_path / "grey" / part / label / "0.png", pixels(len(part + label), channels=1))
    options = {"batch_size": 2, "image_size": None}
    held = load(tmp_path / "grey", 10**6, **options)
    assert held.image_shape == (1, 6, 6)
    assert_same_data(load(tmp_path / "grey", 0, **options), held)
    write(tmp_path / "grey" / "test" / "b" / "1.png", pixels(0))
    coloured = load(tmp_path / "grey", 0, **options)
    assert coloured.image_shape == (3, 6, 6)
    assert_same_data(coloured, load(tmp_path / "grey", 10**6, **options))


def test_parquet_is_decoded_in_workers_too(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for part, count in (("train", 20), ("test", 6)):
        rows = {"image": [pixels(seed) for seed in range(count)], "label": [0, 1] * (count // 2)}
        table = datasets.Dataset.from_dict(rows, features)
        (tmp_path / "pets").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "pets" / f"{part}.parquet")
    options = {"image_size": None, "batch_size": 4}
    assert_same_data(
        load(tmp_path / "pets", 0, **options), load(tmp_path / "pets", 10**6, **options)
    )


def test_digits_are_taken_from_memory_in_workers():
    options = {"batch_size": 200, "num_workers": 2}
    assert_same_data(load_datasets(memory_limit=0, **options), load_datasets(**options))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_decoded_is_an_error_at_the_start(root, tmp_path, workers):
    shutil.copytree(root, tmp_path / "pets")
    (tmp_path / "pets" / "test" / "dog" / "3.png").write_bytes(b"no image")
    message = r"^cannot decode row \d+ \('.*test/dog/3.png'\) of the test split of 'pets' \(not one"
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "pets", 0, workers)
    assert "\n" not in str(caught.value)
    write(tmp_path / "pets" / "test" / "dog" / "3.png", pixels(0))
    with pytest.raises(DataError, match="6 x 6 pixels, others have 24 x 28: pass image_size="):
        load(tmp_path / "pets", 0, workers, image_size=None)


def test_an_image_that_is_removed_later_is_an_error_that_names_it(root, tmp_path):
    shutil.copytree(root, tmp_path / "pets")
    data = load(tmp_path / "pets", 0)
    (tmp_path / "pets" / "train" / "cat" / "4.png").unlink()
    with pytest.raises(
        DataError, match=r"^cannot decode row \d+ \('.*train/cat/4.png'\)"
    ) as caught:
        epoch(data, 0)
    assert "\n" not in str(caught.value)


def test_the_number_of_workers_is_that_of_the_cores(root, monkeypatch):
    monkeypatch.setattr(storage, "_usable_cores", lambda: 1)
    assert load(root, 0, None).train.num_workers == 1
    assert load(root, BYTES, None).train.num_workers == 0
    assert load(root, BYTES, 2).test.num_workers == 2
    monkeypatch.undo()
    assert 1 <= storage._usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("argument", ["memory_limit", "num_workers"])
def test_negative_limits_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} must be 0 or more, but got -1"):
        load_datasets(**{argument: -1})


@pytest.mark.slow
def test_a_run_may_be_resumed_with_another_limit(root, tmp_path):
    def data(limit, workers):
        options = {"augment_fn": v2.RandomCrop(SIZE, padding=2), "mixup_alpha": 0.2}
        return {"datasets": partial(load, root, limit, workers, **options), "num_epochs": 2}

    expected = train_tiny(tmp_path / "held", **data(BYTES, 0))
    steps = 2 * TRAIN // 16
    with pytest.raises(Interrupted):
        train_tiny(tmp_path / "run", callbacks=[At(steps + 1, interrupt)], **data(0, 2))
    assert_same_end(train_tiny(tmp_path / "run", **data(0, 1)), expected)
    assert_same_log(tmp_path / "run", tmp_path / "held")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs process groups")
def test_a_signal_to_all_processes_ends_the_training_as_one_to_the_main_process(tmp_path):
    workdir = tmp_path / "run"
    bindings = ["train.num_epochs = 500", "load_datasets.memory_limit = 0"]
    command = [sys.executable, "-m", "diffstride.examples.main", "--gin_config=digits.gin"]
    command += [f"--workdir={workdir}", *(f"--gin_bindings={each}" for each in bindings)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as started:
        try:
            deadline = time.monotonic() + 120
            while not (workdir / "checkpoints" / "last.ckpt").exists():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            os.killpg(started.pid, signal.SIGTERM)
            printed, _ = started.communicate(timeout=60)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 128 + signal.SIGTERM, printed
    assert "stopped; the same command resumes this run" in printed


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGALRM")
def test_a_worker_that_gets_sigterm_ends_after_a_while(root, monkeypatch):
    monkeypatch.setattr(storage, "SECONDS_TO_STOP", 1)
    batches = iter(load(root, 0, 1).train)
    (worker,) = batches._workers
    next(batches)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(0.3)
    assert worker.is_alive()
    with pytest.raises(RuntimeError, match=rf"worker \(pid.* {worker.pid}\)"):
        time.sleep(10)  # PyTorch raises as soon as the worker ends
    assert not worker.is_alive()
