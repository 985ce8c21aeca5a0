"""Several processes train like one: DDP and FSDP by gloo on one host, and the file of that."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import processes, render
from benchmarks.common import RESULTS, select

# The processes add the same numbers in another order, and twenty steps of resnet18 amplify that.
TOLERANCE = {"small": 1e-5, "resnet18, width 8": 1e-3}
BYTES_OF_A_LAYER = 2 * 4  # two strides in float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    processes.main(["--quick", "--threads", "1", "--out", str(folder / "processes.json")])
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "processes.json").read_text())["rows"]


def check_rows(rows: list[dict[str, Any]]) -> None:
    """All processes have the same strides, and the losses and strides of a single one."""
    assert rows
    for row in rows:
        tolerance = TOLERANCE[row["network"]]
        assert row["stride_spread"] == 0
        assert row["stride_difference"] < tolerance
        assert row["loss_difference"] < tolerance
        assert row["stride_movement"] > 1e-2
        exchanged = BYTES_OF_A_LAYER * row["layers"] * (row["processes"] > 1)
        assert row["bytes_of_strides"] == exchanged


def test_two_processes_learn_the_strides_and_losses_of_one(rows: list[dict[str, Any]]) -> None:
    found = select(rows, strategy="DDP")
    assert {row["processes"] for row in found} == {1, 2}
    assert {row["after_step"] for row in found} == {"project", "budget"}
    check_rows(found)


def test_fsdp_without_the_strides_trains_as_one_process(rows: list[dict[str, Any]]) -> None:
    if reason := processes.fsdp_missing():
        pytest.skip(reason)
    found = select(rows, strategy="FSDP")
    assert {row["processes"] for row in found} == {1, 2}
    check_rows(found)


def test_host_reads_do_not_grow_with_the_processes(rows: list[dict[str, Any]]) -> None:
    for row in select(rows, processes=2):
        alone = select(rows, processes=1, **{label: row[label] for label in processes.LABELS})
        assert row["host_reads"] == alone[0]["host_reads"]
    for row in select(rows, after_step="project"):
        assert row["host_reads"] == row["layers"]
    for row in select(rows, after_step="budget"):
        assert row["host_reads"] == 1  # of all layers at once


def test_the_file_is_shown_on_the_page(folder: Path) -> None:
    shown = render.page(render.read_reports(folder))
    assert "| small | budget | DDP | 2 |" in shown
    assert "A trial run at tiny sizes" in shown


def test_a_difference_is_found() -> None:
    alone = {"losses": [1.0, 2.0], "strides": [[2.0], [2.5]], "layers": 1, "host_reads": 1}
    alone |= {"bytes_of_strides": 4, "bytes_of_gradients": 0}
    other = alone | {"strides": [[2.0], [2.25]], "losses": [1.0, 2.125]}
    found = processes.compare([other, alone], alone)
    assert found["stride_difference"] == found["stride_spread"] == 0.25
    assert found["loss_difference"] == 0.125
    assert found["bytes_of_gradients"] is None


@pytest.mark.slow
def test_four_processes_learn_the_strides_and_losses_of_one() -> None:
    missing = processes.fsdp_missing()
    cases = [case for case in processes.CASES if case.strategy != "FSDP" or missing is None]
    check_rows(processes.measure([4], cases, steps=20))


def test_the_committed_file_shows_one_two_and_four_processes() -> None:
    report = json.loads((RESULTS / "processes.json").read_text())
    for case in processes.CASES:
        found = select(report["rows"], **case._asdict())
        assert [row["processes"] for row in found] == [1, 2, 4]
    check_rows(report["rows"])
