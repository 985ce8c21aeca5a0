"""Checkpoints that a killed run continues from."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from diffstride.training.files import atomic_file
from diffstride.training.lightning_compat import callbacks, exceptions, pl, plugins, rank_zero_only
from diffstride.training.run_settings import as_python

CHECKPOINTS = "checkpoints"  # their folder in that of the run
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class AtomicCheckpointIO(plugins.TorchCheckpointIO):
    """Writes checkpoints through `atomic_file` and keeps the last but one.

    They are read as data alone, never as code. So the first one is read at once: what a callback
    or a schedule has put into it that is not data is told in the first epoch, not where the run is
    to go on.
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
    """What a checkpoint holds, on the CPU.

    Raises:
        ValueError: it is truncated or no checkpoint, or it holds something else than data.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load promises no type: zip, pickle, OS and runtime errors
        raise ValueError(f"{path} {_trouble(path)}") from error


def _trouble(path: Path) -> str:
    foreign: list[str] = []
    with suppress(Exception):
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if not foreign:
        return "cannot be read, truncated or no checkpoint"
    return (
        f"holds what cannot be read back, {', '.join(foreign)}: give the schedule plain numbers, "
        "and have each callback's state_dict hold numbers, strings, tensors, lists and dicts alone"
    )


class Checkpoints(callbacks.Checkpoint):
    """Saves ``last.ckpt`` after every epoch, and ``best.ckpt`` where that one is the best."""

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
        # The best first: a run killed in between goes on from the epoch before, and finds it again.
        for name in (BEST, LAST) if is_best else (LAST,):
            trainer.save_checkpoint(self.folder / name, weights_only=False)

    def on_exception(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException
    ) -> None:
        if isinstance(exception, KeyboardInterrupt | exceptions.SIGTERMException):
            pl_module.print("stopped; started again, this run continues after its last whole epoch")


def newest_checkpoint(folder: Path, network: torch.nn.Module) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in ``folder`` that can be read and belongs to ``network``.

    Arguments:
        folder: where `Checkpoints` saved them; need not exist.
        network: what is to be trained, held by a `LightningModule` as ``network``.

    Returns:
        Path and content, or None where there are no checkpoints yet.

    Raises:
        ValueError: there are checkpoints, and none is of use.
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
        advice = "remove the folder to start anew, or choose another workdir"
        raise ValueError(f"{'; '.join(problems)}; no older checkpoint is of use: {advice}")
    return None


def weights(folder: Path, network: torch.nn.Module) -> dict[str, Any]:
    """The state of ``network`` in the newest checkpoint, see `newest_checkpoint`.

    Raises:
        ValueError: there is none, or none is of use.
    """
    found = newest_checkpoint(folder, network)
    if found is None:
        raise ValueError(
            f"{folder} has no checkpoint to give the network its weights: put {LAST} back, or "
            "remove the folder of the run to train anew"
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
    # Left in place, a broken last.ckpt would replace the good one before it at the next save.
    if problems:
        last = path.with_name(LAST)
        os.replace(last, last.with_suffix(".unusable"))
        print(f"{problems[0]}; moved to {last.stem}.unusable, continuing from {path}", flush=True)
