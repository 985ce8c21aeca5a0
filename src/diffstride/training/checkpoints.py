"""Checkpoints of a run: save them, find the newest one, resume from it."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from diffstride.training.files import atomic_file
from diffstride.training.lightning_compat import callbacks, exceptions, pl, plugins, rank_zero_only
from diffstride.training.run_settings import as_python

CHECKPOINTS = "checkpoints"  # subfolder of the run folder
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class AtomicCheckpointIO(plugins.TorchCheckpointIO):
    """Writes checkpoints through `atomic_file` and keeps the one before the last.

    Checkpoints are read with ``weights_only=True``. The first one is read back at once, so that a
    state which cannot be read raises in the first epoch, not when the run is resumed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readable = False

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        path = Path(path)
        backup = path.with_name(PREVIOUS) if path.name == LAST else None
        with atomic_file(path, backup=backup) as file:
            torch.save(as_python(checkpoint), file)
        if not self.readable:
            load(path)
            self.readable = True


def load(path: Path) -> Any:
    """Read a checkpoint to the CPU, with ``weights_only=True``.

    Raises:
        ValueError: the file is truncated or no checkpoint, or it holds objects other than data.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types: zip, pickle, OS, runtime
        raise ValueError(f"{path} {_read_problem(path)}") from error


def _read_problem(path: Path) -> str:
    foreign: list[str] = []
    with suppress(Exception):
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if not foreign:
        return "cannot be read: it is truncated or no checkpoint"
    return (
        f"holds objects that cannot be read back, {', '.join(foreign)}: give the schedule plain "
        "numbers, and keep only numbers, strings, tensors, lists and dicts in the state_dict of "
        "callbacks"
    )


class Checkpoints(callbacks.Checkpoint):
    """Saves ``last.ckpt`` after every epoch, and ``best.ckpt`` at the best value so far."""

    def __init__(self, folder: Path, monitor: str = "test_accuracy") -> None:
        self.folder = folder
        self.monitor = monitor
        self.best = float("-inf")

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.best = state_dict["best"]

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        value = float(trainer.callback_metrics[self.monitor])
        is_best, self.best = value > self.best, max(value, self.best)
        # The best first: a run killed between the two repeats the epoch and saves it again.
        for name in (BEST, LAST) if is_best else (LAST,):
            trainer.save_checkpoint(self.folder / name, weights_only=False)

    def on_exception(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException
    ) -> None:
        if isinstance(exception, KeyboardInterrupt | exceptions.SIGTERMException):
            pl_module.print("stopped; the same command resumes this run after its last whole epoch")


def newest_checkpoint(folder: Path, network: torch.nn.Module) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in ``folder`` that can be read and belongs to ``network``.

    Args:
        folder: folder of the checkpoints; need not exist.
        network: the network to train, attribute ``network`` of the `LightningModule`.

    Returns:
        Path and content, or None if there are no checkpoints yet.

    Raises:
        ValueError: there are checkpoints, but none can be used.
    """
    problems = []
    for path in filter(Path.exists, (folder / LAST, folder / PREVIOUS)):
        try:
            checkpoint = _read(path, network)
        except ValueError as problem:
            problems.append(str(problem))
        else:
            _set_aside(path, problems)
            return path, checkpoint
    if problems:
        advice = "remove the folder to train again from the start, or choose another workdir"
        raise ValueError(f"{'; '.join(problems)}; there is no other checkpoint: {advice}")
    return None


def weights(folder: Path, network: torch.nn.Module) -> dict[str, Any]:
    """The ``state_dict`` of ``network`` in the newest checkpoint, see `newest_checkpoint`.

    Raises:
        ValueError: there is no checkpoint, or none can be used.
    """
    found = newest_checkpoint(folder, network)
    if found is None:
        raise ValueError(
            f"{folder} has no checkpoint with the weights of the network: put {LAST} back, or "
            "remove the run folder to train again from the start"
        )
    states = found[1]["state_dict"].items()
    return {name.removeprefix("network."): state for name, state in states}


def _read(path: Path, network: torch.nn.Module) -> dict[str, Any]:
    checkpoint = load(path)
    expected = {f"network.{name}": value.shape for name, value in network.state_dict().items()}
    states = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(states, dict) or "run" not in checkpoint or "loops" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of this program")
    if {name: value.shape for name, value in states.items()} != expected:
        raise ValueError(f"{path} holds another network")
    return checkpoint


@rank_zero_only
def _set_aside(path: Path, problems: list[str]) -> None:
    # Otherwise the next save would replace the good previous.ckpt by the broken last.ckpt.
    if problems:
        last = path.with_name(LAST)
        os.replace(last, last.with_suffix(".unusable"))
        print(f"{problems[0]}; moved to {last.stem}.unusable, resuming from {path}", flush=True)
