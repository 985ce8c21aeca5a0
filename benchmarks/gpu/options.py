"""The options of all parts, and the contract that their files record."""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS
from benchmarks.gpu.device import facts
from benchmarks.gpu.rows import Rows
from benchmarks.machine import environment
from benchmarks.timing import Effort

FOLDER = RESULTS / "gpu"


def add_options(parser: argparse.ArgumentParser, part: str) -> None:
    """Add the options that all parts share."""
    add = parser.add_argument
    parser.set_defaults(part=part)
    add("--device", type=torch.device, default="cuda", help="cuda (default), cuda:1 or cpu")
    add("--tiny", action="store_true", help="tiny sizes, to test the command; no result")
    add("--minutes", type=float, default=9.0, help="time limit of this call")
    add("--seed", type=int, default=0)
    written = f"file to write (default: benchmarks/results/gpu/{part}.json, with --tiny none)"
    add("--out", type=Path, help=written)


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse a device that is not there and a time limit that is not positive."""
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device: add --device cpu --tiny to test the command")
    if options.device.type not in ("cpu", "cuda"):
        parser.error(f"--device must be cpu or cuda, but got {options.device}")
    if not options.minutes > 0:
        parser.error(f"--minutes must be positive, but got {options.minutes}")
    if options.device.type == "cpu" and not options.tiny:
        parser.error("--device cpu needs --tiny: the sizes are those of a GPU")


def contract(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers of a part depend on."""
    return {
        "command": options.command,
        "tiny": options.tiny,
        "seed": options.seed,
        **facts(options.device),
        **environment(),
    }


def open_rows(options: argparse.Namespace, folder: Path) -> Rows:
    """The file of a part; with --tiny and no --out a file in ``folder``, which may be temporary."""
    path = options.out or folder / f"{options.part}.json"
    return Rows(path, options.part, contract(options), 60 * options.minutes)


def effort(options: argparse.Namespace) -> Effort:
    """How long to measure a row."""
    if options.tiny:
        return Effort(2, sample_seconds=0.0, budget=1.0, seed=options.seed)
    return Effort(9, sample_seconds=0.02, budget=5.0, seed=options.seed)
