"""Finds images or sounds and reads their labels: scikit-learn digits, folders, Hugging Face Hub."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from diffstride._wording import first_line
from diffstride.training.class_folders import check_files, find_files, has_folders
from diffstride.training.data_error import DataError
from diffstride.training.files import expand_home
from diffstride.training.folds import Fold, split_by_group

if TYPE_CHECKING:
    from datasets import Dataset as HubDataset
    from datasets import DatasetDict, Features

HUB_NAMES = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
}
LABEL_COLUMNS = ("fine_label", "label", "labels")
PARTS = ("train", "test")
LAYOUT = "train.parquet and test.parquet, or train/CLASS/*.png and test/CLASS/*.png"
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64")


@dataclass(frozen=True)
class Rows:
    """Rows of one split: their labels, and a function that fetches them, encoded.

    They are sent to the processes that decode, so the function is not a local one.
    """

    fetch: Callable[[np.ndarray], Iterable[Any]]
    labels: np.ndarray
    rows: np.ndarray
    title: str

    def take(self, chosen: slice | np.ndarray) -> "Rows":
        """A selection of these rows, also in another order."""
        return replace(self, labels=self.labels[chosen], rows=self.rows[chosen])


class Source(NamedTuple):
    """A data set whose images or sounds are not decoded yet."""

    train: Rows
    test: Rows | None
    class_names: tuple[str, ...]
    sound: bool = False


def read_source(
    name: str,
    root: str | os.PathLike[str] | None = None,
    label_column: str | None = None,
    fold: Fold | None = None,
) -> Source:
    """Find a data set by name and read its labels; arguments as for `load_datasets`.

    It has sounds if its column says so, if a file of a class ends in one of `SOUND_SUFFIXES`, or
    if the path in the first row does.

    Raises:
        DataError: the data set cannot be found or read.

    >>> read_source("digits").class_names[:3]
    ('0', '1', '2')
    """
    if name == "digits":
        _check_no_fold(name, fold)
        _check_is_not_own(name, root, label_column)
        return _digits()
    root = root or os.environ.get("DIFFSTRIDE_DATA")
    folder = _existing_folder(name, expand_home(root)) if root else _folder_of_path(name)
    if folder and any(has_folders(folder / part) for part in PARTS):
        _check_no_fold(name, fold)
        return _from_class_folders(name, folder)
    splits: Any = _from_folder(folder) if folder else _from_hub(name)
    _check_train_split(name, splits)
    if fold is not None:
        splits = split_by_group(name, splits, fold)
    features = splits["train"].features
    content, label = _content_column(features, name), _label_column(features, label_column, name)
    sound = _is_sound(splits["train"], content)
    found = {split: splits[split][label][:] for split in PARTS if split in splits}
    for split, values in found.items():
        if not values:
            raise DataError(f"{_title(split, name)} has no rows: add some, or remove it")
    classes = _classes(features[label], chain.from_iterable(found.values()))
    rows = {
        split: _rows(splits[split], content, sound, values, classes, _title(split, name))
        for split, values in found.items()
    }
    return Source(rows["train"], rows.get("test"), tuple(classes.values()), sound)


def _check_no_fold(name: str, fold: Fold | None) -> None:
    if fold is not None:
        raise DataError(
            f"{name!r} has no columns to split by, so fold={fold.index} cannot be made: put it "
            f"into Parquet files with a column {fold.column!r}, or leave fold out"
        )


def _check_is_not_own(name: str, root: object, label_column: str | None) -> None:
    """Refuse arguments for data of the user, where the name is that of the embedded data."""
    given = {"root": root, "label_column": label_column}
    if used := [argument for argument, value in given.items() if value is not None]:
        raise DataError(
            f"{name!r} is the data set of scikit-learn, which takes no {' and no '.join(used)}: "
            "leave that out, or give your own data set another name"
        )


def _check_train_split(name: str, splits: Iterable[Any]) -> None:
    if "train" not in splits:
        raise DataError(
            f"{name!r} has no train split, only {_quoted(map(str, splits))}: add one as train"
        )


def _digits() -> Source:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]
    rows = Rows(images.__getitem__, digits.target, np.arange(len(images)), "'digits'")
    parts: Any = train_test_split(rows.rows, test_size=0.2, random_state=0, stratify=digits.target)
    train, test = map(rows.take, parts)
    return Source(train, test, tuple("0123456789"))


def _existing_folder(name: str, root: Path) -> Path:
    folder = root / name
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {str(folder)!r}: put {LAYOUT} there, set another root (or "
            f"DIFFSTRIDE_DATA), or set neither to load {name!r} from the Hugging Face Hub"
        )
    return folder


def _folder_of_path(name: str) -> Path | None:
    """The folder that a name stands for if it is a path: `datasets` would read it its own way."""
    folder = expand_home(name)
    return folder if "/" in name and folder.is_dir() else None


def _from_class_folders(name: str, folder: Path) -> Source:
    # Not by the image folders of `datasets`, which leave out what they cannot open or do not know,
    # and take the innermost folder for the class.
    parts = {part: find_files(folder / part) for part in PARTS if (folder / part).exists()}
    _check_train_split(name, parts)
    classes = sorted(set().union(*parts.values()))
    if len(classes) < 2:
        raise DataError(f"{name!r} has files of {_quoted(classes)} only: add a second class")
    rows = {
        part: _rows_of_files([found.get(each, []) for each in classes], _title(part, name))
        for part, found in parts.items()
    }
    sound = any(map(_names_sound, chain.from_iterable(parts["train"].values())))
    return Source(rows["train"], rows.get("test"), tuple(classes), sound)


def _rows_of_files(paths: Sequence[Sequence[str]], title: str) -> Rows:
    """Rows of the files of each class."""
    files = list(chain.from_iterable(paths))
    labels = np.repeat(np.arange(len(paths)), list(map(len, paths)))
    order = _order(labels)
    return Rows(partial(_name_files, files), labels[order], order, title)


def _name_files(files: Sequence[str], rows: np.ndarray) -> Iterator[Any]:
    return ({"bytes": None, "path": files[row]} for row in rows)


def _title(part: str, name: str) -> str:
    return f"the {part} split of {name!r}"


def _from_folder(folder: Path) -> "DatasetDict":
    from datasets import load_dataset

    check_files(folder)
    if not any(folder.rglob("*.parquet")):
        # By `datasets`, files would be left out, and names of files taken for splits.
        raise DataError(
            f"{str(folder)!r} has no Parquet files, and no folders train and test of classes: "
            f"expected {LAYOUT}; move folders of classes into {folder / 'train'}"
        )
    try:
        _check_parquet(folder)
        return load_dataset(str(folder))
    except DataError:
        raise
    except Exception as error:  # the readers of the formats raise many types
        raise DataError(
            f"cannot read {str(folder)!r} ({first_line(error)}): expected {LAYOUT}"
        ) from error


def _check_parquet(folder: Path) -> None:
    """Refuse files with different class names: `datasets` would use those of the first file.

    Raises:
        DataError: two files have different class names, or another order of them, or a file has no
            rows.
    """
    from datasets import ClassLabel, Features
    from pyarrow import parquet

    first: dict[str, tuple[Path, list[str]]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        if not parquet.read_metadata(file).num_rows:
            raise DataError(f"{file} has no rows: add some, or remove the file")
        for column, feature in Features.from_arrow_schema(parquet.read_schema(file)).items():
            if isinstance(feature, ClassLabel):
                other, names = first.setdefault(column, (file, feature.names))
                if names != feature.names:
                    raise DataError(
                        f"the classes of column {column!r} are {_abridged(feature.names)} in "
                        f"{file}, but {_abridged(names)} in {other}: write both files with the "
                        "same class names in the same order"
                    )


def _abridged(names: Sequence[str]) -> str:
    return _quoted(names[:5]) + (", …" if len(names) > 5 else "")


def _from_hub(name: str) -> "DatasetDict":
    from datasets import load_dataset

    hub_name = HUB_NAMES.get(name, name)
    if "/" not in hub_name:
        raise DataError(
            f"unknown data set {name!r}: expected {_quoted(('digits', *HUB_NAMES))}, 'owner/name' "
            "on the Hugging Face Hub, or a folder name together with root or DIFFSTRIDE_DATA"
        )
    try:
        return load_dataset(hub_name)
    except ConnectionError as error:
        raise DataError(
            f"cannot reach the Hugging Face Hub for {hub_name!r} ({first_line(error)}): without "
            f"a network put {LAYOUT} into FOLDER/{name} and pass root='FOLDER' or set "
            "DIFFSTRIDE_DATA=FOLDER, or copy a filled cache of `datasets` (HF_HOME)"
        ) from error
    except Exception as error:  # the Hub's client and the readers raise many types
        raise DataError(
            f"cannot load {hub_name!r} from the Hugging Face Hub ({first_line(error)}): check the "
            "name at https://huggingface.co/datasets, or use a local copy with root='FOLDER'"
        ) from error


def _content_column(features: "Features", name: str) -> str:
    from datasets import Audio, Image

    for column, feature in features.items():
        encoded = isinstance(feature, dict) and "bytes" in feature
        if encoded or isinstance(feature, Image | Audio):
            return column
    raise DataError(
        f"{name!r} has no column of images or sounds, only {_quoted(features)}: add one"
    )


def _is_sound(split: "HubDataset", column: str) -> bool:
    from datasets import Audio, Image

    feature = split.features[column]
    if isinstance(feature, Image | Audio) or not len(split):
        return isinstance(feature, Audio)
    return _names_sound(split[0][column].get("path"))


def _names_sound(path: str | None) -> bool:
    return path is not None and path.lower().endswith(SOUND_SUFFIXES)


def _label_column(features: "Features", asked: str | None, name: str) -> str:
    from datasets import ClassLabel, Value

    for column in (asked,) if asked else LABEL_COLUMNS:
        if isinstance(features.get(column), ClassLabel | Value):
            return column
    raise DataError(
        f"{name!r} has no column of labels, only {_quoted(features)}: pass label_column=NAME; a "
        "folder of files needs a subfolder for each of two or more classes"
    )


def _classes(feature: Any, values: Iterable[Any]) -> dict[Any, str]:
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        return dict(enumerate(feature.names))
    return {value: str(value) for value in sorted(set(values) - {None})}


def _rows(
    split: "HubDataset",
    column: str,
    sound: bool,
    values: list[Any],
    classes: dict[Any, str],
    title: str,
) -> Rows:
    from datasets import Audio, Image

    positions = {value: position for position, value in enumerate(classes)}
    for row, value in enumerate(values):
        if value not in positions:
            raise DataError(f"row {row} of {title} has the label {value!r}: correct or remove it")
    labels = np.array([positions[value] for value in values], dtype=np.int64)
    kind = Audio(decode=False) if sound else Image(decode=False)
    encoded = split.select_columns(column).cast_column(column, kind)
    order = _order(labels)
    return Rows(partial(_take_column, encoded, column), labels[order], order, title)


def _take_column(encoded: "HubDataset", column: str, rows: np.ndarray) -> Iterator[Any]:
    # In batches: row by row, `datasets` would take as long as the decoding.
    batches: Any = encoded.select(rows).iter(batch_size=1000)
    return chain.from_iterable(batch[column] for batch in batches)


def _order(labels: np.ndarray) -> np.ndarray:
    """The order of rows: shuffled if they are sorted by class, as those of folders are."""
    # A few first or last rows would otherwise show a single class.
    order = np.arange(len(labels))
    is_sorted = bool((np.diff(labels) >= 0).all())
    return np.random.default_rng(0).permutation(order) if is_sorted else order


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
