"""The table of three kinds of data in README.md, from synthetic rows and up to date."""

import json
from pathlib import Path

import pytest
from test_results import row

from experiments.kinds_table import KINDS, README, kinds_table
from experiments.markdown import replace_tables

POOLINGS = ("strided", "max", "blur", "spectral")
LEARNED = {"pooling": "diffstride", "edge": "stopband", "order": "before"}
STARTS = {
    "cifar100": ([1, 1, 2.07, 2.14, 2.33], [1, 1, [1.94, 1.83], [1.62, 1.9], [16.5, 15.0]]),
    "fsdd_mel": ([2, 1, 2, 2, 2], [2, 1, 3, 1, 4]),
    "fsdd_wave": ([4, 1, 4, 4, 4], [4, 1, 8, 2, 4]),
}


def write(folder: Path, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))


def learned(config, dataset, start, **changes):
    ends = {"strides_end": {"blocks.1.0.pooling": [1.5]}, "multiply_adds_end": 36_000_000}
    return row(config=config, dataset=dataset, strides_start=start, **LEARNED, **ends | changes)


@pytest.fixture
def results(tmp_path):
    def images(**options):
        return row(config="cifar10_small", dataset="cifar100", **options)

    fixed = [images(pooling=name, test_accuracy=60.0 + i) for i, name in enumerate(POOLINGS)]
    fixed += [images(pooling="strided", seed=1, test_accuracy=61.0)]
    write(tmp_path, [*fixed, images(strides_start=[1, 1, 3, 2, 3])])
    starts = STARTS["cifar100"]
    images_recipe, *others = (kind.learned[1] for kind in KINDS)
    write(tmp_path / "guesses", [learned(images_recipe, "cifar100", s) for s in starts])
    rows = []
    for (recipe, (usual, poor)), learned_recipe in zip(
        list(STARTS.items())[1:], others, strict=True
    ):
        options = {"config": recipe, "dataset": "fsdd", "strides_start": usual}
        rows += [
            row(**options, pooling=name, fold=fold, test_accuracy=70.0 + 10 * fold)
            for name in POOLINGS
            for fold in (0, 1)
        ]
        rows.append(row(**options, pooling="max", test_accuracy=99.0))  # the authors' split
        rows += [
            learned(learned_recipe, "fsdd", s, fold=fold, seed=seed, **accuracy)
            for s in (usual, poor)
            for fold in (0, 1)
            for seed in (0, 1)
            for accuracy in [{"test_accuracy": 80.0 + fold + 10 * seed}]
        ]
    write(tmp_path / "fsdd", rows)
    return tmp_path


def test_a_line_for_each_pooling_and_a_column_for_each_kind(results):
    lines = [line.strip("| ").split(" | ") for line in kinds_table(results).splitlines()]
    assert lines[0] == ["pooling", *(f"{kind.title}, 35.0–36.0 M" for kind in KINDS)]
    cells = {line[0]: line[1:] for line in lines[2:]}
    assert cells["strided convolutions"] == ["60.5 ± 0.7 %", "75.0 %", "75.0 %"]
    assert cells["max pooling"] == ["61.0 %", "75.0 %", "75.0 %"]
    assert cells["learned, from poor strides"] == ["87.0 %", "85.5 ± 7.1 %", "85.5 ± 7.1 %"]


def test_a_missing_row_is_refused(results):
    (results / "guesses" / "runs.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"0 entries have .*measured strides.* expected one"):
        kinds_table(results)


def test_the_table_of_readme_is_up_to_date():
    page, text = README.read_text(), kinds_table()
    new = replace_tables(page, lambda name, old: text if name == "kinds" else old)
    assert "table kinds: begin" in page
    assert new == page, "run: python3 -m experiments.kinds_table"
