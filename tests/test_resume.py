"""Checkpoints and resuming: an interrupted run ends as an uninterrupted one."""

import errno
import itertools
import os
import re
import shutil
import signal
import zipfile
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import (
    EPOCHS,
    STEPS_PER_EPOCH,
    At,
    read_log,
    run_script,
    tiny_datasets,
    tiny_network,
    train_tiny,
)

from diffstride import reference
from diffstride._files import atomic_file
from diffstride.training import checkpoints, classifier, files
from diffstride.training.checkpoints import RECORD, TO_RESUME, Checkpoints, load, newest_checkpoint
from diffstride.training.run_folder import find_checkpoint
from diffstride.training.run_settings import as_python, check_settings
from diffstride.training.run_summary import SUMMARY, save_summary


class Interrupted(BaseException):
    """Like a kill, not caught by any handler of errors."""


def interrupt(*args, **kwargs):
    raise Interrupted


def count_rows(workdir):
    return len((workdir / "metrics.csv").read_text().splitlines()) - 1


def assert_same_end(summary, expected):
    assert summary["test_accuracy"] == expected["test_accuracy"]
    assert summary["strides"].keys() == expected["strides"].keys()
    for name, strides in summary["strides"].items():
        assert strides == pytest.approx(expected["strides"][name], abs=1e-6)
    for name in ("epochs", "strides_start", "multiply_adds_start", "multiply_adds_end"):
        assert summary[name] == expected[name]


