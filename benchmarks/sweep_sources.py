"""Where the networks of the sweep come from: by hand, torchvision, timm, and other packages."""

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffstride
from benchmarks import sweep_networks
from benchmarks.sweep_packages import DIFFUSERS, MONAI, TRANSFORMERS, packaged
from benchmarks.sweep_trial import Network

BATCH = sweep_networks.BATCH
SIZES = (64, 128, 224)  # of images, tried in this order
# Words of names from small to large; a network without any is of middle size.
WORDS = (
    *("test", "zepto", "femto", "atto", "pico", "nano", "xxxs", "xxs", "xxt", "xs", "mini", "tiny"),
    *("t", "n", "xt", "s", "small", "", "m", "medium", "b", "base", "l", "large", "xl", "xlarge"),
    *("h", "huge", "g", "giant", "xxl", "xxlarge", "gigantic"),
)


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


def cheapest(names: Iterable[str]) -> str:
    """The name that says least of size: by words, then by the sum of its numbers, then by length.

    >>> cheapest(["resnet50", "resnet18", "resnet18_large"]), cheapest(["swin_base", "swin_tiny"])
    ('resnet18', 'swin_tiny')
    """
    return min(names, key=_size_of)


def _size_of(name: str) -> tuple[float, float, int, str]:
    ranks = [WORDS.index(word) for word in re.split(r"[_.\-]|\d+", name.lower()) if word in WORDS]
    known = [rank for rank in ranks if WORDS[rank]]
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    middle = WORDS.index("")
    return min(known, default=middle) if known else middle, sum(numbers), len(name), name


def cheapest_by_module(modules: Iterable[tuple[str, str]]) -> list[str]:
    """The cheapest name of each module, of pairs of module and name."""
    families: dict[str, list[str]] = {}
    for module, name in modules:
        families.setdefault(module, []).append(name)
    return [cheapest(names) for names in families.values()]


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


# timm

LARGE_ONLY = {
    "mobilenetv5",
    "gemma4_vit",
    "qwen3_vit",
    "deepseek_vit",
}  # encoders of language models


def timm_names() -> list[str]:
    """The cheapest network of each module of timm, by its name."""
    import timm

    modules = [name for name in timm.list_modules() if name not in LARGE_ONLY]
    return [cheapest(names) for m in modules if (names := timm.list_models(module=m))]


def timm_network(name: str) -> Network:
    import timm

    model: Any = timm.create_model(name, pretrained=False)
    channels, *_, size = model.default_cfg["input_size"]
    return Network(model, images(*(s for s in SIZES if s < size), size, channels=channels))


# pytorchcv


def pytorchcv_names() -> list[str]:
    """The cheapest network of each module of pytorchcv, by its name."""
    provider: Any = importlib.import_module("pytorchcv.model_provider")
    found: dict[str, Any] = provider._models
    return cheapest_by_module((build.__module__, name) for name, build in found.items())


def pytorchcv_network(name: str) -> Network:
    provider: Any = importlib.import_module("pytorchcv.model_provider")
    model: Any = provider.get_model(name, pretrained=False)
    size = max(getattr(model, "in_size", (224, 224)))
    channels = getattr(model, "in_channels", 3)
    return Network(model, images(*(s for s in SIZES if s < size), size, channels=channels))


# segmentation_models_pytorch


def smp_names() -> list[str]:
    """All decoders, on a small encoder."""
    smp: Any = importlib.import_module("segmentation_models_pytorch")
    return list(smp.MODEL_ARCHITECTURES_MAPPING)


def smp_network(name: str) -> Network:
    smp: Any = importlib.import_module("segmentation_models_pytorch")
    encoder = "mit_b0" if name == "segformer" else "resnet18"
    if name == "dpt":
        encoder = "tu-vit_tiny_patch16_224"
    return Network(smp.create_model(name, encoder, encoder_weights=None), images())


# ultralytics

YOLO = re.compile(r"^(yolov?\d+|yolov3-tiny|yolov9t|yolov10n|rtdetr-resnet50)(-[a-z]+)?\.yaml$")
SCALED = re.compile(r"^(yolo(?:11|12|26|v5|v6|v8))(?=[-.])")


def ultralytics_names() -> list[str]:
    """The networks that are packaged as files of the smallest scale."""
    spec = importlib.util.find_spec("ultralytics")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "cfg" / "models"
    return sorted(path.name for path in folder.rglob("*.yaml") if YOLO.match(path.name))


def ultralytics_network(name: str) -> Network:
    ultralytics: Any = importlib.import_module("ultralytics")
    scaled = SCALED.sub(r"\1n", name)  # yolo11-seg.yaml to yolo11n-seg.yaml
    kind = ultralytics.RTDETR if "rtdetr" in name else ultralytics.YOLO
    model: Any = kind(scaled).model
    return Network(model, images(64, 128))


SOURCES: dict[str, Source] = {
    "hand-written": Source("diffstride", lambda: list(sweep_networks.KINDS), hand_written),
    "torchvision": Source("torchvision", torchvision_names, torchvision_network),
    "timm": Source("timm", timm_names, timm_network),
    "segmentation_models_pytorch": Source(
        "segmentation_models_pytorch", smp_names, smp_network, "segmentation-models-pytorch"
    ),
    "ultralytics": Source("ultralytics", ultralytics_names, ultralytics_network),
    "monai": Source("monai", lambda: list(MONAI), partial(packaged, "monai.networks.nets", MONAI)),
    "transformers": Source(
        "transformers", lambda: list(TRANSFORMERS), partial(packaged, "transformers", TRANSFORMERS)
    ),
    "diffusers": Source(
        "diffusers", lambda: list(DIFFUSERS), partial(packaged, "diffusers", DIFFUSERS)
    ),
    "pytorchcv": Source("pytorchcv", pytorchcv_names, pytorchcv_network),
}
Kind = tuple[str, str]


def installed_kinds(sources: Iterable[str] = SOURCES) -> Iterator[Kind]:
    """The source and the name of all kinds whose package is installed."""
    for source in sources:
        if SOURCES[source].is_installed():
            yield from ((source, name) for name in SOURCES[source].names())
