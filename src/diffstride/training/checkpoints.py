"""Checkpoints of a run: save them, find the newest one, resume from it."""

import io
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from diffstride._files import atomic_file
from diffstride.training.lightning_compat import callbacks, exceptions, pl, plugins, rank_zero_only
from diffstride.training.run_settings import as_python

CHECKPOINTS = "checkpoints"  # subfolder of the run folder
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"

Content = Mapping[str, type | tuple[type, ...]]
WEIGHTS: Content = {"state_dict": dict, "run": dict, "loops": dict}
"""Entries of a checkpoint with the weights of a network, and their types."""
TO_RESUME: Content = {
    **WEIGHTS,
    "optimizer_states": list,
    "lr_schedulers": list,
    "callbacks": dict,
    "epoch": int,
    "global_step": int,
}
"""Entries of a checkpoint that a run can resume from."""
RECORD: Content = {
    "settings": dict,
    "epochs": int,
    "steps": int,
    "seconds": (int, float),
    "test_accuracy": (int, float),
    "multiply_adds_start": (int, float),
    "multiply_adds_end": (int, float),
    "strides_start": dict,
}
"""Entries of ``run``, the record of a run that has finished an epoch."""


class AtomicCheckpointIO(plugins.TorchCheckpointIO):
    """Writes checkpoints through `atomic_file` and keeps the one before the last.

    Checkpoints are read by `load`. The first one is read back at once, so that a state which cannot
    be read raises in the first epoch, not when the run is resumed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readable = False

    def load_checkpoint(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        return load(Path(path))

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        path = Path(path)
        backup = path.with_name(PREVIOUS) if path.name == LAST else None
        # Into memory first: on a full disk torch.save raises an error that names no file.
        content = io.BytesIO()
        torch.save(as_python(checkpoint), content)
        with atomic_file(path, backup=backup) as file:
            file.write(content.getbuffer())
        if not self.readable:
            load(path)
            self.readable = True


def load(path: Path) -> Any:
    """Read a checkpoint to the CPU, after a test of its checksums, with ``weights_only=True``.

    Raises:
        OSError: the file cannot be opened or read, which says nothing about its content.
        ValueError: the file is truncated, changed or no checkpoint, or it holds objects other than
            data.
    """
    content = path.read_bytes()
    try:
        verified = _verified(content)
    except Exception as error:  # zipfile raises many types: zip, zlib, struct, OS, …
        reason = "truncated, changed or no checkpoint"
        raise ValueError(f"{path} cannot be read: it is {reason} ({error})") from error
    try:
        return torch.load(verified, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types: pickle, runtime, key, …
        raise ValueError(f"{path} {_read_problem(content)}") from error


def _verified(content: bytes) -> io.BytesIO:
    """A copy of a file of `torch.save`, part by part, with a test of the CRC-32 of each.

    `torch.load` does not test them. It also reads nothing where a flipped bit makes a directory of
    a part, which the copy cannot hold.

    Raises:
        Exception: the content is no zip file, or a part has another checksum.
    """
    verified = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as found, zipfile.ZipFile(verified, "w") as copy:
        # They are stored as they are: a compressed one could fill the memory.
        if sum(part.file_size for part in found.infolist()) > len(content):
            raise ValueError("its parts are larger than the file")
        for part in found.infolist():
            copy.writestr(part.filename, found.read(part))
    verified.seek(0)
    return verified


def _read_problem(content: bytes) -> str:
    foreign: list[str] = []
    with suppress(Exception):
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    if not foreign:
        return "cannot be read: it is no checkpoint"
    return (
        f"holds objects that cannot be read back, {', '.join(foreign)}: give the schedule plain "
        "numbers, and keep only numbers, strings, tensors, lists and dicts in the state_dict of "
        "callbacks"
    )


class Checkpoints(callbacks.Checkpoint):
    """Saves ``last.ckpt`` after every epoch, and ``best.ckpt`` at the best test accuracy so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best = float("-inf")

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.best = state_dict["best"]

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        value = float(trainer.callback_metrics["test_accuracy"])
        is_best, self.best = value > self.best, max(value, self.best)
        # The best first: a run killed between the two repeats the epoch and saves it again.
        for name in (BEST, LAST) if is_best else (LAST,):
            trainer.save_checkpoint(self.folder / name, weights_only=False)

    def on_exception(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException
    ) -> None:
        if isinstance(exception, KeyboardInterrupt | exceptions.SIGTERMException):
            pl_module.print(stopped(self.folder))


def stopped(folder: Path) -> str:
    """What to tell when a run is stopped: how it goes on.

    Args:
        folder: folder of its checkpoints.

    >>> stopped(Path("runs/none"))
    'stopped before the end of the first epoch: nothing is saved, the same command starts anew'
    """
    if any((folder / name).exists() for name in (LAST, PREVIOUS)):
        return "stopped; the same command resumes this run after its last whole epoch"
    return (
        "stopped before the end of the first epoch: nothing is saved, the same command starts anew"
    )


