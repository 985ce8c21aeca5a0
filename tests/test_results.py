"""Tables, pictures and pages that a report makes of the results."""

import json
import re
from functools import partial
from pathlib import Path

import gin
import matplotlib.image
import pytest
from conftest import PUBLISHED

from diffstride import pooling, resnet
from diffstride.training.network_cost import measure_cost
from experiments import grid_plots, published, report, table
from experiments.averages import average_seeds
from experiments.grid import DEFAULT_PATHS
from experiments.markdown import table_names
from experiments.report import COSTS, NO_RESULTS, STRIDES, draw_pictures, fill_page, table_text
from experiments.results import append_row, initial_strides, read_rows

ROOT = Path(__file__).parents[1]
PAGES = {ROOT / page: ROOT / "results" for page in DEFAULT_PATHS.pages}
PAGES[ROOT / "docs" / "exploration.md"] = ROOT / "results" / "holdout"
PAGES[ROOT / "docs" / "guesses.md"] = ROOT / "results" / "guesses"
PAGES[ROOT / "docs" / "sounds.md"] = ROOT / "results" / "fsdd"
CHOSEN = {
    "config": "small",
    "dataset": "cifar10",
    "pooling": "strided",
    "edge": None,
    "budget": None,
    "order": None,
    "strides_start": [1, 1, 2, 2, 2],
    "seed": 0,
    "fold": None,
    "width": 16,
    "epochs": 10,
}
MEASURED = {
    "strides_end": None,
    "test_accuracy": 87.0,
    "multiply_adds_start": 35_000_000,
    "multiply_adds_end": 35_000_000,
    "seconds": 600.0,
    "precision": "32-true",
    "threads": 1,
    "commit": None,
    "torch": "2.9.0",
}
LEARNED = {"pooling": "diffstride", "edge": "stopband", "order": "before"}
HELD = LEARNED | {"budget": "strided"}
TWO_PAGES = ["README.md", "docs/results.md"]
LONG = {"strides_start": [1, 1, 3, 2, 3]}


def row(**changes):
    return {**CHOSEN, **MEASURED, **changes}


def learned(first, second, **changes):
    ends = {"stem.pooling": [1.0, 1.0], "blocks.1.0.pooling": [first, second]}
    return row(**LEARNED, strides_end=ends, **changes)


@pytest.fixture
def rows():
    accuracies = {"strided": (87.0, 87.2, 87.7), "max": (87.5, 86.5), "blur": (87.1,)}
    found = [
        row(pooling=pooling, order=None if pooling == "strided" else "before", **each)
        for pooling, values in accuracies.items()
        for each in ({"seed": s, "test_accuracy": value} for s, value in enumerate(values))
    ]
    found.append(row(**LONG, test_accuracy=85.0, multiply_adds_end=21_000_000))
    cost = {"multiply_adds_start": 36_000_000, "multiply_adds_end": 60_000_000}
    found.append(learned(1.5, 1.6, test_accuracy=88.0, **cost))
    cost["multiply_adds_end"] = 64_000_000
    found.append(learned(1.7, 1.6, test_accuracy=88.4, seed=1, **cost))
    held = {**learned(1.9, 2.1), **HELD, "test_accuracy": 87.75}
    return [*found, {**held, "multiply_adds_start": 34_900_000, "multiply_adds_end": 34_900_000}]


# Averages


def test_means_and_deviations_are_over_the_seeds(rows):
    entries = {(entry.label, entry.start): entry for entry in average_seeds(rows)}
    strided = entries["strided convolution", "1,1,2,2,2"]
    assert strided.count == 3
    assert strided.accuracy == pytest.approx(87.3)
    assert strided.spread == pytest.approx(0.13**0.5)  # (0.09 + 0.01 + 0.16) / 2
    free = entries["DiffStride, stopband", "1,1,2,2,2"]
    assert free["multiply_adds_end"] == 62_000_000
    assert free.learned == {"stem.pooling": [1.0, 1.0], "blocks.1.0.pooling": [1.6, 1.6]}
    assert entries["blur pooling", "1,1,2,2,2"].spread is None
    assert entries["DiffStride, stopband, at the strided cost", "1,1,2,2,2"].count == 1


