"""The tests marked ``gpu``, of which the file counts passed, failed and skipped ones."""

import argparse
import unittest
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.rows import Rows
from benchmarks.machine import ROOT

if TYPE_CHECKING:
    import pytest

TESTS = ROOT / "tests" / "test_gpu.py"
TINY = "pooling"  # tests with this word in their names
OUTCOMES = ("passed", "failed", "skipped")


def run(options: argparse.Namespace, rows: Rows) -> None:
    """Run the tests that are not in the file, until the time limit."""
    import pytest

    words = [options.device.type] + [TINY] * options.tiny
    arguments = [str(TESTS), "-m", "gpu", "-k", " and ".join(words), "-q", "--tb=short"]
    arguments += ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    pytest.main(arguments, plugins=[Recorder(rows)])
    outcomes = [row["outcome"] for row in rows.report["rows"]]
    rows.report["counts"] = {outcome: outcomes.count(outcome) for outcome in OUTCOMES}
    rows.write()


class Recorder:
    """A plugin of pytest that adds the outcome of each test to the file."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.waiting: list[str] = []

    def pytest_collection_finish(self, session: "pytest.Session") -> None:
        """Leave out tests that have passed or were skipped according to the file."""
        done = {row["test"] for row in self.rows.report["rows"] if row["outcome"] != "failed"}
        session.items = [item for item in session.items if item.name not in done]
        self.waiting = [item.name for item in session.items]

    def pytest_runtest_setup(self, item: "pytest.Item") -> None:
        if self.rows.remaining() < self.rows.longest:
            item.session.shouldstop = OUT_OF_TIME
            raise unittest.SkipTest(OUT_OF_TIME)

    def pytest_runtest_logreport(self, report: "pytest.TestReport") -> None:
        # A test that is skipped or fails before its call has no report of the call.
        name = report.nodeid.rpartition("::")[2]
        if OUT_OF_TIME in str(report.longrepr) or name not in self.waiting:
            return
        if report.when == "call" or not report.passed:
            self.waiting.remove(name)
            self.rows.longest = max(self.rows.longest, report.duration)
            values: dict[str, Any] = {
                "outcome": report.outcome,
                "row_seconds": round(report.duration, 2),
            }
            if not report.passed:
                values["reason"] = reason_of(report)
            self.rows.add({"test": name}, values)

    def pytest_sessionfinish(self) -> None:
        self.rows.left = [{"test": name} for name in self.waiting]


OUT_OF_TIME = "not run: the time limit of this call is reached"


def reason_of(report: "pytest.TestReport") -> str:
    """The last line of an error, or why a test was skipped."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).strip().splitlines()[0]
