"""What the maps of networks are worth, next to the layers that run on them."""

import pytest

from benchmarks import map_worth
from benchmarks.common import read_rows
from experiments.markdown import with_table


def test_the_table_of_the_page_is_that_of_the_results():
    page, text = map_worth.PAGE.read_text(), map_worth.summary_table(read_rows(map_worth.RESULT))
    assert with_table(page, "map worth", text) == page


def test_worth_of_each_map_is_shared_out_by_its_layers_and_their_cost():
    row = {"network": "net", "size": [32, 30], "output_size": [16, 15], "layers": 4.0}
    row |= {"multiply_adds": 2e6, "worth": {"mean": 0.08, "error": 0.004}}
    line = map_worth.summary_table([row]).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:3] == ["net", "32x30 → 16x15", "4"]
    assert cells[3:] == ["+80.0 ± 4.0", "+20.0 ± 1.0", "+40.0 ± 2.0", "+40.0 ± 2.0"]


@pytest.mark.slow
def test_command_measures_each_map_once(tmp_path):
    command = ["--quick", "--networks", "torchvision resnet18", "--workdir", str(tmp_path)]
    command += ["--out", str(tmp_path / "rows.jsonl")]
    rows = map_worth.main(command)
    assert [row["layers"] for row in rows] == pytest.approx([5.0] * len(rows))
    assert rows
    assert map_worth.main(command) == rows  # nothing is measured again
