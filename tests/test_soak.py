"""The soak: that it runs and finds faults, and its file and page."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch

from benchmarks import soak
from benchmarks.common import RESULTS
from experiments.markdown import with_table

PARTS = ("trainings", "grids", "full_disk", "flips", "images")


def check_figures(report: dict) -> None:
    """No part has found a fault."""
    for name in ("trainings", "grids", "full_disk"):
        part = report[name]
        assert part["finished"] > 0
        assert part["different"] == part["lost"] == 0
    assert report["trainings"]["wrong_exit_codes"] == report["grids"]["wrong_exit_codes"] == 0
    assert report["full_disk"]["untold"] == 0
    assert report["flips"]["wrong"] == 0 < report["flips"]["refused"]
    assert report["images"]["escaped"] == 0 < report["images"]["decoded"]


def test_equal_contents_are_the_same_and_others_are_not() -> None:
    one = {"a": [torch.ones(2), 1], "b": "x"}
    assert soak.same(one, {"a": [torch.ones(2), 1], "b": "x"})
    for other in ({"a": [torch.ones(2), 2], "b": "x"}, {"a": [torch.zeros(2), 1], "b": "x"}):
        assert not soak.same(one, other)
    assert not soak.same(torch.ones(1), torch.ones(1).double())
    assert not soak.same([1], [1, 2])


@pytest.mark.slow
def test_a_work_that_differs_after_a_signal_is_found(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        resumed = folder.exists()
        folder.mkdir(exist_ok=True)
        time.sleep(0.0 if resumed else 0.5)  # most first attempts are stopped in here
        (folder / "resumed").write_text(str(resumed))

    def compare(folder: Path, other: Path) -> bool:
        return (folder / "resumed").read_text() == (other / "resumed").read_text()

    found = soak.soak_killed(work, compare, repeats=5, seed=0)
    assert found["finished"] == 5
    assert found["different"] > 0  # a signal may come before the work has begun
    assert sum(found.get(name, 0) for name in ("SIGKILL", "SIGTERM", "SIGINT")) > 0


def test_exit_codes_tell_how_a_process_ended(tmp_path: Path) -> None:
    def fail(name: str | None):
        raise OSError(28, "No space left on device", name)

    assert soak.run_in_process(lambda folder: fail(str(folder / "x")), tmp_path) == soak.FULL
    assert soak.run_in_process(lambda folder: fail(None), tmp_path) == soak.OTHER
    assert soak.run_in_process(lambda folder: None, tmp_path) == 0
    ended = soak.run_in_process(lambda folder: time.sleep(60), tmp_path, (signal.SIGKILL, 0.1))
    assert ended == -signal.SIGKILL


def test_changed_images_are_decoded_or_refused() -> None:
    found = soak.soak_images(200, seed=1)
    assert found["escaped"] == 0
    assert min(found["decoded"], found["refused"]) > 20


@pytest.mark.slow
def test_a_short_soak_finds_no_fault(tmp_path: Path) -> None:
    check_figures(soak.main(["--quick", "--seed", "1", "--out", str(tmp_path / "soak.json")]))


def test_the_committed_figures_show_no_fault_and_are_those_of_the_page() -> None:
    report = json.loads((RESULTS / "soak.json").read_text())
    assert set(PARTS) < set(report)
    assert not report["contract"]["quick"]
    check_figures(report)
    page = soak.PAGE.read_text()
    assert with_table(page, "soak", soak.tables(report)) == page
