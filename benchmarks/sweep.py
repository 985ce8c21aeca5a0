"""Try `convert` on many kinds of networks, and say for each what happened.

The kinds are small networks by hand (`benchmarks.sweep_networks`), one network of each module of
timm and torchvision, and networks of other packages that are installed. Each is built with random
weights, converted, trained for a step, run at other strides, held to budgets, frozen and exported,
in a process of its own. Its row goes to a file as soon as it ends; kinds with a row are skipped.

Outcomes:

- ``passed``: all steps work, and costs and frozen outputs are right.
- ``refused``: `convert` raises a ValueError that says why.
- ``partly``: it converts, but a later step is refused in words, `MultiplyAdds` for instance.
- ``wrong``: shapes, costs or frozen outputs differ, or the network fails once its strides move.
- ``error``: any other exception. ``timeout``: it did not end in time.
- Not counted: ``no stride``, where nothing strides, and ``not built``, where the network itself
  cannot be built or run.
"""

import argparse
import contextlib
import fnmatch
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, append_row, read_rows, select
from benchmarks.machine import ROOT, environment
from benchmarks.sweep_sources import SOURCES, Kind, installed_kinds
from benchmarks.sweep_trial import BUILDING, NOT_COUNTED, OUTCOMES, Row, attempt
from benchmarks.tables import number, split_table
from experiments import markdown

RESULT = RESULTS / "sweep.jsonl"
PAGE = ROOT / "docs" / "converted_networks.md"
TABLE = "sweep"
QUICK = ("hand-written/lenet", "hand-written/resnet_blocks")
REASON = 160  # characters of a reason in the table
GB = 2**30
GRACE = 10  # seconds
COLUMNS = {"error": "errors", "timeout": "timeouts"}