@pytest.mark.parametrize("key", [key for key in CHOSEN if key != "seed"])
def test_rows_with_other_options_are_another_entry(key):
    other = {**row(), key: {"strides_start": [2], "pooling": "max", "budget": 7}.get(key, "7")}
    assert len(average_seeds([row(), other])) == 2
    assert len(average_seeds([row(), row(seed=1)])) == 1


def test_folds_are_averaged_and_kept_apart_from_the_split_of_the_data():
    runs = [row(fold=fold, test_accuracy=float(fold)) for fold in (0, 1, 2)]
    (split,), (folds,) = average_seeds([row()]), average_seeds(runs)
    assert (folds.accuracy, folds.spread, folds.dataset) == (1.0, 1.0, f"{split.dataset}, folds")
    assert len(average_seeds([row(), *runs])) == 2


def test_folds_have_columns_and_their_spread_is_that_of_the_seeds():
    runs = [
        row(fold=fold, seed=seed, test_accuracy=80.0 + 5 * fold + seed)
        for fold in (0, 1)
        for seed in (0, 1, 2)
    ]
    part = [row(pooling="max", order="before", fold=0, test_accuracy=99.0)]
    header, _, whole, missing = table_text("folds", [*runs, *part, row()]).splitlines()[-4:]
    assert header.count("fold ") == 2
    assert "| 81.0 | 86.0 | 83.5 ± 1.0 % | 6 |" in whole
    assert "| 99.0 | – | – | 1 |" in missing


def test_files_keep_no_fold_of_runs_without_one(tmp_path):
    path = tmp_path / "runs.jsonl"
    append_row(path, row())
    append_row(path, row(fold=2))
    first, second = map(json.loads, path.read_text().splitlines())
    assert "fold" not in first
    assert second["fold"] == 2
    assert [each["fold"] for each in read_rows(tmp_path)] == [None, 2]


def test_runs_with_other_layers_have_no_average():
    other = learned(1.5, 1.6, seed=1)
    other["strides_end"] = {"stem.pooling": [1.0, 1.0]}
    (entry,) = average_seeds([learned(1.5, 1.6), other])
    with pytest.raises(ValueError, match=r"runs of 'small', DiffStride, .* differ in their layers"):
        _ = entry.learned


def test_labels_name_the_options():
    options = [
        ({"edge": "passband", "order": "after"}, "DiffStride, passband, after the convolution"),
        ({"budget": 0.5}, "DiffStride, stopband, at 0.5 of its cost"),
        ({"budget": 35.05e6}, "DiffStride, stopband, within 35.05 M"),
        ({"pooling": "reference", "edge": "passband"}, "the published layer"),
    ]
    for changes, label in options:
        assert average_seeds([row(**{**LEARNED, **changes})])[0].label == label


def test_equal_numbers_give_one_entry():
    spelled = row(strides_start=[1.0, 1.0, 2.0, 2.0, 2.0], seed=1)
    (entry,) = average_seeds([row(), spelled])
    assert entry.start == "1,1,2,2,2"
    (entry,) = average_seeds([spelled])
    assert entry.start == "1,1,2,2,2"
    assert entry.guessed
    budgets = (35_050_000, 35.05e6)
    held = [row(**LEARNED, seed=seed, budget=budget) for seed, budget in enumerate(budgets)]
    assert [entry.count for entry in average_seeds(held)] == [2]


def test_equal_labels_of_different_entries_are_refused():
    close = [row(**LEARNED, budget=budget) for budget in (35_050_000, 35_050_001)]
    with pytest.raises(
        ValueError, match="2 different entries have the label CIFAR-10, 1,1,2,2,2, Dif"
    ):
        table_text("details", close)


# Tables


def test_strides_may_differ_between_the_axes():
    (entry,) = average_seeds([row(strides_start=[1, 1.03, [2.46, 2.5]])])
    assert entry.start == "1,1.03,2.46x2.5"
    assert entry.published is None


