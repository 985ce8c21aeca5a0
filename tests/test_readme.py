"""Test README: its code runs, its links resolve, its numbers are those of the committed results."""

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

from benchmarks.common import read_rows, select

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SMALL = ROOT / "results" / "small"
NAMES = {
    "diffstride": "`DiffStride`",
    "spectral": "`FixedSpectralPooling`",
    "strided": "`None` (strided convolution)",
}


def _row(name: str) -> str:
    run = json.loads((SMALL / name / "summary.json").read_text())
    start, end = (run[f"multiply_adds_{when}"] / 1e6 for when in ("start", "end"))
    cost = f"{start:.1f} M" if start == end else f"{start:.1f} M to {end:.1f} M"
    strides = ", ".join("x".join(f"{s:.2f}" for s in pair) for pair in run["strides"].values())
    minutes, threads = run["seconds"] / 60, "thread" if run["threads"] == 1 else "threads"
    return (
        f"| {NAMES[name]} | {run['test_accuracy']:.2f} % | {cost} | {strides or '2, 2, 2'} "
        f"| {run['epochs']} | {minutes:.1f} min, {run['threads']} {threads}, {run['precision']} |"
    )


@pytest.mark.parametrize("name", NAMES)
def test_table_of_small_runs_matches_the_committed_summaries(name: str) -> None:
    if not (SMALL / name / "summary.json").exists():
        assert f"| {NAMES[name]} |" not in README, "a row without a run"
        return
    assert _row(name) in README


def test_python_blocks_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    program = "\n".join(["import diffstride, torchvision", "from torch import nn", *blocks])
    program += "\nassert min(model(images[:1]).shape) > 0 and plain(images).shape == (2, 1000)"
    program += "\nassert y.shape == (8, 64, 16, 16) and pool.strides.tolist() != [2.0, 2.0]"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_make_targets_and_configurations_exist() -> None:
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    for config in set(re.findall(r"[\w]+\.gin\b", README)):
        assert any(ROOT.glob(f"**/configs/{config}")), config


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_gains_of_conversion_are_those_of_the_runs(dataset: str) -> None:
    rows = select(read_rows(ROOT / "results" / "scratch.jsonl"), dataset=dataset)
    rows = select(rows, network="torchvision resnet18")
    opening = README[: README.index("## First use")]
    for method in ("strided", "fixed", "learned"):
        found = select(rows, method=method)
        assert len(found) == 3
        assert f"{mean(row['test_accuracy'] for row in found):.1f} %" in opening
        assert f"{mean(row['multiply_adds'] for row in found) / 1e6:.1f} M" in opening


@pytest.mark.parametrize("link", re.findall(r"\]\((docs/[^)]+)\)", README))
def test_links_resolve(link: str) -> None:
    page, _, anchor = link.partition("#")
    assert (ROOT / page).exists()
    text = (ROOT / page).read_text() if anchor else ""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert not anchor or anchor in anchors