TO_LOAD = (
    "pass the network of that training, as its operative_config.gin or your program builds it, or "
    "train again into another workdir"
)
TO_RESUME_AGAIN = (
    "resume with the settings of its operative_config.gin, choose another workdir, or remove the "
    "folder to train again from the start"
)


def newest_checkpoint(
    folder: Path, network: torch.nn.Module, content: Content = WEIGHTS
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in ``folder`` that is whole and belongs to ``network``.

    If ``last.ckpt`` is damaged and ``previous.ckpt`` is not, the second counts. To resume, the
    first is moved aside.

    Args:
        folder: folder of the checkpoints; need not exist.
        network: the network to train, attribute ``network`` of the `LightningModule`.
        content: entries that the checkpoint needs: `WEIGHTS` or `TO_RESUME`.

    Returns:
        Path and content, or None if there are no checkpoints yet.

    Raises:
        OSError: a checkpoint cannot be opened or read. No file is moved then.
        ValueError: there are checkpoints, but none can be used.
    """
    problems = []
    for path in (folder / LAST, folder / PREVIOUS):
        try:
            checkpoint = _read(path, network, content)
        except FileNotFoundError:
            continue
        except ValueError as problem:
            problems.append(str(problem))
        else:
            if content is TO_RESUME:  # only reading moves nothing
                _set_aside(path, problems)
            return path, checkpoint
    if problems:
        advice = TO_LOAD if content is WEIGHTS else TO_RESUME_AGAIN
        raise ValueError(f"{'; '.join(problems)}; there is no other checkpoint: {advice}")
    return None


def weights(folder: Path, network: torch.nn.Module, epochs: int) -> dict[str, Any]:
    """The ``state_dict`` of ``network`` after its last epoch, see `newest_checkpoint`.

    Raises:
        ValueError: there is no checkpoint after so many ``epochs``, or none can be used.
    """
    found = newest_checkpoint(folder, network)
    if found is None:
        raise ValueError(
            f"{folder} has no checkpoint with the weights of the network: put {LAST} back, or "
            "remove the run folder to train again from the start"
        )
    path, checkpoint = found
    done = checkpoint.get("run", {}).get("epochs", epochs)
    if done != epochs:
        raise ValueError(
            f"{path} has the weights after epoch {done} of {epochs}: put {LAST} back, or remove "
            "the run folder to train again from the start"
        )
    states = checkpoint["state_dict"].items()
    return {name.removeprefix("network."): state for name, state in states}


def _read(path: Path, network: torch.nn.Module, content: Content) -> dict[str, Any]:
    checkpoint = load(path)
    if not isinstance(checkpoint, dict) or _missing(checkpoint, WEIGHTS):
        raise ValueError(f"{path} is not a checkpoint of this program")
    expected = {f"network.{name}": value.shape for name, value in network.state_dict().items()}
    found = {name: getattr(each, "shape", None) for name, each in checkpoint["state_dict"].items()}
    if found != expected:
        raise ValueError(f"{path} holds another network ({_difference(found, expected)})")
    if content is TO_RESUME and (missing := _missing_to_resume(checkpoint)):
        raise ValueError(f"{path} lacks {', '.join(missing)}, which a run needs to resume")
    return checkpoint


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The first tensor of two networks that differs, and how."""
    names = dict.fromkeys([*expected, *found])
    name = next(each for each in names if found.get(each) != expected.get(each))
    shapes = (each.get(name) for each in (found, expected))
    there, here = ("missing" if x is None else " x ".join(map(str, x)) or "1" for x in shapes)
    return f"{name.removeprefix('network.')} is {there} there and {here} in this one"


def _missing(found: Mapping[str, Any], content: Content) -> list[str]:
    """The entries that are missing or of another type."""
    return [name for name, kind in content.items() if not isinstance(found.get(name), kind)]


def _missing_to_resume(checkpoint: Mapping[str, Any]) -> list[str]:
    missing = _missing(checkpoint, TO_RESUME)
    missing += [f"run[{name!r}]" for name in _missing(checkpoint["run"], RECORD)]
    if not missing:
        # Lightning would skip the states that are missing in these lists.
        scheduled = checkpoint["run"]["settings"].get("schedule") != "constant"
        counts = {"optimizer_states": 1, "lr_schedulers": int(scheduled)}
        missing += [name for name, count in counts.items() if len(checkpoint[name]) != count]
    return missing


@rank_zero_only
def _set_aside(path: Path, problems: list[str]) -> None:
    # Otherwise the next save would replace the good previous.ckpt by the broken last.ckpt.
    if problems:
        last = path.with_name(LAST)
        os.replace(last, last.with_suffix(".unusable"))
        print(f"{problems[0]}; moved to {last.stem}.unusable, resuming from {path}", flush=True)