def assert_same_log(workdir, expected):
    log, whole = read_log(workdir), read_log(expected)
    assert count_rows(workdir) == count_rows(expected) == len(log)
    assert log.keys() == whole.keys()
    for step, row in log.items():
        assert row == pytest.approx(whole[step], abs=1e-5)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return workdir, train_tiny(workdir)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Interrupted in the middle of the third epoch, after it has logged a row."""
    workdir = tmp_path_factory.mktemp("interrupted")

    def log_and_interrupt(trainer):
        for logger in trainer.loggers:
            logger.log_metrics({"loss": 42.0}, step=trainer.global_step)
            logger.save()
        interrupt()

    with pytest.raises(Interrupted):
        train_tiny(workdir, callbacks=[At(2 * STEPS_PER_EPOCH + 2, log_and_interrupt)])
    assert 42.0 in [row.get("loss") for row in read_log(workdir).values()]
    return workdir


@pytest.fixture
def workdir(interrupted, tmp_path):
    return shutil.copytree(interrupted, tmp_path / "copy")


def test_a_killed_run_loses_only_its_last_epoch(uninterrupted, tmp_path, capsys):
    killed = run_script(tmp_path, "--kill", STEPS_PER_EPOCH + 3)
    assert killed.returncode == -9, killed.stderr
    assert "epoch   1/3" in killed.stdout
    assert "epoch   2/3" not in killed.stdout
    summary = train_tiny(tmp_path)
    printed = capsys.readouterr().out
    assert "resuming after epoch 1 from" in printed
    assert "epoch   1/3" not in printed
    assert_same_end(summary, uninterrupted[1])
    assert_same_log(tmp_path, uninterrupted[0])


def half_a_file(original, calls, path, **options):
    calls.extend([path] * (path.name == "last.ckpt"))
    if len(calls) == 2:
        with original(path, **options) as file:
            file.write(b"half of it")
            interrupt()
    return original(path, **options)


def rename_fewer(allowed):
    def rename(original, calls, source, target):
        # The first epoch renames once; the second renames the old file, then the new one.
        calls.extend([source] * ("last.ckpt" in str(source)))
        if len(calls) > allowed:
            interrupt()
        original(source, target)

    return rename


@pytest.mark.parametrize(
    ("module", "name", "interruption"),
    [
        (checkpoints, "atomic_file", half_a_file),
        pytest.param(os, "replace", rename_fewer(1), marks=pytest.mark.slow),
        (os, "replace", rename_fewer(2)),
    ],
    ids=["writing", "before renaming", "between renaming"],
)
def test_kill_while_a_checkpoint_is_saved(
    uninterrupted, tmp_path, monkeypatch, capsys, module, name, interruption
):
    with monkeypatch.context() as patch:
        patch.setattr(module, name, partial(interruption, getattr(module, name), []))
        with pytest.raises(Interrupted):
            train_tiny(tmp_path)
    capsys.readouterr()
    assert_same_end(train_tiny(tmp_path), uninterrupted[1])
    assert "resuming after epoch 1 from" in capsys.readouterr().out
    assert_same_log(tmp_path, uninterrupted[0])


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (STEPS_PER_EPOCH + 1, "stopped; the same command resumes this run"),
        (1, "stopped before the end of the first epoch: nothing is saved, the same command starts"),
    ],
)
def test_a_signal_to_stop_prints_how_to_resume(
    uninterrupted, tmp_path, capsys, number, step, message
):
    def send(trainer):
        signal.raise_signal(number)

    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    expected = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    try:
        with pytest.raises(expected) as caught:
            train_tiny(tmp_path, callbacks=[At(step, send)])
        # Of a script that calls `train`; Python makes 130 of a KeyboardInterrupt.
        assert getattr(caught.value, "code", 130) == 128 + number
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    assert message in capsys.readouterr().out
    assert_same_end(train_tiny(tmp_path), uninterrupted[1])


def test_seconds_of_all_parts_add_up(workdir):
    last = workdir / "checkpoints" / "last.ckpt"
    before = torch.load(last)["run"]["seconds"]
    summary = train_tiny(workdir)
    total = torch.load(last)["run"]["seconds"]
    assert total > before
    assert summary["seconds"] == pytest.approx(total, abs=0.051)


def test_tensorboard_shows_each_step_once(workdir, uninterrupted):
    train_tiny(workdir)
    boards = [
        EventAccumulator(str(each / "tensorboard")).Reload() for each in (workdir, uninterrupted[0])
    ]
    assert boards[0].Tags()["scalars"] == boards[1].Tags()["scalars"]
    for tag in ("test_accuracy", "loss", "multiply_adds", "stride/stem.pooling/height"):
        points, expected = ([(e.step, e.value) for e in b.Scalars(tag)] for b in boards)
        assert [step for step, _ in points] == [step for step, _ in expected]
        values = [value for _, value in expected]
        assert [value for _, value in points] == pytest.approx(values, abs=1e-5)


def test_a_finished_run_prints_its_summary_and_does_not_train(uninterrupted, capsys):
    workdir, summary = uninterrupted
    before = (workdir / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert train_tiny(workdir) == summary
    printed = capsys.readouterr().out
    assert f"{workdir} holds this run, finished" in printed
    assert f"{summary['test_accuracy']:.2f} % after {EPOCHS} epochs" in printed
    assert (workdir / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_a_run_killed_before_its_summary_was_written_gets_one(uninterrupted, tmp_path):
    workdir = shutil.copytree(uninterrupted[0], tmp_path / "copy")
    (workdir / "summary.json").unlink()
    assert train_tiny(workdir) == uninterrupted[1]


def test_best_and_last_checkpoints_are_kept(uninterrupted):
    workdir, summary = uninterrupted
    folder = workdir / "checkpoints"
    paths = list(folder.glob("*.ckpt"))
    assert {path.name for path in paths} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    epochs = {path.stem: torch.load(path)["run"]["epochs"] for path in paths}
    accuracies = [
        row["test_accuracy"] for row in read_log(workdir).values() if "test_accuracy" in row
    ]
    assert (epochs["last"], epochs["previous"]) == (EPOCHS, EPOCHS - 1)
    assert epochs["best"] == accuracies.index(max(accuracies)) + 1
    assert summary["test_accuracy"] == pytest.approx(100 * accuracies[-1], abs=1e-3)


def test_best_checkpoint_is_kept_over_a_restart(tmp_path):
    def end_of_epoch(callback, accuracy):
        trainer = SimpleNamespace(
            callback_metrics={"test_accuracy": torch.tensor(accuracy)},
            save_checkpoint=lambda path, **_: path.write_text(str(accuracy)),
            is_global_zero=True,
        )
        callback.on_train_epoch_end(trainer, None)
        return (tmp_path / "best.ckpt").read_text()

    first, second = Checkpoints(tmp_path), Checkpoints(tmp_path)
    assert [end_of_epoch(first, accuracy) for accuracy in (0.2, 0.5, 0.3)] == ["0.2", "0.5", "0.5"]
    second.load_state_dict(first.state_dict())
    assert [end_of_epoch(second, accuracy) for accuracy in (0.4, 0.6)] == ["0.5", "0.6"]


def test_best_checkpoint_is_kept_if_a_run_is_killed_between_two_saves(uninterrupted, tmp_path):
    def rename(source, target):
        if str(target).endswith("previous.ckpt"):  # as last.ckpt of the second epoch goes there
            interrupt()
        replace(source, target)

    replace = os.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", rename)
        with pytest.raises(Interrupted):
            train_tiny(tmp_path)
    train_tiny(tmp_path)
    best, expected = (
        torch.load(folder / "checkpoints" / "best.ckpt")["run"]["epochs"]
        for folder in (tmp_path, uninterrupted[0])
    )
    assert best == expected


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: os.truncate(path, 1000), "cannot be read"),
        pytest.param(lambda path: path.write_bytes(b""), "cannot be read", marks=pytest.mark.slow),
        (lambda path: torch.save({"weights": 1}, path), "is not a checkpoint of this program"),
        pytest.param(
            lambda path: torch.save([1], path),
            "is not a checkpoint of this program",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(
    workdir, uninterrupted, capsys, damage, complaint
):
    last = workdir / "checkpoints" / "last.ckpt"
    damage(last)
    summary = train_tiny(workdir)
    printed = capsys.readouterr().out
    assert f"{last} {complaint}" in printed
    assert "resuming after epoch 1 from" in printed
    assert_same_end(summary, uninterrupted[1])
    assert_same_log(workdir, uninterrupted[0])
    assert last.with_suffix(".unusable").exists()


def test_the_error_without_usable_checkpoint_names_the_files(workdir):
    for name in ("last.ckpt", "previous.ckpt"):
        os.truncate(workdir / "checkpoints" / name, 100)
    with pytest.raises(ValueError, match=r"last\.ckpt.*previous\.ckpt.*choose another workdir"):
        train_tiny(workdir)


def test_a_checkpoint_with_any_flipped_bit_is_refused_or_unchanged(tmp_path):
    weights = torch.nn.Linear(6, 5).state_dict()
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": weights, "epoch": 3}, path)
    whole = path.read_bytes()
    # The first has once made a directory of a part, whose weights torch.load left out.
    flips = [(whole.rindex(b"last/data/1") - 8, 4), *((i, i % 8) for i in range(0, len(whole), 3))]
    refused = 0
    for position, bit in flips:
        changed = bytearray(whole)
        changed[position] ^= 1 << bit
        path.write_bytes(changed)
        found = load_or_none(path)
        refused += found is None
        if found is not None:
            assert found["epoch"] == 3
            assert all(torch.equal(found["state_dict"][name], weights[name]) for name in weights)
    assert refused > len(flips) / 3  # the rest are gaps between the parts


def load_or_none(path):
    try:
        return load(path)
    except ValueError:
        return None


def test_a_compressed_checkpoint_is_refused(tmp_path):
    content = zipfile.ZipFile(tmp_path / "last.ckpt", "w", zipfile.ZIP_DEFLATED)
    content.writestr("archive/data/0", bytes(10_000_000))
    content.close()
    with pytest.raises(ValueError, match=r"last\.ckpt cannot be read: .*larger than the file"):
        load(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        *[(lambda saved, name=name: saved.pop(name), name) for name in [*TO_RESUME][3:]],
        *[(lambda saved, name=name: saved["run"].pop(name), f"run['{name}']") for name in RECORD],
        (lambda saved: saved["optimizer_states"].clear(), "optimizer_states"),
        (lambda saved: saved["lr_schedulers"].clear(), "lr_schedulers"),
        (lambda saved: saved.update(global_step="5"), "global_step"),
    ],
)
def test_a_checkpoint_that_lacks_what_a_run_needs_is_set_aside(workdir, capsys, change, lacking):
    last = workdir / "checkpoints" / "last.ckpt"
    content = torch.load(last)
    settings = content["run"]["settings"]
    change(content)
    torch.save(content, last)
    path, record, step = find_checkpoint(last.parent, tiny_network(10, 1), settings)
    assert (path.name, record["epochs"], step) == ("previous.ckpt", 1, STEPS_PER_EPOCH)
    assert f"{last} lacks {lacking}, which a run needs to resume" in capsys.readouterr().out


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_an_error_of_reading_is_no_damage(workdir, monkeypatch, number):
    def read(path):
        raise OSError(number, os.strerror(number), str(path))

    folder = workdir / "checkpoints"
    before = {path.name for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read)
        with pytest.raises(OSError, match=rf"{os.strerror(number)}.*last\.ckpt"):
            train_tiny(workdir)
    assert {path.name for path in folder.iterdir()} == before


class Keeps(pl.Callback):
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"kept": self.value}


def test_unreadable_state_raises_at_the_first_checkpoint(tmp_path):
    epochs = []
    note = At(STEPS_PER_EPOCH + 1, epochs.append)
    message = r"holds objects that cannot be read back, fractions\.Fraction: .* state_dict of callb"
    with pytest.raises(ValueError, match=message):
        train_tiny(tmp_path, callbacks=[note, Keeps(Fraction(1, 2))])
    assert not epochs


@pytest.mark.slow
def test_a_run_with_numpy_numbers_is_resumed(tmp_path):
    one = np.float64(1.0)
    options = {
        "seed": np.arange(2)[1],
        "num_epochs": np.int64(2),
        "label_smoothing": 0.1 * one,
        "stride_learning_rate": np.float32(0.01),
        "weight_decay": 1e-4 * one,
        "stride_penalty": 0.1 * one,
        "stride_phase": (0.0 * one, 0.5 * one),
        "budget": np.float32(0.75),
        "optimizer": partial(torch.optim.SGD, lr=0.1 * one, momentum=0.9 * one),
        "schedule": partial(torch.optim.lr_scheduler.OneCycleLR, pct_start=0.3 * one),
        "callbacks": [Keeps([one])],
    }
    with pytest.raises(Interrupted):
        train_tiny(tmp_path, **options | {"callbacks": [At(STEPS_PER_EPOCH + 1, interrupt)]})
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt")["run"]["epochs"] == 1
    assert train_tiny(tmp_path, **options)["epochs"] == 2
    plain = as_python({name: value for name, value in options.items() if name != "callbacks"})
    plain["optimizer"] = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    assert train_tiny(tmp_path, **plain)["seed"] == 1  # the same settings


def test_checkpoints_of_another_network_are_refused(workdir):
    def wider(**kwargs):
        network = tiny_network(**kwargs)
        network.extra = torch.nn.Linear(2, 2)
        return network

    with pytest.raises(ValueError, match=r"last\.ckpt holds another network .*operative_config"):
        train_tiny(workdir, model=wider)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_epochs": 4}, "num_epochs (3 there, 4 asked for)"),
        ({"seed": 1}, "seed (0 there, 1 asked for)"),
        ({"batch_size": 32}, "batch_size (64 there, 32 asked for)"),
        (
            {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.8)},
            "optimizer ('momentum: 0.9' there, 'momentum: 0.8' asked for)",
        ),
        ({"schedule": None}, " there, 'constant' asked for)"),
        (
            {"schedule": partial(torch.optim.lr_scheduler.OneCycleLR, final_div_factor=3.0)},
            "scheduled ('min_lr: 4e-07' there, 'min_lr: 0.0013",
        ),
        (
            {"schedule": partial(torch.optim.lr_scheduler.OneCycleLR, base_momentum=0.8)},
            "scheduled ('base_momentum: 0.85' there, 'base_momentum: 0.8' asked for)",
        ),
        (
            {"model": partial(tiny_network, strides=(2, 2.0001))},
            "strides ('blocks.0.0.pooling: [2.0, 2.0]' there, 'blocks.0.0.pooling: [2.00009",
        ),
        ({"stride_learning_rate": 0.01}, "optimizer ('lr: 0.1' there, 'lr: 0.01' asked for)"),
        (
            {"datasets": tiny_datasets(augment_fn="flip")},
            "augment_fn (None there, 'flip ",
        ),
        ({"datasets": tiny_datasets(mixup_alpha=0.2)}, "mixup_alpha (0.0 there, 0.2 asked for)"),
        ({"datasets": tiny_datasets(test_examples=100)}, "test_images (101 there, 100 asked for)"),
        ({"stride_penalty": 0.5}, "stride_penalty (None there, 0.5 asked for)"),
        ({"budget": 0.5}, "budget (None there, "),
    ],
)
def test_workdir_of_other_settings_is_refused(uninterrupted, workdir, change, message):
    for folder in (uninterrupted[0], workdir):
        with pytest.raises(ValueError, match=f"holds a run that differs in .*{re.escape(message)}"):
            train_tiny(folder, **change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_epochs": 4}, "num_epochs (3 there, 4 asked for)"),
        ({"batch_size": 32}, "batch_size (64 there, 32 asked for)"),
        ({"stride_learning_rate": 0.01}, "optimizer ('lr: 0.1' there, 'lr: 0.01' asked for)"),
    ],
)
def test_what_a_schedule_follows_from_is_told_without_the_schedule(uninterrupted, change, told):
    expected = f"holds a run that differs in {re.escape(told)}: choose another workdir"
    with pytest.raises(ValueError, match=expected):
        train_tiny(uninterrupted[0], **change)


@pytest.mark.parametrize(
    ("there", "asked", "told"),
    [
        (
            "_last_lr: [1]\ntotal: 5",
            "_last_lr: [2]\ntotal: 6",
            "'total: 5' there, 'total: 6' asked",
        ),
        ("_last_lr: [1]\ntotal: 5", "constant", "'total: 5' there, 'constant' asked"),
        ("_last_lr: [1]\ntotal: 5", "_last_lr: [2]\ntotal: 5", "'_last_lr: [1]' there"),
    ],
)
def test_internals_of_a_schedule_are_told_last(tmp_path, there, asked, told):
    with pytest.raises(ValueError, match=re.escape(f"schedule ({told}")):
        check_settings(tmp_path, {"schedule": there}, {"schedule": asked})


def test_other_labels_are_refused(tmp_path):
    asked = {"seed": 0, "labels": "b", "mean": [0.5]}
    message = re.escape("differs in labels ('a' there, 'b' asked for): ")
    with pytest.raises(ValueError, match=message):
        check_settings(tmp_path, asked | {"labels": "a"}, asked)


def shifted(images, generator, shift=2):
    return images.roll(shift, -1)


@pytest.mark.parametrize(
    "variants",
    [
        [{"datasets": tiny_datasets(augment_fn=partial(shifted, shift=shift))} for shift in (1, 2)],
        [
            {"model": partial(tiny_network, pooling_cls=partial(reference.DiffStride, **layer))}
            for layer in ({"smoothness_factor": 4.0}, {"smoothness_factor": 3.0})
        ],
        [
            {"model": partial(tiny_network, pooling_cls=partial(reference.DiffStride, **layer))}
            for layer in ({"shared_stride": False}, {"shared_stride": True})
        ],
    ],
    ids=["augmentation", "published layer", "one stride for both axes"],
)
def test_another_argument_of_an_augmentation_or_layer_is_refused(tmp_path, variants):
    options, others = variants
    train_tiny(tmp_path, num_epochs=1, **options)
    with pytest.raises(ValueError, match=r"differs in (augment_fn|network) \("):
        train_tiny(tmp_path, num_epochs=1, **others)


def test_a_second_run_in_a_folder_is_refused(uninterrupted, tmp_path):
    def start_again(trainer):
        with pytest.raises(ValueError, match=r"another process is training in .*another workdir"):
            train_tiny(tmp_path)

    summary = train_tiny(tmp_path, callbacks=[At(STEPS_PER_EPOCH + 1, start_again)])
    assert_same_end(summary, uninterrupted[1])
    assert_same_log(tmp_path, uninterrupted[0])


@pytest.mark.parametrize("number", files.NO_LOCKS)
@pytest.mark.parametrize("wait", [True, False])
def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, number, wait):
    fail_to_lock(monkeypatch, number)
    with pytest.warns(UserWarning, match="has no locks"), files.locked(tmp_path, wait) as free:
        assert free
    assert [path.name for path in tmp_path.iterdir()] in ([".lock"], [])  # no marker beside it


def test_other_errors_of_locking_are_raised(tmp_path, monkeypatch):
    fail_to_lock(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), files.locked(tmp_path):
        pass


def fail_to_lock(monkeypatch, number):
    def flock(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)


def test_another_number_of_steps_is_refused(interrupted, workdir, monkeypatch):
    """As with another number of processes, each with batches of the same size."""
    monkeypatch.setattr(pl.Trainer, "estimated_stepping_batches", 6)
    with pytest.raises(
        ValueError, match=r"started with 15 steps, .* make it 6: .* same number of devices"
    ):
        train_tiny(workdir)


def test_processes_that_get_no_batch_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pl.Trainer, "estimated_stepping_batches", 0)
    with pytest.raises(
        ValueError, match=r"too few images for one step of 1 process: use a smaller batch_size"
    ):
        train_tiny(tmp_path)


def test_a_foreign_log_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("name,value\na,1\n")
    with pytest.raises(ValueError, match=r"metrics\.csv is not the log of a run.*move it away"):
        train_tiny(tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == "name,value\na,1\n"


def test_a_setting_left_out_is_refused(tmp_path):
    train_tiny(tmp_path, num_epochs=1, stride_penalty=0.5)
    with pytest.raises(ValueError, match=r"differs in stride_penalty .0\.5 there, None .*:"):
        train_tiny(tmp_path, num_epochs=1)


def test_foreign_summary_is_refused(tmp_path):
    (tmp_path / "summary.json").write_text('{"accuracy": 1}')
    with pytest.raises(ValueError, match=r"summary\.json is not a summary"):
        train_tiny(tmp_path)


def test_atomic_file_keeps_the_old_content_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"new" * (1 // 0))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_file(path, backup=tmp_path / "backup") as file:
        file.write(b"new")
    assert (path.read_bytes(), (tmp_path / "backup").read_bytes()) == (b"new", b"old")


def test_a_failed_replacement_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "file"
    folder.mkdir()
    with pytest.raises(OSError, match="file"), atomic_file(folder) as file:
        file.write(b"new")
    assert list(tmp_path.iterdir()) == [folder]


def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "shared").mkdir()
    target, link = tmp_path / "shared" / "file", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with atomic_file(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def full_disk(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_error_of_a_full_disk_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=f"No space left on device: {str(path)!r}") as caught:
        checkpoints.AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_the_error_of_a_full_disk_in_another_writer_names_the_run_folder(tmp_path):
    with pytest.raises(OSError, match=f"No space left on device: {str(tmp_path)!r}"):
        train_tiny(tmp_path, callbacks=[At(2, full_disk)])


def test_a_folder_of_checkpoints_that_takes_no_files_is_refused_at_the_start(tmp_path, monkeypatch):
    def create(dir):
        if dir.name == "checkpoints":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return TemporaryFile(dir=dir)

    monkeypatch.setattr("tempfile.TemporaryFile", create)
    with pytest.raises(OSError, match=r"checkpoints' \(Permission denied\): choose another folder"):
        train_tiny(tmp_path, callbacks=[At(1, interrupt)])


def test_a_checkpoint_with_other_shapes_is_refused(tmp_path):
    layer = torch.nn.Linear(2, 3)
    states = {f"network.{name}": value for name, value in layer.state_dict().items()}
    torch.save({"state_dict": states, "run": {}, "loops": {}}, tmp_path / "last.ckpt")
    assert newest_checkpoint(tmp_path, layer) is not None
    with pytest.raises(ValueError, match=r"weight is 3 x 2 there and 4 x 2 in this one"):
        newest_checkpoint(tmp_path, torch.nn.Linear(2, 4))


def with_dropout(**options):
    network = tiny_network(**options)
    network.dense = torch.nn.Sequential(torch.nn.Dropout(0.5), network.dense)
    return network


@pytest.mark.slow
def test_dropout_is_the_same_in_a_resumed_run(tmp_path):
    options = {"model": with_dropout, "num_epochs": 2}
    whole = train_tiny(tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        train_tiny(tmp_path / "run", callbacks=[At(STEPS_PER_EPOCH + 2, interrupt)], **options)
    torch.manual_seed(99)
    assert_same_end(train_tiny(tmp_path / "run", **options), whole)


def test_seconds_are_those_of_all_epochs(tmp_path, monkeypatch):
    clock = SimpleNamespace(perf_counter=partial(next, itertools.count(0, 10)))
    monkeypatch.setattr(classifier, "time", clock)
    assert train_tiny(tmp_path)["seconds"] == 10 * EPOCHS


def test_a_summary_is_complete_or_absent(workdir, monkeypatch):
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(Interrupted):
        save_summary(workdir, {"epochs": 1}, torch.nn.Conv2d(1, 1, 1), (1, 8, 8))
    assert not (workdir / SUMMARY).exists()
