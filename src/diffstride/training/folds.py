"""Splits a data set anew by groups of rows, such as the speakers, so that none is on both sides."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from diffstride._wording import counted
from diffstride.training.data_error import DataError

if TYPE_CHECKING:
    from datasets import Dataset as HubDataset


class Fold(NamedTuple):
    """One fold of ``count``, counted from 0, by the groups that a column names."""

    index: int
    count: int
    column: str


def check_fold(fold: int | None, folds: int, group_column: str | None) -> Fold | None:
    """The fold that three arguments of `load_datasets` stand for; None without a fold.

    Raises:
        ValueError: an argument is out of its range, or the column is missing.
    """
    if fold is None:
        return None
    if folds < 2 or not 0 <= fold < folds:
        raise ValueError(
            f"fold must be from 0 to below folds, which is at least 2, but got fold={fold} with "
            f"folds={folds}"
        )
    if group_column is None:
        raise ValueError(
            f"fold={fold} needs group_column, the name of the column whose values are kept together"
        )
    return Fold(fold, folds, group_column)


def split_by_group(
    name: str, splits: Mapping[Any, "HubDataset"], fold: Fold
) -> dict[str, "HubDataset"]:
    """All rows of the train and test splits, as a fold that tests on some groups.

    The groups are sorted and dealt out in turn: fold ``k`` tests on the groups ``k``,
    ``k + count``, ``k + 2 count``, …

    Raises:
        DataError: there is no such column, it is empty in a row, or there are fewer groups than
            folds.
    """
    from datasets import concatenate_datasets

    rows = concatenate_datasets([splits[part] for part in ("train", "test") if part in splits])
    if fold.column not in rows.column_names:
        raise DataError(
            f"{name!r} has no column {fold.column!r}, only "
            f"{', '.join(map(repr, rows.column_names))}: pass group_column=NAME"
        )
    groups = list(rows[fold.column])
    if None in groups:
        raise DataError(
            f"row {groups.index(None)} of {name!r} has no {fold.column!r}: correct or remove it"
        )
    known = sorted(set(groups))
    if len(known) < fold.count:
        raise DataError(
            f"{name!r} has {counted(len(known), 'group')} in column {fold.column!r}, too few for "
            f"folds={fold.count}: use fewer folds"
        )
    tested = set(known[fold.index :: fold.count])
    chosen = [row for row, group in enumerate(groups) if group in tested]
    others = [row for row, group in enumerate(groups) if group not in tested]
    return {"train": rows.select(others), "test": rows.select(chosen)}