def test_summary_has_a_column_for_each_choice_of_initial_strides(rows):
    assert table_text("summary small", rows).splitlines()[2:] == [
        "Recipe `small`, width 16, 10 epochs:",
        "",
        "| data set | pooling | from strides 1,1,2,2,2 | from strides 1,1,3,2,3 "
        "| lost between them | published, width 64, 400 epochs |",
        "| --- | --- | --- | --- | --- | --- |",
        "| CIFAR-10 | strided convolution | 87.30 ± 0.36 % (3), 35.0 M "
        "| 85.00 % (1), 35.0 M to 21.0 M | 2.30 "
        "| 91.06 ± 0.04 %, 555 M; 89.21 ± 0.27 %, 325 M |",
        "| CIFAR-10 | DiffStride, stopband | 88.20 ± 0.28 % (2), 36.0 M to 60.0–64.0 M "
        "| – | – | – |",
        "| CIFAR-10 | max pooling | 87.00 ± 0.71 % (2), 35.0 M | – | – | – |",
        "| CIFAR-10 | blur pooling | 87.10 % (1), 35.0 M | – | – | – |",
        "| CIFAR-10 | DiffStride, stopband, at the strided cost | 87.75 % (1), 34.9 M "
        "| – | – | – |",
    ]


@pytest.mark.parametrize("kind", ["summary", "details"])
def test_recipes_in_one_table_have_different_labels(kind):
    lines = table_text(f"{kind} a; b", [row(config="a"), row(config="b", test_accuracy=80.0)])
    shown = [line for line in lines.splitlines() if line.startswith("| CIFAR-10")]
    assert len(shown) == 2
    assert "| strided convolution |" in shown[0]
    assert "87.00 %" in shown[0]
    assert "| strided convolution (b) |" in shown[1]
    assert "80.00 %" in shown[1]


def test_labels_of_trials_name_width_and_epochs():
    kinds = [row(), row(width=32), row(epochs=20), row(config="other")]
    block = table_text("trials", kinds)
    labels = {line.split(" | ")[3] for line in block.splitlines() if line.startswith("| small")}
    assert labels == {
        f"strided convolution ({notes})"
        for notes in ("width 16, 10 epochs", "width 32, 10 epochs", "width 16, 20 epochs")
    }
    assert "| other | CIFAR-10 | 1,1,2,2,2 | strided convolution |" in block


def ends_at(costs, **changes):
    """Runs of one kind that start at 35.6 M and end at these costs in millions."""
    return [
        row(
            **LEARNED | changes,
            seed=seed,
            strides_end={"pool": [1.5 + seed / 4, 2.0 + seed / 100]},
            multiply_adds_start=35_600_000,
            multiply_adds_end=cost * 1_000_000,
        )
        for seed, cost in enumerate(costs)
    ]


def test_costs_that_differ_are_shown_as_a_range():
    block = table_text("details", ends_at([77.7, 56.5]))
    assert "| 35.6 M to 56.5–77.7 M | 1.62 ± 0.18 x 2.00 |" in block
    legend = block.splitlines()[0]
    assert (
        "Where the MACs of the seeds differ by more than 2 %, the table shows their range."
        in legend
    )
    assert "Learned strides are means, ± standard deviation if it is above 0.05." in legend
    for costs in ([56.5], [56.5, 57.0]):
        block = table_text("details", ends_at(costs))
        assert f"| 35.6 M to {sum(costs) / len(costs):.1f} M |" in block
        assert "more than 2 %" not in block


def test_equal_cost_requires_every_run_to_be_near():
    strided = row(multiply_adds_start=50_000_000, multiply_adds_end=50_000_000)
    for costs, count in (([20, 80], 1), ([49.5, 50.5], 2)):
        block = table_text("equal-cost", [strided, *ends_at(costs)])
        assert block.count("| CIFAR-10 |") == count


def test_minutes_are_averaged_for_each_number_of_threads():
    runs = [row(seed=0, threads=1), row(seed=1, threads=2, seconds=300.0), row(seed=2, threads=1)]
    assert "| 10.0 (1), 5.0 (2) |" in table_text("details", runs)


def test_legends_describe_only_what_the_tables_show(rows):
    def legend(name):
        return table_text(name, rows).splitlines()[0]

    assert legend("summary").startswith("Test accuracy after the last epoch in percent, mean")
    assert "(number of runs)" in legend("summary")
    for name in ("details", "equal-cost", "trials"):  # have a column for these
        assert "number of runs" not in legend(name)
    assert legend("trials").startswith("Accuracy on held-out training images after the")
    assert "Learned strides" not in legend("summary")


