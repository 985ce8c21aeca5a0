"""Time of inference with learned strides, frozen, compiled and in onnxruntime."""

import argparse
import copy
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common import (
    FORMATS,
    Report,
    effort_of,
    entry,
    finish,
    new_report,
    only,
    parser_of,
    select,
    start,
)
from benchmarks.tables import goal, milliseconds, number, ratio_table, table
from benchmarks.timing import measure
from diffstride import DiffStride, MultiplyAdds, convert, freeze
from diffstride.resnet import resnet18

STRIDES = ("strided", "learned", "frozen")
CONSTANT = ("strided", "frozen")  # what is compiled and exported
QUICK = {"batches": [1], "formats": ["contiguous"]}
QUICK_SIZE = 16


class Network(NamedTuple):
    """A strided network, and the same network with learnable strides."""

    strided: nn.Module
    learned: nn.Module


def torchvision_resnet18(image: Tensor) -> Network:
    """ResNet-18 of torchvision, strided and converted."""
    import torchvision

    strided = torchvision.models.resnet18(num_classes=10).eval()
    return Network(strided, convert(strided, image))


def own_resnet18(image: Tensor) -> Network:
    """This project's small ResNet-18, which pools before the convolutions and in the stem."""
    build = partial(resnet18, num_output_classes=10, width=16, order="before")
    pooling = partial(DiffStride, edge="stopband", straight_through=False)
    return Network(build().eval(), build(pooling_cls=pooling).eval())


NETWORKS: dict[str, tuple[Callable[[Tensor], Network], int]] = {
    "torchvision resnet18": (torchvision_resnet18, 64),
    "resnet18, width 16": (own_resnet18, 32),
}


class Contender(NamedTuple):
    """A network, its kind of strides and what runs it; ``format`` is torch's memory format."""

    network: str
    strides: str
    runner: str
    format: str

    def __str__(self) -> str:
        where = f", {self.format.replace('_', '-')}" if self.runner != "onnxruntime" else ""
        return f"{self.strides}, {self.runner}{where}"


def contenders(name: str, formats: Sequence[str], compiler: bool) -> list[Contender]:
    """All contenders of a network."""
    found = []
    for layout in formats:
        found += [Contender(name, strides, "eager", layout) for strides in STRIDES]
        found += [Contender(name, each, "compiled", layout) for each in CONSTANT if compiler]
    return [*found, *(Contender(name, each, "onnxruntime", "contiguous") for each in CONSTANT)]


Prepared = Callable[[], Any]


def run(options: argparse.Namespace) -> Report:
    """Measure all networks."""
    report = new_report(options, measurements=[], multiply_adds={}, differences=[], skipped=[])
    compiler = bool(shutil.which("g++") or shutil.which("clang++"))
    if not compiler:
        report["skipped"].append("torch.compile, which needs a C++ compiler on the path")
    for name in options.networks:
        torch.manual_seed(options.seed)
        build, size = NETWORKS[name]
        image = torch.randn(1, 3, *[QUICK_SIZE if options.quick else size] * 2)
        strided, learned = build(image)
        models = {"strided": strided, "learned": learned, "frozen": freeze(learned, image)}
        report["multiply_adds"][name] = {
            strides: MultiplyAdds(model, image).value() for strides, model in models.items()
        }
        runners = {
            contender: runner_of(contender, models[contender.strides], image)
            for contender in contenders(name, options.formats, compiler)
        }
        for batch in options.batches:
            print(f"{name}, batch {batch}", flush=True)
            images = torch.randn(batch, *image.shape[1:])
            calls = {contender: runner(images) for contender, runner in runners.items()}
            report["differences"] += differences(calls, batch)
            report["measurements"] += [
                entry(timing, **contender._asdict(), batch=batch, size=image.shape[-1])
                for contender, timing in measure(calls, effort_of(options)).items()
            ]
    report["goals"] = goals(report)
    return report


