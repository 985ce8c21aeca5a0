"""The picture and the table of guessed strides, from synthetic rows."""

import re
from pathlib import Path

import pytest
from matplotlib.image import imread
from test_results import row

from experiments import table
from experiments.averages import average_seeds
from experiments.report import fill_page
from experiments.results import append_row
from experiments.runner import GridRunner
from experiments.strip_plot import plot_strips, strips
from experiments.tables import starts_table

GUESSES = 16
PAGE = Path(__file__).parents[1] / "docs" / "guesses.md"


def guess(number, dataset="cifar10", **changes):
    """The guess of this rank from the worst, 0; accuracies are 80.0, 80.5, …"""
    options = {"config": "guesses", "pooling": "spectral", "order": "before", "dataset": dataset}
    start = {"strides_start": [1, 1, 2, 2, 2 + number / 10], "test_accuracy": 80 + number / 2}
    return row(**options | start | changes)


def learned(number, accuracy, **changes):
    ends = {"strides_end": {"blocks.1.0.pooling": [1.5, 1.7]}, "test_accuracy": accuracy}
    options = {"pooling": "diffstride", "edge": "stopband", "budget": 35.6e6}
    return guess(number, **options | ends | changes)


@pytest.fixture
def rows():
    guesses = [guess(i, dataset) for dataset in ("cifar10", "cifar100") for i in range(GUESSES)]
    seeds = [learned(0, 87.0), learned(0, 88.0, seed=1)]
    return [*guesses, *seeds, learned(15, 88.5), learned(7, 86.0), learned(3, 85.0)]


def test_starts_are_named_by_the_rank_of_their_guess(rows):
    first, second = strips(average_seeds(rows))
    assert (first.dataset, second.dataset) == ("CIFAR-10", "CIFAR-100")
    assert first.guesses == [80 + i / 2 for i in range(GUESSES)]
    assert first.upper_quartile == 80 + 0.75 * 7.5
    found = {each.start: each.accuracy for each in first.learned}
    assert found == {
        "from the worst guess": 87.5,
        "from the best guess": 88.5,
        "from the median guess": 86.0,
        "from guess 13 of 16": 85.0,
    }
    spreads = {each.start: each.spread for each in first.learned}
    assert spreads["from the worst guess"] == pytest.approx(0.5**0.5)
    assert second.learned == []


def test_learned_strides_from_elsewhere_are_named_so(rows):
    (first, _) = strips(average_seeds([*rows, learned(99, 84.0)]))
    assert "from a guess not trained" in {each.start for each in first.learned}


def test_picture_has_a_dot_for_each_guess_and_a_label_for_each_start(rows, tmp_path):
    figure = plot_strips(strips(average_seeds(rows)), tmp_path / "guesses.png")
    assert imread(tmp_path / "guesses.png").shape[1] == 720
    for panel, count in zip(figure.axes, (4, 0), strict=True):
        dots, line = panel.lines[:2]
        assert list(dots.get_ydata()) == [80 + i / 2 for i in range(GUESSES)]
        assert list(line.get_ydata()) == [85.625, 85.625]
        assert len(panel.containers) == count
        labels = {text.get_text() for text in panel.texts}
        assert "75th percentile,\nof 16 guesses" in labels
        assert len(labels) == 1 + count
    assert "learned,\nfrom the best guess" in {text.get_text() for text in figure.axes[0].texts}


def test_starts_are_compared_with_their_guess(rows):
    lines = starts_table(average_seeds([*rows, learned(99, 84.0)])).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [each[-1] for each in cells] == ["+7.50", "+3.50", "+2.50", "+1.00"]
    assert cells[0][:3] == ["CIFAR-10", "1,1,2,2,2", "guesses"]
    assert cells[0][3].startswith("80.00 % (1), ")
    assert cells[0][4].startswith("87.50 ± 0.71 % (2), ")


def test_report_writes_picture_and_table(rows, tmp_path, monkeypatch, capsys):
    for each in rows:
        append_row(tmp_path / "results" / "runs.jsonl", each)
    page = tmp_path / "guesses.md"
    page.write_text(PAGE.read_text())
    arguments = ["--gin_config=guesses.gin", "--report", f"--results={tmp_path / 'results'}"]
    assert table.main([*arguments, "--pages", str(page), f"--pictures={tmp_path / 'images'}"]) == 0
    assert f"wrote {tmp_path / 'images' / 'guesses.png'}" in capsys.readouterr().out
    assert (tmp_path / "images" / "guesses.png").exists()
    text = page.read_text()
    assert "(images/guesses.png)" in text
    starts, every = text.split("## All guesses")
    assert len(re.findall(r"^\| CIFAR-10 .* \| \+", starts, re.MULTILINE)) == 4
    lines = re.findall(r"^\| CIFAR-10 .*$", every, re.MULTILINE)
    assert len(lines) == GUESSES + 4
    accuracies = [float(re.findall(r"([\d.]+)(?: ±| %)", line)[0]) for line in lines]
    assert accuracies == sorted(accuracies, reverse=True)
    worst = next(line for line in lines if "87.50 ± 0.71 %" in line)
    assert "DiffStride" in worst
    assert "1.50 x 1.70" in worst
    assert worst.endswith("| 2 |")
    recipes = {run.config for run in GridRunner(("guesses.gin",)).runs.values()}
    assert fill_page(text, rows, recipes) == text


def test_grid_of_guesses_reports_into_its_own_page():
    paths = GridRunner(("guesses.gin",)).paths
    assert [str(page) for page in paths.pages] == ["docs/guesses.md"]
    assert str(paths.pictures / "guesses.png") == "docs/images/guesses.png"