def test_equal_cost_compares_learned_with_the_best_guessed_strides(rows):
    rows.append(row(**LONG, pooling="blur", order="before", test_accuracy=86.0))  # at 35 M
    lines = table_text("equal-cost", rows).splitlines()[6:]
    assert lines == [
        "| CIFAR-10 | 1,1,2,2,2 | strided convolution | 87.30 ± 0.36 % | 3 | 35.0 M |  |",
        "| CIFAR-10 | 1,1,2,2,2 | max pooling | 87.00 ± 0.71 % | 2 | 35.0 M |  |",
        "| CIFAR-10 | 1,1,2,2,2 | blur pooling | 87.10 % | 1 | 35.0 M |  |",
        "| CIFAR-10 | 1,1,3,2,3 | blur pooling | 86.00 % | 1 | 35.0 M |  |",
        "| CIFAR-10 | 1,1,2,2,2 | DiffStride, stopband, at the strided cost "
        "| 87.75 % | 1 | 34.9 M | +0.45 |",
        "| CIFAR-10 | 1,1,3,2,3 | strided convolution | 85.00 % | 1 | 35.0 M to 21.0 M |  |",
    ]


def test_equal_cost_groups_strided_networks_of_the_same_cost(rows):
    rows = [each for each in rows if each["strides_start"] == [1, 1, 2, 2, 2]]
    before = table_text("equal-cost", rows).splitlines()
    uneven = row(strides_start=[1, 1, [3, 2], 1, 3], test_accuracy=80.0)
    after = table_text("equal-cost", [*rows, uneven]).splitlines()
    assert sorted(after) == sorted(
        [*before, "| CIFAR-10 | 1,1,3x2,1,3 | strided convolution | 80.00 % | 1 | 35.0 M |  |"]
    )


def test_equal_cost_includes_entries_near_the_second_of_two_similar_networks():
    costs = {"multiply_adds_start": 35_600_000, "multiply_adds_end": 35_600_000}
    dearer = {"multiply_adds_start": 36_200_000, "multiply_adds_end": 36_200_000}
    found = [
        row(),
        row(strides_start=[1, 1, 3, 1, 3], **costs),
        row(pooling="spectral", order="before", test_accuracy=88.0, **dearer),
    ]
    lines = table_text("equal-cost", found).splitlines()[6:]
    assert [line.split(" | ")[2] for line in lines] == [
        "strided convolution",
        "strided convolution",
        "spectral pooling",
    ]


def test_equal_cost_shows_no_difference_without_guessed_strides():
    alone = [row(strides_start=[1, 1, [2.5, 2], 2, 2]), learned(1.5, 1.5)]
    (*_, first, second) = table_text("equal-cost", alone).splitlines()
    assert first.endswith("| 1 | 35.0 M |  |")
    assert second.endswith("| 1 | 35.0 M |  |")


def test_equal_cost_compares_recipes_that_are_named_together(rows):
    found = {"config": "small, found", "pooling": "spectral", "order": "before"}
    rows.append(row(**found, strides_start=[1.03, 1, [2.46, 2.5], 2, 2], test_accuracy=88.5))
    block = table_text("equal-cost small; small, found", rows)
    assert "\nRecipes `small` and `small, found`, width 16, 10 epochs:\n" in block
    line = "| spectral pooling (small, found) | 88.50 % | 1 | 35.0 M | +1.20 |"
    assert f"| CIFAR-10 | 1.03,1,2.46x2.5,2,2 {line}" in block.splitlines()
    assert "spectral" not in table_text("equal-cost small", rows)


def test_details_show_all_values(rows):
    lines = table_text("details", rows).splitlines()
    assert len(lines) == 6 + 6
    assert (
        "| CIFAR-10 | 1,1,2,2,2 | DiffStride, stopband | 88.20 ± 0.28 % | 2 "
        "| 36.0 M to 60.0–64.0 M | 1.00 x 1.00, 1.60 ± 0.14 x 1.60 | 10.0 (1) |"
    ) in lines


def test_recipes_have_separate_tables_and_are_selected_by_name(rows):
    rows = [*rows, row(config="fast", epochs=20, width=None)]
    block = table_text("details", rows)
    assert re.findall("^Recipe .*", block, re.MULTILINE) == [
        "Recipe `fast`, 20 epochs:",
        "Recipe `small`, width 16, 10 epochs:",
    ]
    assert table_text("summary fast", rows).count("CIFAR-10") == 1
    assert table_text("summary slow", rows) == NO_RESULTS


