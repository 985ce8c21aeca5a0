"""Where the files of a grid lie: its rows, and the pages and pictures that a report makes."""

from dataclasses import dataclass
from pathlib import Path

HOLDOUT = "holdout"


@dataclass(frozen=True)
class Places:
    """The folder of the files of rows, the pages with tables, and the folder of pictures."""

    results: Path = Path("results")
    pages: tuple[Path, ...] = (Path("README.md"), Path("docs/results.md"))
    pictures: Path = Path("docs/images")


def check_results(folder: Path, run: str, holdout: int) -> None:
    """Refuse rows of images held out of training beside others, which no column would tell apart.

    Args:
        folder: where the rows are: such of held-out images if it is named ``holdout``.
        run: name of one of the runs.
        holdout: how many images it holds out.

    Raises:
        ValueError: folder and run are not of one kind.

    >>> check_results(Path("results/holdout"), "mine", 5000)
    >>> check_results(Path("results"), "mine", 5000)
    Traceback (most recent call last):
    ...
    ValueError: mine has data.load_datasets.holdout = 5000, but its rows belong to results, which is
    for tests on test images: name another folder with --results or table.grid.results, one that is
    called 'holdout'
    """
    if (folder.resolve().name == HOLDOUT) != bool(holdout):
        kind, other = ("test", "one") if holdout else ("held-out", "none")
        raise ValueError(
            f"{run} has data.load_datasets.holdout = {holdout}, but its rows belong to {folder}, "
            f"which is for tests on {kind} images: name another folder with --results or "
            f"table.grid.results, {other} that is called {HOLDOUT!r}"
        )
