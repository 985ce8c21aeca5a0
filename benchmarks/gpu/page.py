"""The section of docs/benchmarks.md about the GPU, from the files of the parts."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import FORMATS, Report, select
from benchmarks.contenders import DIRECTIONS, REFERENCE
from benchmarks.gpu.device import PRECISIONS
from benchmarks.gpu.layer import RUNNERS
from benchmarks.tables import milliseconds, number, table
from diffstride.spectral.axis_plan import EDGES

TITLES = {
    "correctness": "Correctness",
    "layer": "One layer",
    "network": "A network",
    "convert": "Converted networks",
    "train": "Trainings",
}
INTRODUCTION = """\
`python -m benchmarks.gpu PART` measures on a GPU. `benchmarks/gpu/README.md` lists the parts, their
order and how long they take. Times are between two CUDA events, so they include the gaps in which
the GPU waits for the host. `float32` forbids TF32 in products and convolutions. Peak memory is that
of torch's tensors. The floor of a layer is computed as for the CPU, from product and copy rates of
the GPU. The floor of a network counts its products alone."""
FACTS = ("device", "cuda", "cudnn", "torch", "diffstride", "commit", "date", "command")


def read_reports(folder: Path) -> dict[str, Report]:
    """The reports of the parts in a folder by file name, in the order of the parts.

    Raises:
        ValueError: a file is not one of `python -m benchmarks.gpu`.
    """
    found = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    for name, report in found.items():
        if part_of(report) not in TITLES:
            raise ValueError(
                f"{name} is of benchmark {report['benchmark']!r}, expected 'gpu PART' with one of "
                f"{list(TITLES)}"
            )
    rank = list(TITLES).index
    ordered = sorted(found.items(), key=lambda item: rank(part_of(item[1])))
    return {f"gpu/{name}": report for name, report in ordered}


def part_of(report: Report) -> str:
    """The part that a report is of, or ``""`` if it is of another benchmark."""
    first, _, part = report["benchmark"].partition(" ")
    return part if first == "gpu" else ""


def section(reports: Mapping[str, Report]) -> str:
    """The section of the page, from the reports that are of a part."""
    found = {name: report for name, report in reports.items() if part_of(report)}
    if not found:
        return f"## GPU: not measured yet\n\n{INTRODUCTION}\n\nNo part has a file yet."
    missing = [part for part in TITLES if part not in map(part_of, found.values())]
    parts = [f"## GPU\n\n{INTRODUCTION}"]
    parts += [f"Not measured yet: {', '.join(missing)}."] * bool(missing)
    parts += [_part(name, report) for name, report in found.items()]
    return "\n\n".join(parts)


def _part(name: str, report: Report) -> str:
    contract, part = report["contract"], part_of(report)
    lines = [f"- {fact}: {contract[fact]}" for fact in FACTS if fact in contract]
    if contract["tiny"]:
        lines.insert(0, "- **A trial run at tiny sizes, no result.**")
    facts = "\n".join(lines)
    errors = [f"- error: {_labels(row)}: {row['error']}" for row in _failed(report)]
    texts = [f"### {TITLES[part]}: {name}", facts, *TABLES[part](report), "\n".join(errors)]
    return "\n\n".join(text for text in texts if text)


def _failed(report: Report) -> list[dict[str, Any]]:
    return [row for row in report["rows"] if "error" in row]


def _labels(row: Mapping[str, Any]) -> str:
    return ", ".join(
        str(value) for key, value in row.items() if key not in ("error", "row_seconds")
    )


def _flat(report: Report) -> list[dict[str, Any]]:
    """All measurements, each with the labels of its row."""
    return [
        {**{key: value for key, value in row.items() if key != "measurements"}, **measurement}
        for row in report["rows"]
        for measurement in row.get("measurements", ())
    ]


def _first(entries: Iterable[Any], **labels: Any) -> Any:
    return next(iter(select(entries, **labels)), None)


def _megabytes(value: int | None) -> str:
    return "–" if value is None else f"{value / 1e6:.1f}"


def correctness_tables(report: Report) -> Iterable[str]:
    rows = report["rows"]
    outcomes = [row["outcome"] for row in rows]
    yield table(
        ["passed", "failed", "skipped"],
        [[outcomes.count(each) for each in ("passed", "failed", "skipped")]],
    )
    others = [
        f"- {row['outcome']}: {row['test']}: {row['reason']}" for row in rows if "reason" in row
    ]
    yield "\n".join(others)


LAYER_HEADER = (
    "batch, channels, size",
    *EDGES,
    "reference",
    "average",
    "convolution",
    "interpolation, stopband",
    "floor, passband",
    "passband / floor",
    "reference / passband",
    "peak memory of passband, MB",
)


def layer_tables(report: Report) -> Iterable[str]:
    entries = _flat(report)
    for runner in RUNNERS:
        for direction in DIRECTIONS:
            for precision in PRECISIONS:
                for layout in FORMATS:
                    where = {"runner": runner, "direction": direction, "precision": precision}
                    chosen = select(entries, **where)
                    lines = _layer_lines(chosen, layout)
                    if lines:
                        yield f"Milliseconds, {direction}, {precision}, {layout}, {runner}:"
                        yield table(LAYER_HEADER, lines)


def _layer_lines(entries: list[dict[str, Any]], layout: str) -> list[list[str]]:
    lines = []
    for mark in select(entries, contender="passband", format=layout):
        row = select(entries, **{label: mark[label] for label in ("batch", "channels", "size")})
        names = (*EDGES, "average", "convolution")
        found = {name: _first(row, contender=name, format=layout) for name in names}
        reference = _first(row, contender=REFERENCE.contender)
        interpolation = _first(row, contender="interpolation, stopband")
        floor = _first(mark["floors"], edge="passband")["floor"]
        times = [found["passband"], found["stopband"], reference]
        times += [found["average"], found["convolution"], interpolation]
        lines.append(
            [
                f"{mark['batch']}, {mark['channels']}, {mark['size']}",
                *map(milliseconds, times),
                number(1e3 * floor),
                number(mark["median"] / floor),
                "–" if reference is None else number(reference["median"] / mark["median"]),
                _megabytes(mark["peak_memory"]),
            ]
        )
    return lines


NETWORK_HEADER = (
    "pooling",
    "training step, ms",
    "floor, ms",
    "inference step, ms",
    "floor, ms",
    "peak of training, MB",
    "MACs an image, G",
)


def network_tables(report: Report) -> Iterable[str]:
    entries = _flat(report)
    names = ("width", "batch", "size", "precision", "format", "runner")
    for values in dict.fromkeys(tuple(each[name] for name in names) for each in entries):
        chosen = select(entries, **dict(zip(names, values, strict=True)))
        poolings = dict.fromkeys(each["pooling"] for each in chosen)
        width, batch, size, *rest = values
        yield f"Width {width}, batch {batch}, {size} x {size}, {', '.join(rest)}:"
        yield table(NETWORK_HEADER, [_network_line(chosen, pooling) for pooling in poolings])


def _network_line(entries: list[dict[str, Any]], pooling: str) -> list[str]:
    training = _first(entries, pooling=pooling, phase="training")
    inference = _first(entries, pooling=pooling, phase="inference")
    floors = [
        "–" if each is None else number(1e3 * each["floor"]) for each in (training, inference)
    ]
    return [
        pooling,
        milliseconds(training),
        floors[0],
        milliseconds(inference),
        floors[1],
        _megabytes(training and training["peak_memory"]),
        number((training or inference)["multiply_adds"] / 1e9),
    ]


CONVERT_HEADER = (
    "network",
    "precision",
    "batch, size",
    "stage",
    "training step, ms",
    "times the strided one",
    "peak memory, MB",
    "MACs an image, G",
)


def convert_tables(report: Report) -> Iterable[str]:
    entries = _flat(report)
    lines = []
    for each in entries:
        where = {name: each[name] for name in ("name", "precision")}
        strided = _first(entries, **where, stage="strided")
        lines.append(
            [
                *where.values(),
                f"{each['batch']}, {each['size']}",
                each["stage"],
                milliseconds(each),
                number(each["median"] / strided["median"]),
                _megabytes(each["peak_memory"]),
                number(each["multiply_adds"] / 1e9),
            ]
        )
    yield table(CONVERT_HEADER, lines)


TRAIN_HEADER = (
    "network",
    "configuration, width",
    "epochs (published)",
    "test accuracy, %",
    "MACs an image at the start, M",
    "at the end, M",
    "seconds of training",
)


def train_tables(report: Report) -> Iterable[str]:
    done = [row for row in report["rows"] if "error" not in row]
    yield table(
        TRAIN_HEADER,
        [
            [
                row["row"] + ", at the cost of the strided network" * row["budget"],
                f"{row['config']}, {row['width']}",
                f"{row['epochs']} ({row['published_epochs']})",
                f"{row['test_accuracy']:.2f}",
                number(row["multiply_adds_start"] / 1e6),
                number(row["multiply_adds_end"] / 1e6),
                number(row["training_seconds"]),
            ]
            for row in done
        ],
    )


TABLES: dict[str, Callable[[Report], Iterable[str]]] = {
    "correctness": correctness_tables,
    "layer": layer_tables,
    "network": network_tables,
    "convert": convert_tables,
    "train": train_tables,
}