def test_trials_sort_all_recipes_by_accuracy(rows):
    rows = [*rows, row(config="narrow window", test_accuracy=91.0)]
    lines = table_text("trials", rows).splitlines()
    assert len(lines) == 4 + 7
    assert lines[2].startswith("| recipe | data set | strides | pooling | accuracy | runs |")
    assert lines[4].startswith(
        "| narrow window | CIFAR-10 | 1,1,2,2,2 | strided convolution | 91.00"
    )
    found = [float(re.search(r"([\d.]+)(?: ± [\d.]+)? %", line)[1]) for line in lines[4:]]
    assert found == sorted(found, reverse=True)


def test_pages_change_only_between_marks(rows):
    page = "a\n<!-- table summary small: begin (by the table) -->\nold\n"
    page += "<!-- table summary small: end -->\nb\n<!-- table details: begin -->\n"
    page += "<!-- table details: end -->\n"
    filled = fill_page(page, rows)
    assert filled.startswith("a\n<!-- table summary small: begin (by the table) -->\n\nTest acc")
    assert "\n\n<!-- table summary small: end -->\nb\n<!-- table details: begin -->\n" in filled
    assert "old" not in filled
    assert fill_page(filled, rows) == filled
    assert filled.count("| CIFAR-10 |") == 5 + 6


def test_only_existing_pictures_are_linked(rows):
    both = "![Accuracy against cost](images/accuracy_against_cost.png)\n\n"
    both += "![Learned strides](images/learned_strides.png)"
    assert table_text("pictures small", rows) == both
    assert table_text("pictures", [row()]) == both.splitlines()[0]
    assert table_text("pictures slow", rows) == NO_RESULTS


def test_links_to_pictures_are_relative_to_the_page(folder, rows):
    record(rows)
    Path("docs/mine").mkdir()
    Path("docs/mine/page.md").write_text(place("pictures small"))
    assert run_report("--pages", "README.md", "docs/mine/page.md", "--pictures=docs/figures") == 0
    assert f"(docs/figures/{COSTS})" in Path("README.md").read_text()
    assert f"(../figures/{STRIDES})" in Path("docs/mine/page.md").read_text()
    assert_picture(Path("docs/figures", COSTS))


def place(name, body="", end=None):
    return f"<!-- table {name}: begin -->\n{body}<!-- table {end or name}: end -->\n"


def test_unknown_table_is_refused():
    with pytest.raises(ValueError, match=r"there is no table 'sumary': expected one of summary, "):
        fill_page(place("sumary"), [])


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (place("summary", end="sumary"), "'<!-- table summary: begin -->' has no partner"),
        (place("summary").splitlines()[0], "'<!-- table summary: begin -->' has no partner"),
        (
            place("summary", place("details")[:30] + "\n"),
            "'<!-- table details: begin -->' has no",
        ),
        (
            place("summary smal"),
            "the table 'summary smal' names the recipe 'smal', .* one of 'small', 'to do'",
        ),
        (place("summary to do", "| a |\n"), "the table 'summary to do' is filled, but"),
    ],
)
def test_invalid_sections_are_refused(rows, page, message):
    with pytest.raises(ValueError, match=message):
        fill_page(place("details") + page, rows, {"to do"})


def test_filled_table_is_not_emptied(rows):
    empty = place("summary small")
    assert NO_RESULTS in fill_page(empty, [])
    assert NO_RESULTS in fill_page(fill_page(empty, []), [])
    with pytest.raises(ValueError, match="the table 'summary small' is filled"):
        fill_page(fill_page(empty, rows), [])
    assert NO_RESULTS in fill_page(place("summary to do"), rows, {"to do"})


def test_pages_show_one_set_of_pictures():
    recipes = report.recipes_in_pictures
    assert recipes([place("summary"), ""]) is None
    assert recipes([place("pictures"), ""]) == []
    assert recipes([place("pictures a; b"), place("pictures a; b")]) == ["a", "b"]
    with pytest.raises(ValueError, match="the pages ask for 'pictures a' and 'pictures b', but"):
        recipes([place("pictures a"), place("pictures b")])