def try_kind(kind: Kind, seconds: float, memory: float) -> Row:
    """What happens with a kind in a process of its own, of limited time and memory (GB)."""
    # Of a server that has loaded torch already, which takes longer than many networks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.sweep_trial", "benchmarks.sweep_sources"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(kind, sender, seconds, memory))
    process.start()
    sender.close()
    step, end = BUILDING[0], time.monotonic() + seconds
    try:
        while receiver.poll(max(0.0, end - time.monotonic())):
            message = receiver.recv()
            if isinstance(message, dict):
                return message
            step = message
        return _ended(step, "timeout", f"no end within {seconds:g} s")
    except EOFError:
        process.join()
        return _ended(step, "error", f"the process ended with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _ended(step: str, outcome: str, reason: str) -> Row:
    return {"outcome": "not built" if step in BUILDING else outcome, "step": step, "reason": reason}


def _child(kind: Kind, sender: Connection, seconds: float, memory: float) -> None:
    """Try a kind in this process; sends the names of the steps, then the row."""
    signal.alarm(int(seconds) + GRACE)  # it ends by itself even if the sweep was killed
    limit = int(memory * GB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    source, name = kind
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
        sender.send(attempt(lambda: SOURCES[source].build(name), sender.send))


def selected(patterns: Sequence[str]) -> Iterator[Kind]:
    """The installed kinds whose ``SOURCE/NAME`` matches one of the patterns."""
    sources = [
        source
        for source in SOURCES
        if any(fnmatch.fnmatch(source, pattern.partition("/")[0]) for pattern in patterns)
    ]
    for source, name in installed_kinds(sources):
        if any(fnmatch.fnmatch(f"{source}/{name}", pattern) for pattern in patterns):
            yield source, name


def tables(rows: Sequence[Row]) -> str:
    """The table of sources, that of the kinds that do not pass, and that of those that pass."""
    if not rows:
        return "No results yet: `python -m benchmarks.sweep`."
    sources = [source for source in SOURCES if select(rows, source=source)]
    header = ["source", "version", "kinds", *(COLUMNS.get(each, each) for each in OUTCOMES)]
    header += ["share passed", "not counted", "`convert`, s", "`MultiplyAdds`, s"]
    lines = [_line(source, select(rows, source=source)) for source in sources]
    if len(sources) > 1:
        lines.append(["all", "", *_line("", rows)[2:]])
    failed = [row for row in rows if row["outcome"] in OUTCOMES[1:]]
    failed.sort(key=lambda row: (OUTCOMES[::-1].index(row["outcome"]), row["source"], row["kind"]))
    listed = markdown.table(["kind", "outcome", "step", "reason"], map(_failed_line, failed))
    passed = sorted(map(_passed_line, select(rows, outcome=OUTCOMES[0])))
    counts = markdown.table(["kind that passed", "modules", "layers", "left out"], passed)
    return f"{split_table(header, lines)}\n\n{listed}\n\n{counts}"


def _line(source: str, rows: Sequence[Row]) -> list[str]:
    counts = [len(select(rows, outcome=outcome)) for outcome in OUTCOMES]
    tried = sum(counts)
    versions = " and ".join(dict.fromkeys(row["version"] for row in rows))
    share = f"{100 * counts[0] / tried:.0f} %" if tried else "–"
    rest = sum(len(select(rows, outcome=outcome)) for outcome in NOT_COUNTED)
    times = [_times(rows, f"{name}_seconds") for name in ("convert", "multiply_adds")]
    return [source, versions, str(tried), *map(str, counts), share, str(rest), *times]


def _times(rows: Sequence[Row], key: str) -> str:
    """The 90th percentile and, in brackets, the longest time."""
    times = sorted(row[key] for row in rows if key in row)
    if not times:
        return "–"
    return f"{number(times[(9 * len(times) - 1) // 10])} ({number(times[-1])})"


def _failed_line(row: Row) -> list[str]:
    reason = row["reason"] if len(row["reason"]) <= REASON else f"{row['reason'][: REASON - 1]}…"
    code = reason.replace("`", "'").replace("|", "\\|")
    return [f"`{row['source']}/{row['kind']}`", row["outcome"], row["step"], f"`{code}`"]


def _passed_line(row: Row) -> list[str]:
    patchify = " (`patchify=True`)" if row.get("patchify") else ""
    counts = row["modules"], row["layers"], len(row["left_out"])
    return [f"`{row['source']}/{row['kind']}`{patchify}", *map(str, counts)]


def run(options: argparse.Namespace, out: Path | None) -> list[Row]:
    """Try the kinds that have no row yet; returns all rows."""
    rows: list[Row] = read_rows(out) if out else []
    contract: dict[str, Any] = environment()  # now: files may change while the sweep runs
    for source, name in selected(options.kinds):
        labels = {"source": source, "kind": name}
        if select(rows, **labels):
            continue
        start = time.monotonic()
        found = try_kind((source, name), options.seconds, options.memory)
        row = {**labels, **found, "seconds": round(time.monotonic() - start, 1)}
        row |= {"version": SOURCES[source].version(), "contract": contract}
        rows.append(row)
        if out:
            append_row(out, row)
        reason = f": {row['step']}: {row['reason']}" if "reason" in row else ""
        print(f"{source}/{name}: {row['outcome']}{reason[:300]} ({row['seconds']} s)", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--kinds", nargs="+", metavar="GLOB", help="kinds, as 'timm/*' (default: all)")
    add("--seconds", type=float, default=120.0, help="limit for a kind")
    add("--memory", type=float, default=8.0, help="limit for a kind, in GB")
    add("--quick", action="store_true", help="a few tiny networks, only to check that it runs")
    add("--out", type=Path, help=f"file of the rows (default: {RESULT.relative_to(ROOT)} and page)")
    add("--table", action="store_true", help="only write the table of the page")
    options = parser.parse_args(arguments)
    out = options.out or (None if options.quick else RESULT)
    options.kinds = options.kinds or (QUICK if options.quick else ["*"])
    rows = read_rows(out or RESULT) if options.table else run(options, out)
    print(tables(rows))
    if out == RESULT:
        markdown.write_table(PAGE, TABLE, tables(rows))
    return rows


if __name__ == "__main__":
    main()