def runner_of(
    contender: Contender, model: nn.Module, image: Tensor
) -> Callable[[Tensor], Prepared]:
    """A function that takes images and returns the function to time."""
    if contender.runner == "onnxruntime":
        return partial(_in_onnxruntime, session_of(model, image))
    layout = FORMATS[contender.format]
    model = copy.deepcopy(model).to(memory_format=layout)  # type: ignore[call-overload]
    run = torch.compile(model, fullgraph=True) if contender.runner == "compiled" else model
    return partial(_in_torch, run, layout)


def _in_torch(model: Callable[[Tensor], Tensor], layout: Any, images: Tensor) -> Prepared:
    return torch.no_grad()(partial(model, images.contiguous(memory_format=layout)))


def session_of(model: nn.Module, image: Tensor) -> Any:
    """An onnxruntime session of a model, for any batch, with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecations inside the exporter
        file, shapes = f"{folder}/model.onnx", ({0: torch.export.Dim("batch")},)
        torch.onnx.export(model, (image,), file, dynamo=True, dynamic_shapes=shapes, verbose=False)
        return onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])


def _in_onnxruntime(session: Any, images: Tensor) -> Prepared:
    feed = {session.get_inputs()[0].name: images.numpy()}
    return partial(_first_output, session, feed)


def _first_output(session: Any, feed: dict[str, Any]) -> Tensor:
    return torch.from_numpy(session.run(None, feed)[0])


def differences(calls: Mapping[Contender, Prepared], batch: int) -> list[dict[str, Any]]:
    """Largest differences of outputs from eager mode, relative to the largest output."""
    found = []
    for contender, call in calls.items():
        learned = "learned" if contender.strides == "frozen" else contender.strides
        eager = contender._replace(strides=learned, runner="eager", format="contiguous")
        expected = calls[eager]()
        difference = ((call() - expected).abs().max() / expected.abs().max()).item()
        found.append({**contender._asdict(), "batch": batch, "difference": difference})
    return found


def goals(report: Report) -> list[dict[str, Any]]:
    """The largest difference of outputs, and times of frozen over learned and strided networks."""
    worst = max(report["differences"], key=lambda found: found["difference"])
    found = [goal("largest difference of outputs, in 1e-4", 1e4 * worst["difference"], at_most=1.0)]
    compared = {("learned", "eager"), ("strided", "compiled"), ("strided", "onnxruntime")}
    for each in report["measurements"]:
        if (each["strides"], each["runner"]) in compared:
            where = {key: each[key] for key in ("network", "batch", "format", "runner")}
            frozen = only(report["measurements"], **where, strides="frozen")
            *rest, runner = map(str, where.values())
            name = f"frozen / {each['strides']}, {runner}: {', '.join(rest)}"
            found.append(goal(name, frozen["median"] / each["median"]))
    return found


def tables(report: Report) -> str:
    """All tables of a report, in Markdown."""
    parts = [ratio_table(report["goals"])]
    for name, costs in report["multiply_adds"].items():
        found = select(report["measurements"], network=name)
        batches = sorted({each["batch"] for each in found})
        header = ["network", "multiply-adds an image, M", *(f"batch of {n}, ms" for n in batches)]
        size = found[0]["size"]
        parts.append(f"{name}, images of {size} x {size}, float32:")
        parts.append(table(header, _lines(found, costs, batches)))
    parts += [f"Not measured: {reason}." for reason in report["skipped"]]
    return "\n\n".join(parts)


def _lines(
    found: list[dict[str, Any]], costs: dict[str, int], batches: list[int]
) -> Iterator[list[str]]:
    timings: dict[Contender, dict[int, dict[str, Any]]] = {}
    for each in found:
        contender = Contender(*(each[field] for field in Contender._fields))
        timings.setdefault(contender, {})[each["batch"]] = each
    for contender, by_batch in timings.items():
        times = [milliseconds(by_batch[batch]) for batch in batches]
        yield [str(contender), number(costs[contender.strides] / 1e6), *times]


def main(arguments: Sequence[str] | None = None) -> Report:
    parser = parser_of("frozen", __doc__, repeats=15)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--batches", nargs="+", type=int, default=[1, 32], help="images in a call")
    add("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = start(parser, arguments, QUICK)
    return finish(options, run(options), tables)


if __name__ == "__main__":
    main()