# The report


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for page in map(Path, TWO_PAGES):
        page.parent.mkdir(exist_ok=True)
        page.write_text(place("details") + place("pictures small"))
    Path("grid.gin").write_text(
        "include 'cifar10_small.gin'\ntrain.train.num_epochs = 10\n"
        f"table.grid.pages = {TWO_PAGES}\n"
        "table.grid.config = 'small'\ntable.grid.groups = [{'dataset': 'cifar10', "
        "'pooling': ['strided', 'blur'], 'strides': [1, 1, 2, 2, 2]}]"
    )
    yield tmp_path
    gin.clear_config()


def run_report(*arguments):
    return table.main(["--gin_config=grid.gin", "--report", *arguments])


def record(rows):
    for number, each in enumerate(rows):
        append_row(Path(f"results/runs.{number % 2 + 1}-of-2.jsonl"), each)


def test_report_without_results_lists_the_missing_runs(folder, capsys):
    assert run_report() == 0
    printed = capsys.readouterr().out
    assert printed.startswith("No results yet")
    assert "6 of 6 runs are missing:\nsmall/cifar10-strided-11222-width16-epochs10-seed0" in printed
    assert "No results yet" in Path("README.md").read_text()
    assert not list(folder.glob("**/*.png"))


def test_report_of_some_runs_writes_pages_and_pictures(folder, rows, capsys):
    record(rows)
    Path("docs/results.md").unlink()
    assert run_report() == 0
    printed = capsys.readouterr().out
    assert "there is no page docs/results.md" in printed
    assert "2 of 6 runs are missing:\nsmall/cifar10-blur-before" in printed
    assert "87.30 ± 0.36 %" in Path("README.md").read_text()
    for name in (COSTS, STRIDES):
        assert f"wrote docs/images/{name}" in printed
        assert_picture(DEFAULT_PATHS.pictures / name)


def test_pictures_show_the_recipe_that_the_pages_name(folder, rows, monkeypatch):
    seen = []
    monkeypatch.setitem(report.DRAWN, "pictures", lambda rows, _: seen.extend(rows) or [])
    record([*rows, row(config="other")])
    text = Path("grid.gin").read_text().replace("'small'", "'other'")
    Path("grid.gin").write_text(text)
    assert run_report() == 0
    assert {each["config"] for each in seen} == {"small"}
    assert len(seen) == len(rows)


def test_report_without_a_section_for_pictures_draws_none(folder, rows, capsys):
    record(rows)
    Path("README.md").write_text(place("details"))
    assert run_report("--pages", "README.md", "--pictures", "elsewhere") == 0
    assert "no page has the mark <!-- table pictures RECIPE" in capsys.readouterr().out
    assert not list(folder.glob("**/*.png"))


def test_refused_report_writes_nothing(folder, rows, capsys):
    record(rows)
    before = Path("README.md").read_text()
    Path("docs/results.md").write_text(place("summary smal"))
    assert run_report() == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: docs/results.md: the table 'summary smal' names")
    assert Path("README.md").read_text() == before
    assert not list(folder.glob("**/.*.partial"))
    assert not list(folder.glob("**/*.png"))


def test_report_keeps_utf8_text_on_any_system(folder, rows, monkeypatch):
    def read(path, encoding="cp1252", errors=None):
        return path.read_bytes().decode(encoding)

    record(rows)
    text = f"± and – around it\n{place('details')}\nand below: ±\n"
    Path("README.md").write_bytes(text.encode())
    monkeypatch.setattr(Path, "read_text", read)
    assert run_report() == 0
    written = Path("README.md").read_bytes().decode()
    assert written.startswith("± and – around it\n")
    assert written.endswith("\nand below: ±\n")


def test_report_from_another_folder_keeps_the_tables(folder, rows, capsys):
    record(rows)
    assert run_report() == 0
    before = Path("README.md").read_text()
    assert run_report("--results=elsewhere") == 2
    assert "README.md: the table 'details' is filled, but" in (capsys.readouterr().err)
    assert Path("README.md").read_text() == before


def assert_picture(path):
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 300
    assert 0.005 < (pixels[..., :3] < 0.9).any(-1).mean() < 0.5  # neither blank nor all ink


@pytest.fixture
def drawn(monkeypatch):
    """What the functions that plot are given, and the figures they return."""
    calls = []

    def watch(plot):
        def watched(shown, path):
            calls.append((shown, plot(shown, path)))
            return calls[-1][1]

        monkeypatch.setattr(report, plot.__name__, watched)

    watch(grid_plots.plot_accuracy_against_cost)
    watch(grid_plots.plot_learned_strides)
    return calls


