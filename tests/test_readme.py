"""Test README: its links resolve, and its numbers are those of the committed results."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import scratch
from benchmarks.gain_table import gain_table
from experiments.markdown import with_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
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
    return (
        f"| {NAMES[name]} | {run['test_accuracy']:.2f} % | {cost} | {strides or '2, 2, 2'} "
        f"| {run['epochs']} | {run['precision']} |"
    )


@pytest.mark.parametrize("name", NAMES)
def test_table_of_small_runs_matches_the_committed_summaries(name: str) -> None:
    assert _row(name) in RESULTS


def test_make_targets_and_configurations_exist() -> None:
    targets = re.findall(r"`make (\w+)`", README)
    makefile = (ROOT / "Makefile").read_text()
    assert len(targets) > 3
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    for config in set(re.findall(r"[\w]+\.gin\b", README)):
        assert any(ROOT.glob(f"**/configs/{config}")), config


def test_table_of_the_gain_is_up_to_date() -> None:
    text = gain_table(scratch.read_rows(scratch.RESULT), scratch.step_times())
    assert with_table(README, "gain", text) == README, "run: python -m benchmarks.scratch --table"


def test_gain_table_refuses_methods_of_different_seeds() -> None:
    rows = scratch.read_rows(scratch.RESULT)
    left_out = next(row for row in rows if row["method"] == "learned" and row["seed"] == 2)
    with pytest.raises(ValueError, match=r"methods have \[2, 3\] seeds"):
        gain_table([row for row in rows if row is not left_out], scratch.step_times())


def test_tables_are_short_and_the_first_screen_has_none_of_many_rows() -> None:
    tables = re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE)
    assert max(len(table.splitlines()) - 2 for table in tables) <= 6
    assert len(README.splitlines()) <= 230


@pytest.mark.parametrize("link", re.findall(r"\]\((docs/[^)]+)\)", README))
def test_links_resolve(link: str) -> None:
    page, _, anchor = link.partition("#")
    assert (ROOT / page).exists()
    text = (ROOT / page).read_text() if anchor else ""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert not anchor or anchor in anchors
