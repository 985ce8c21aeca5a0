"""The run folder: find a finished run or a checkpoint, lock the folder, save the summary."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import gin
import torch
from torch import nn

from diffstride._files import atomic_file
from diffstride.training.checkpoints import CHECKPOINTS, TO_RESUME, newest_checkpoint, weights
from diffstride.training.classifier import Classifier
from diffstride.training.files import (
    LOCK,
    check_writable,
    explain_write_errors,
    locked,
    removed_if_unused,
)
from diffstride.training.lightning_compat import print_once, rank_zero_only
from diffstride.training.network import count_parameters
from diffstride.training.network_cost import measure_cost
from diffstride.training.run_settings import as_python, check_settings
from diffstride.training.run_summary import (
    format_summary,
    layer_strides,
    read_summary,
    save_summary,
)

CONFIG = "operative_config.gin"

by_gin = ContextVar("by_gin", default=False)
"""Whether Gin calls the training. If not, what Gin has bound is that of another one."""


def find_finished(
    workdir: Path, settings: dict[str, Any], network: nn.Module | None = None
) -> dict[str, Any] | None:
    """Print and return the summary of this run if ``workdir`` holds it finished; else None.

    Args:
        workdir: the run folder; need not exist.
        settings: settings of the run, from `describe_run`.
        network: gets the weights of the last checkpoint; None to leave them out.

    Raises:
        ValueError: the folder holds a run with other settings, or no checkpoint that fits.
    """
    summary = read_summary(workdir)
    if summary is not None:
        check_settings(workdir, summary.get("settings"), settings)
        if network is not None:
            state = weights(workdir / CHECKPOINTS, network, summary["epochs"])
            network.load_state_dict(state)
        print_once(f"{workdir} holds this run, finished:\n{format_summary(summary)}", flush=True)
    return summary


def find_checkpoint(
    folder: Path, network: nn.Module, settings: dict[str, Any]
) -> tuple[Path | None, dict[str, Any], int]:
    """Find the checkpoint that a run resumes from.

    Args:
        folder: folder of the checkpoints; need not exist.
        network: the network to train.
        settings: settings of the run, from `describe_run`.

    Returns:
        Path of the checkpoint, record of the run and number of steps taken. Without a checkpoint:
        None, a record with the settings only, and 0.

    Raises:
        OSError: a checkpoint cannot be opened or read.
        ValueError: the checkpoints belong to a run with other settings, or none can be used.
    """
    found = newest_checkpoint(folder, network, TO_RESUME)
    if found is None:
        return None, {"settings": settings}, 0
    path, checkpoint = found
    record = checkpoint["run"]
    check_settings(folder.parent, record["settings"], settings)
    print_once(f"resuming after epoch {record['epochs']} from {path}")
    return path, record, checkpoint["global_step"]


@contextmanager
def hold_folder(workdir: Path) -> Iterator[None]:
    """Create the run folder and lock it for this run; a run that fails to start leaves none.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: another process is training in it.
    """
    if getattr(rank_zero_only, "rank", 0):  # the main process holds the lock for all
        yield
        return
    folder = workdir / CHECKPOINTS
    with removed_if_unused(workdir, folder, (f"{CHECKPOINTS}/{LOCK}", CHECKPOINTS, CONFIG)):
        for each in (workdir, folder):
            check_writable(each, "workdir")
        with locked(folder, wait=False) as free:
            if not free:
                raise ValueError(
                    f"another process is training in {workdir}: wait until it ends, or choose "
                    "another workdir"
                )
            yield


@rank_zero_only
def save_config(workdir: Path) -> None:
    """Save the operative Gin configuration in the run folder of a training that Gin calls.

    Raises:
        OSError: the folder cannot be written to.
    """
    if by_gin.get():
        path, config = workdir / CONFIG, gin.operative_config_str()
        with explain_write_errors(workdir, "workdir"), atomic_file(path) as file:
            file.write(config.encode())


def finish(workdir: Path, module: Classifier, facts: dict[str, Any]) -> dict[str, Any]:
    """Save, print and return the summary of a finished run.

    Args:
        workdir: the run folder.
        module: the trained module with its record.
        facts: further entries of the summary.
    """
    record, settings = module.record, module.record["settings"]
    cost = measure_cost(module.network, module.image_shape)
    measured = ("test_accuracy", "multiply_adds_start", "multiply_adds_end", "epochs")
    summary = {
        **{name: record[name] for name in measured},
        "seconds": round(record["seconds"], 1),
        "strides": layer_strides(module.network),
        "input_sizes": {name: [*size] for name, size in cost.input_sizes.items()},
        "strides_start": record["strides_start"],
        "dataset": settings["dataset"],
        "seed": settings["seed"],
        "parameters": count_parameters(module.network),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **facts,
        "settings": settings,
    }
    summary = as_python(summary)
    if module.trainer.is_global_zero:
        save_summary(workdir, summary, module.network, module.image_shape)
    print_once(format_summary(summary), flush=True)
    return summary
