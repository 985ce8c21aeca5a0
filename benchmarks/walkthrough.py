"""Run ``examples/convert_torchvision.py`` on CIFAR-10, for ``docs/walkthrough.md``.

Writes its output and its costs to ``results/walkthrough.json``, its pictures to ``docs/images``,
and the section of the page that shows them.
"""

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest import mock

from benchmarks.common import Report, write_json, write_table
from benchmarks.machine import ROOT, environment
from diffstride import CostBudget
from diffstride.examples import convert_torchvision

RESULT = ROOT / "results" / "walkthrough.json"
PAGE = ROOT / "docs" / "walkthrough.md"
PICTURES = {"strides.png": "The strides over the steps", "windows.png": "The windows at the end"}
PREFIX = "walkthrough_"  # beside the pictures of other pages
ARGUMENTS = ["cifar10", "resnet18", "2"]


def shown(report: Report) -> str:
    """The section of the page: the command, its output and its pictures."""
    words = " ".join(report["arguments"])
    command = f"$ python3 -m diffstride.examples.convert_torchvision {words}"
    spent = report["spent"]
    least, most = (f"{100 * spent[name]:.2f} %" for name in ("least", "most"))
    kept = f"Over its {spent['steps']:,} steps the network cost {least} to {most} of its budget."
    pictures = [f"![{title}](images/{PREFIX}{name})" for name, title in PICTURES.items()]
    printed = f"```text\n{command}\n{report['printed'].rstrip()}\n```"
    return "\n\n".join([printed, kept, *pictures])


class RecordingBudget(CostBudget):
    """Records the cost of the network relative to the budget, after each step."""

    shares: list[float]

    def project_(self) -> None:
        super().project_()
        self.shares.append(self.cost.value() / self.multiply_adds)


@contextmanager
def working_folder(path: str) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def main(arguments: Sequence[str] | None = None) -> Report:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.walkthrough", description=__doc__)
    parser.add_argument("arguments", nargs="*", default=ARGUMENTS, help="arguments of the example")
    options = parser.parse_args(arguments)
    printed, pictures = StringIO(), ROOT / "docs" / "images"
    RecordingBudget.shares = []
    with tempfile.TemporaryDirectory() as folder:
        with working_folder(folder), redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecations inside the exporter
            with mock.patch.object(convert_torchvision, "CostBudget", RecordingBudget):
                convert_torchvision.main(*options.arguments)
        pictures.mkdir(exist_ok=True)
        for name in PICTURES:
            (pictures / f"{PREFIX}{name}").write_bytes((Path(folder) / name).read_bytes())
    report = {
        "benchmark": "walkthrough",
        "contract": environment(),
        "arguments": options.arguments,
        "printed": printed.getvalue(),
        "spent": {
            "steps": len(RecordingBudget.shares) - 1,  # the first is the initial projection
            "least": min(RecordingBudget.shares),
            "most": max(RecordingBudget.shares),
        },
    }
    write_json(RESULT, report)
    write_table(PAGE, "walkthrough", shown(report))
    print(report["printed"], file=sys.stderr)
    return report


if __name__ == "__main__":
    main()