def test_labels_in_pictures_name_the_recipes_that_are_not_the_usual_one(tmp_path, drawn):
    draw_pictures([row(pooling="max"), row(), row(config="other")], tmp_path)
    ((points, _),) = drawn
    assert sorted(point.label for point in points) == [
        "max pooling",
        "strided convolution",
        "strided convolution (other)",
    ]


def test_costs_that_differ_get_an_error_bar(tmp_path, drawn):
    draw_pictures([*ends_at([20, 80]), row()], tmp_path)
    (axes,) = drawn[0][1].axes
    (bar,) = (each for each in axes.containers if each.has_xerr)
    line, _ = bar.lines[2]  # and that of the accuracies
    assert line.get_segments()[0].tolist() == [[20.0, 87.0], [80.0, 87.0]]


def test_strides_are_drawn_from_their_start(tmp_path, drawn):
    learned = {"blocks.1.0.pooling": [1.5, 2.0], "other": [1.0, 1.0]}
    draw_pictures([row(**LEARNED | {"strides_end": learned})], tmp_path)
    (run,) = drawn[1][0]
    assert run.start == {"blocks.1.0.pooling": (2, 2)}


@pytest.mark.parametrize(
    ("start", "names", "found"),
    [
        ([1, 1, 3, 2, 3], ["stem.pooling", "blocks.3.0.pooling"], [(1, 1), (3, 3)]),
        ([2, [3, 1], 2], ["blocks.0.pooling", "blocks.1.pooling"], [(2, 2), (3, 1)]),
    ],
)
def test_initial_strides_of_a_resnet_and_of_a_plain_network(start, names, found):
    each = {"strides_start": start, "strides_end": {name: [2.0, 2.0] for name in names}}
    assert list(initial_strides(each).values()) == found


def test_no_rows_give_no_pictures(tmp_path):
    assert draw_pictures([], tmp_path) == []
    assert draw_pictures([row()], tmp_path) == [tmp_path / COSTS]


# What is printed in this project


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_of_the_pages_match_the_results(page):
    text = page.read_text()
    assert table_names(text)
    assert fill_page(text, read_rows(PAGES[page])) == text, (
        "make the tables anew: python3 -m experiments.table --report"
    )


@pytest.mark.parametrize(
    ("name", "pooling_cls"),
    [
        ("strided", None),
        ("spectral", pooling.FixedSpectralPooling),
        ("diffstride", partial(pooling.DiffStride, **PUBLISHED)),
    ],
)
@pytest.mark.parametrize("strides", [published.SHORT, published.LONG])
def test_costs_of_the_published_networks(monkeypatch, name, pooling_cls, strides):
    monkeypatch.setattr(resnet, "he_normal_", lambda weight: weight)  # slow, and of no account
    network = resnet.resnet18(strides, num_output_classes=10, pooling_cls=pooling_cls)
    measured = measure_cost(network, (3, 32, 32)).multiply_adds
    assert published.COSTS[name, strides] == pytest.approx(measured, abs=1e6)


def test_published_figures_match_dataset_pooling_strides_and_edge():
    find = published.find_published
    assert find("cifar100", "spectral", published.LONG) == (67.74, 0.43, 458e6)
    assert find("cifar10", "diffstride", published.SHORT, "passband") == (
        94.20,
        0.06,
        4217e6,
    )
    assert find("cifar10", "reference", published.SHORT, "passband").accuracy == 94.20
    assert find("cifar10", "diffstride", published.SHORT, "stopband") is None
    assert find("cifar10", "max", published.SHORT) is None
    assert find("cifar10", "strided", (1, 1, 2, 2, 1)) is None


def test_runs_under_a_budget_have_no_published_figure():
    layer = LEARNED | {"edge": "passband", "order": "after"}
    (free,), (held,) = (
        average_seeds([row(**layer)]),
        average_seeds([row(**layer, budget="strided")]),
    )
    assert free.published is not None
    assert held.published is None


def test_widths_and_epochs_have_separate_tables():
    lines = table_text("summary", [row(), row(width=32), row(epochs=20)]).splitlines()
    assert [line for line in lines if line.startswith("Recipe")] == [
        "Recipe `small`, width 16, 10 epochs:",
        "Recipe `small`, width 16, 20 epochs:",
        "Recipe `small`, width 32, 10 epochs:",
    ]
