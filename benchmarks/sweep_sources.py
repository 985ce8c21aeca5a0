"""Where the networks of the sweep come from: by hand and torchvision."""

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import diffstride
from benchmarks import sweep_networks
from benchmarks.sweep_trial import Network

BATCH = sweep_networks.BATCH
SIZES = (64, 128, 224)  # of images, tried in this order


@dataclass(frozen=True)
class Source:
    """A package with networks.

    Args:
        package: its name as imported.
        names: lists its kinds.
        build: builds a kind, given its name.
        distribution: its name in the package index, if that is another.
    """

    package: str
    names: Callable[[], list[str]]
    build: Callable[[str], Network]
    distribution: str | None = None

    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def version(self) -> str:
        if self.package == "diffstride":
            return diffstride.__version__
        return importlib.metadata.version(self.distribution or self.package)


def images(*sizes: int, channels: int = 3) -> list[tuple[Tensor]]:
    """Small batches of images of these heights and widths, as inputs to try."""
    return [(torch.rand(BATCH, channels, size, size),) for size in sizes or SIZES]


# By hand


def hand_written(name: str) -> Network:
    build, shapes = sweep_networks.KINDS[name]
    return Network(build(), [tuple(torch.rand(BATCH, *shape) for shape in shapes)])


# torchvision

QUANTIZED = "quantized_"  # their integer convolutions cannot learn
DETECTORS = "torchvision.models.detection"
VIDEO = "torchvision.models.video"
FLOW = "torchvision.models.optical_flow"
RESIZING = re.compile("rcnn|fcos|retinanet")  # which resize images to a size of their own
DETECTED = 96


def torchvision_names() -> list[str]:
    """The network of fewest parameters of each module of torchvision."""
    from torchvision import models

    families: dict[str, list[tuple[int, str]]] = {}
    for name in models.list_models():
        if not name.startswith(QUANTIZED):
            module = models.get_model_builder(name).__module__
            families.setdefault(module, []).append((_parameters(name), name))
    return [min(names)[1] for names in families.values()]


def _parameters(name: str) -> int:
    from torchvision import models

    return next(iter(models.get_model_weights(name))).meta["num_params"]


def torchvision_network(name: str) -> Network:
    from torchvision import models

    module = models.get_model_builder(name).__module__
    options: dict[str, Any] = {"weights": None}
    if module.startswith((DETECTORS, "torchvision.models.segmentation")):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # which takes long
    if RESIZING.search(name):
        options |= {"min_size": DETECTED, "max_size": DETECTED}
    return Network(models.get_model(name, **options), _torchvision_inputs(module))


def _torchvision_inputs(module: str) -> list[tuple[Any, ...]]:
    if module.startswith(VIDEO):
        shapes = ((BATCH, 3, 8, 64, 64), (1, 3, 16, 224, 224))
        return [(torch.rand(shape),) for shape in shapes]
    if module.startswith(FLOW):
        return [(torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128))]
    if module.startswith(DETECTORS):
        return [([torch.rand(3, DETECTED, DETECTED) for _ in range(BATCH)],)]
    return [*images(), *images(299)]


SOURCES: dict[str, Source] = {
    "hand-written": Source("diffstride", lambda: list(sweep_networks.KINDS), hand_written),
    "torchvision": Source("torchvision", torchvision_names, torchvision_network),
}
Kind = tuple[str, str]


def installed_kinds(sources: Iterable[str] = SOURCES) -> Iterator[Kind]:
    """The source and the name of all kinds whose package is installed."""
    for source in sources:
        if SOURCES[source].is_installed():
            yield from ((source, name) for name in SOURCES[source].names())
