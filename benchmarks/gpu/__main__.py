"""Correctness, time, memory and training on a GPU, in parts of minutes that resume."""

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import Report
from benchmarks.gpu import convert, correctness, layer, network, train
from benchmarks.gpu.options import FOLDER, add_options, check_options, open_rows

PARTS = {
    "correctness": correctness,
    "layer": layer,
    "network": network,
    "convert": convert,
    "train": train,
}


def parser_of_parts() -> argparse.ArgumentParser:
    """The parser of the command: one subcommand for each part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    commands = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, module in PARTS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        add_options(command, name)
        if hasattr(module, "add_options"):
            module.add_options(command)
    return parser


def without_paths(arguments: Sequence[str]) -> list[str]:
    """The arguments as a file records them, without folders of one machine.

    >>> without_paths(["train", "--data", "cifar", "--rows", "published", "--out=x.json"])
    ['train', '--rows', 'published']
    """
    words = re.sub(r"--(?:out|data)(?:=| )\S+", "", " ".join(arguments))
    return words.split()


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run one part, and return the content of its file."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = parser_of_parts()
    options = parser.parse_args(arguments)
    check_options(parser, options)
    options.command = " ".join([parser.prog, *without_paths(arguments)])
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        rows = open_rows(options, Path(temporary) if options.tiny else FOLDER)
        PARTS[options.part].run(options, rows)
        print(rows.message())
        return rows.report


if __name__ == "__main__":
    main()
