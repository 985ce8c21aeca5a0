"""Where images come from (embedded, a folder, the Hub), and their decoding into uint8 tensors."""

import glob
import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

if TYPE_CHECKING:
    from datasets import Dataset as HubDataset
    from datasets import DatasetDict, Features

HUB_NAMES = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
}
# Named, for Pillow otherwise tries dozens on every image; and it stays, while torchvision's
# decoders, faster by half, are deprecated.
FORMATS = ("WEBP", "PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF")
LABEL_COLUMNS = ("fine_label", "label", "labels")
LAYOUT = "train.parquet and test.parquet, or train/CLASS/*.png and test/CLASS/*.png"


class DataError(ValueError):
    """A data set cannot be found, read or used; the message says what to do."""


@dataclass(frozen=True)
class Rows:
    """Rows of one split: how to fetch their images, not yet decoded, and what they show."""

    fetch: Callable[[np.ndarray], Iterable[Any]]
    labels: np.ndarray
    rows: np.ndarray
    title: str

    def take(self, chosen: slice | np.ndarray) -> "Rows":
        """A part of these rows, or the same in another order."""
        return replace(self, labels=self.labels[chosen], rows=self.rows[chosen])


class Source(NamedTuple):
    """A data set whose images are not read yet."""

    train: Rows
    test: Rows | None
    class_names: tuple[str, ...]


def read_source(
    name: str, root: str | os.PathLike[str] | None = None, label_column: str | None = None
) -> Source:
    """Find a data set by its name and read its labels; the arguments are `load_datasets`'.

    Raises:
        DataError: it is nowhere to be found, or cannot be read.

    >>> read_source("digits").class_names[:3]
    ('0', '1', '2')
    """
    if name == "digits":
        return _digits()
    root = root or os.environ.get("DIFFSTRIDE_DATA")
    splits = _from_folder(name, Path(root).expanduser()) if root else _from_hub(name)
    if "train" not in splits:
        raise DataError(f"no train split in {name!r}, only {_quoted(map(str, splits))}")
    features = splits["train"].features
    image, label = _image_column(features, name), _label_column(features, label_column, name)
    found = {split: splits[split][label][:] for split in ("train", "test") if split in splits}
    classes = _classes(features[label], chain.from_iterable(found.values()))
    rows = {
        split: _rows(splits[split], image, values, classes, f"the {split} split of {name!r}")
        for split, values in found.items()
    }
    return Source(rows["train"], rows.get("test"), tuple(classes.values()))


def _digits() -> Source:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]
    rows = Rows(images.__getitem__, digits.target, np.arange(len(images)), "'digits'")
    parts: Any = train_test_split(rows.rows, test_size=0.2, random_state=0, stratify=digits.target)
    train, test = map(rows.take, parts)
    return Source(train, test, tuple("0123456789"))


def _from_folder(name: str, root: Path) -> "DatasetDict":
    from datasets import load_dataset

    folder = root / name
    if not folder.is_dir():
        raise DataError(
            f"no folder {str(folder)!r}: put {LAYOUT} there, give another root (or "
            f"DIFFSTRIDE_DATA), or neither to fetch {name!r} from the Hugging Face Hub"
        )
    try:
        if any(each.is_dir() for each in (folder / "train").glob("*")):
            # Said outright, for `datasets` takes a class called "test" or "val" for a split.
            parts = [part for part in ("train", "test") if (folder / part).is_dir()]
            files = {part: f"{glob.escape(str(folder / part))}/**" for part in parts}
            return load_dataset("imagefolder", data_files=files)
        return load_dataset(str(folder))
    except Exception as error:  # every format's reader raises errors of its own
        raise DataError(
            f"cannot read {str(folder)!r} ({_first_line(error)}): expected {LAYOUT}"
        ) from error


def _from_hub(name: str) -> "DatasetDict":
    from datasets import load_dataset

    hub_name = HUB_NAMES.get(name, name)
    if "/" not in hub_name:
        raise DataError(
            f"unknown data set {name!r}: expected {_quoted(('digits', *HUB_NAMES))}, 'owner/name' "
            f"on the Hugging Face Hub, or a folder name together with root or DIFFSTRIDE_DATA"
        )
    try:
        return load_dataset(hub_name)
    except ConnectionError as error:
        raise DataError(
            f"cannot reach the Hugging Face Hub for {hub_name!r} ({_first_line(error)}): without "
            f"a network put {LAYOUT} into FOLDER/{name} and pass root='FOLDER' or set "
            f"DIFFSTRIDE_DATA=FOLDER, or bring a filled cache of `datasets` (HF_HOME)"
        ) from error
    except Exception as error:  # the Hub's client, and every format's reader, raise their own
        raise DataError(
            f"cannot load {hub_name!r} from the Hugging Face Hub ({_first_line(error)}): check the "
            f"name at https://huggingface.co/datasets, or give a local copy with root='FOLDER'"
        ) from error


