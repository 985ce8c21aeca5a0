"""The folder of a run: what an earlier start left in it, and what this one leaves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gin
import torch
from torch import nn

from diffstride.training.checkpoints import CHECKPOINTS, newest_checkpoint, weights
from diffstride.training.classifier import Classifier
from diffstride.training.files import atomic_file, check_writable, locked, writing
from diffstride.training.lightning_compat import print_once, rank_zero_only
from diffstride.training.network import count_parameters
from diffstride.training.run_settings import as_python, check_settings
from diffstride.training.run_summary import (
    format_summary,
    layer_strides,
    read_summary,
    save_summary,
)


def find_finished(
    workdir: Path, settings: dict[str, Any], network: nn.Module | None = None
) -> dict[str, Any] | None:
    """The summary of this run if ``workdir`` holds it finished, which is then printed.

    Arguments:
        workdir: the folder of the run; need not exist.
        settings: of the run, as `describe_run` gives them.
        network: what the caller wants trained: it gets the weights that the run ended with.

    Raises:
        ValueError: the run it holds has other settings, or no checkpoint that the network can have.
    """
    summary = read_summary(workdir)
    if summary is not None:
        check_settings(workdir, summary.get("settings"), settings)
        if network is not None:
            network.load_state_dict(weights(workdir / CHECKPOINTS, network))
        print_once(f"{workdir} holds this run, finished:\n{format_summary(summary)}", flush=True)
    return summary


def find_checkpoint(
    folder: Path, network: nn.Module, settings: dict[str, Any]
) -> tuple[Path | None, dict[str, Any], int]:
    """What a run of these settings continues from.

    Arguments:
        folder: of the checkpoints, in that of the run; need not exist.
        network: what is to be trained.
        settings: of the run, as `describe_run` gives them.

    Returns:
        The checkpoint, the record the run has kept of itself, and the steps it has taken; where
        there is none yet, None, a record of the settings alone, and 0.

    Raises:
        ValueError: the checkpoints are of a run with other settings, or none is of use.
    """
    found = newest_checkpoint(folder, network)
    if found is None:
        return None, {"settings": settings}, 0
    path, checkpoint = found
    record = checkpoint["run"]
    check_settings(folder.parent, record["settings"], settings)
    print_once(f"continuing after epoch {record['epochs']} from {path}")
    return path, record, checkpoint["global_step"]


@contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Have the folder, which is made, to this run alone.

    Raises:
        OSError: it takes no files; names the folder.
        ValueError: another process is training in it.
    """
    if getattr(rank_zero_only, "rank", 0):  # the first process of the run holds it for all
        yield
        return
    with writing(workdir, "workdir"):
        (workdir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    check_writable(workdir, "workdir")
    with locked(workdir / CHECKPOINTS, wait=False) as free:
        if not free:
            raise ValueError(
                f"another process is training in {workdir}: wait until it ends, or choose another "
                "workdir"
            )
        yield


@rank_zero_only
def save_config(workdir: Path) -> None:
    """Save the Gin configuration, if there is one, in the folder of the run.

    Raises:
        OSError: it takes no files; names the folder.
    """
    if config := gin.operative_config_str():
        with writing(workdir, "workdir"), atomic_file(workdir / "operative_config.gin") as file:
            file.write(config.encode())


def finish(workdir: Path, module: Classifier, facts: dict[str, Any]) -> dict[str, Any]:
    """Save and print the summary of a run that has come to its end, and return it.

    Arguments:
        workdir: the folder of the run.
        module: what was trained, with its record.
        facts: what the summary says besides.
    """
    record, settings = module.record, module.record["settings"]
    measured = ("test_accuracy", "multiply_adds_start", "multiply_adds_end", "epochs")
    summary = {
        **{name: record[name] for name in measured},
        "seconds": round(record["seconds"], 1),
        "strides": layer_strides(module.network),
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