def _image_column(features: "Features", name: str) -> str:
    from datasets import Image

    for column, feature in features.items():
        if isinstance(feature, Image) or (isinstance(feature, dict) and "bytes" in feature):
            return column
    raise DataError(f"no column of images in {name!r}, only {_quoted(features)}")


def _label_column(features: "Features", asked: str | None, name: str) -> str:
    from datasets import ClassLabel, Value

    for column in (asked,) if asked else LABEL_COLUMNS:
        if isinstance(features.get(column), ClassLabel | Value):
            return column
    raise DataError(
        f"no column of labels in {name!r}, only {_quoted(features)}: pass label_column=NAME, or in "
        f"a folder of images keep a folder for each of two or more classes"
    )


def _classes(feature: Any, values: Iterable[Any]) -> dict[Any, str]:
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        return dict(enumerate(feature.names))
    return {value: str(value) for value in sorted(set(values) - {None})}


def _rows(
    split: "HubDataset", column: str, values: list[Any], classes: dict[Any, str], title: str
) -> Rows:
    from datasets import Image

    positions = {value: position for position, value in enumerate(classes)}
    for row, value in enumerate(values):
        if value not in positions:
            raise DataError(f"row {row} of {title} has the label {value!r}: remove it, or label it")
    labels = np.array([positions[value] for value in values], dtype=np.int64)
    encoded = split.select_columns(column).cast_column(column, Image(decode=False))
    order = np.arange(len(labels))
    if (np.diff(labels) >= 0).all():
        # Folders come class by class: their first or last rows alone would show one class.
        order = np.random.default_rng(0).permutation(order)

    def fetch(rows: np.ndarray) -> Iterator[Any]:
        # In batches: row by row `datasets` takes as long as the decoding does.
        batches: Any = encoded.select(rows).iter(batch_size=1000)
        return chain.from_iterable(batch[column] for batch in batches)

    return Rows(fetch, labels[order], order, title)


def read_images(train: Rows, test: Rows, image_size: int | None) -> tuple[Tensor, Tensor]:
    """Decode both splits into uint8 tensors `(N, C, H, W)`, with one channel if all is grey.

    Raises:
        DataError: an image is damaged, or its size is not that of the first one.

    >>> source = read_source("digits")
    >>> [tuple(each.shape) for each in read_images(source.train, source.test, None)]
    [(1437, 1, 8, 8), (360, 1, 8, 8)]
    """
    train_images = _read(train, image_size)
    test_images = _read(test, image_size, train_images.shape[1:])
    # Compared as colours, for grey images are often stored with three equal channels.
    if all(bool((images == images[:, :1]).all()) for images in (train_images, test_images)):
        return train_images[:, :1].clone(), test_images[:, :1].clone()
    return train_images, test_images


def _read(split: Rows, image_size: int | None, shape: torch.Size | None = None) -> Tensor:
    images = None
    for count, (row, item) in enumerate(zip(split.rows, split.fetch(split.rows), strict=True)):
        image = item if isinstance(item, Tensor) else _decode(item, row, split.title)
        if image_size is not None:
            image = vision.resize(image, [image_size])
            image = vision.center_crop(image, [image_size])
        if image.shape != (shape := shape or image.shape):
            raise DataError(
                f"{_place(item, row, split.title)} has {image.shape[1]} x {image.shape[2]} pixels, "
                f"others have {shape[1]} x {shape[2]}: pass image_size=PIXELS to resize them all"
            )
        if images is None:
            images = torch.empty(len(split.rows), *shape, dtype=torch.uint8)
        images[count] = image
    assert images is not None  # classes without images were refused before
    return images


def _decode(item: Any, row: int, title: str) -> Tensor:
    try:
        encoded = item["bytes"]
        return _pixels(Path(item["path"]).read_bytes() if encoded is None else encoded)
    except (OSError, SyntaxError, TypeError, ValueError) as error:
        reason = _first_line(error)
        if isinstance(error, PIL.UnidentifiedImageError):  # which tells an address in memory
            reason = f"none of {', '.join(FORMATS)}"
        raise DataError(
            f"cannot decode {_place(item, row, title)} ({reason}): replace or remove it"
        ) from error


def _pixels(encoded: bytes) -> Tensor:
    with PIL.Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        if image.mode.startswith(("I", "F")):  # which Pillow would clip at 255, not scale
            raise ValueError(f"more than 8 bits a pixel, mode {image.mode!r}")
        PIL.ImageOps.exif_transpose(image, in_place=True)
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _place(item: Any, row: int, title: str) -> str:
    path = item.get("path") if isinstance(item, dict) else None
    return f"row {row} ({path!r}) of {title}" if path else f"row {row} of {title}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
