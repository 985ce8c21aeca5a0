"""The generated parts of converting.md and walkthrough.md, and the results behind them."""

import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from benchmarks import conversion, scratch, walkthrough
from benchmarks.common import with_table

ROOT = Path(__file__).parents[1]
EXAMPLE = (ROOT / "src/diffstride/examples/convert_torchvision.py").read_text()


def report_of(module):
    return json.loads(module.RESULT.read_text())


def table_is(page, name, text):
    return with_table(page, name, text) == page


def test_page_without_the_table_is_refused():
    page = "<!-- table total: begin (by hand) -->\n<!-- table total: end -->"
    message = "no table 'sum': expected '<!-- table sum: begin -->' and below it '<!-- table sum: e"
    with pytest.raises(ValueError, match=message):
        with_table(page, "sum", "1")


def test_one_table_of_a_page_is_replaced():
    page = "".join(f"<!-- table {n}: begin -->\n\n{n}\n\n<!-- table {n}: end -->\n" for n in "ab")
    assert with_table(page, "a", "c") == page.replace("\na\n", "\nc\n")


def test_conversion_page_matches_its_results():
    text = conversion.tables(report_of(conversion))
    assert table_is(conversion.PAGE.read_text(), "conversion", text)


def test_accuracies_and_costs_of_the_conversion_are_consistent():
    """Freezing changes no accuracy to speak of, budgets hold, and costs are those of the stage."""
    report = report_of(conversion)
    assert not report["contract"]["quick"]
    pairs = [(name, order) for name, orders in conversion.ORDERS.items() for order in orders]
    for network, order in pairs:
        rows = stages([row for row in report["rows"] if row["network"] == network], order)
        cost = {stage: row["multiply_adds"] for stage, row in rows.items()}
        for name, budget in (("tuned", cost["converted"]), ("held", cost["trained"])):
            stage = "tuned" if name == "tuned" else "held tuned"
            assert 0.99 * budget <= cost[stage] <= budget
            assert cost[f"{name} frozen"] == cost[stage]
            difference = rows[f"{name} frozen"]["test_accuracy"] - rows[stage]["test_accuracy"]
            assert abs(difference) < 0.05


def stages(rows, order):
    """The rows of one way to convert by their stages, with those before conversion."""
    found = {row["stage"]: row for row in rows if row["order"] in (None, order)}
    assert list(found) == [*conversion.BEFORE, *conversion.AFTER]
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*in eval mode")
def test_conversion_is_measured_stage_by_stage(tmp_path):
    out = tmp_path / "conversion.json"
    arguments = ["--quick", "--networks", "strided convolutions"]
    arguments += ["--workdir", str(tmp_path)]
    report = conversion.main([*arguments, "--out", str(out)])
    assert json.loads(out.read_text()) == report
    for order in ("before", "after"):
        rows = stages(report["rows"], order)
        assert rows["tuned"]["strides"] != rows["converted"]["strides"]
        assert rows["held"]["multiply_adds"] <= rows["trained"]["multiply_adds"]
        assert rows["tuned rounded"]["strides"] == {}
    # Trainings that are there are not repeated, and lead to the same.
    assert conversion.main([*arguments, "--out", str(out)])["rows"] == report["rows"]


def test_table_of_trainings_from_scratch_matches_its_results():
    rows = scratch.read_rows(scratch.RESULT)
    for dataset in {row["dataset"] for row in rows}:
        text = scratch.summary_table([row for row in rows if row["dataset"] == dataset])
        assert table_is(scratch.PAGE.read_text(), f"scratch {dataset}", text)
    for row in rows:  # at equal cost; blur pooling costs what it costs, which the table shows
        most = 1.02 if row["method"] == "blur" else 1.005
        assert row["multiply_adds"] <= most * row["multiply_adds_before"]


def test_walkthrough_states_the_number_of_lines_of_the_example():
    lines = len(EXAMPLE.splitlines())
    assert lines < 40
    assert f"whole way in {lines} lines" in " ".join(walkthrough.PAGE.read_text().split())


def test_walkthrough_trains_both_networks_from_the_same_weights(tmp_path, capsys):
    found = walkthrough.main(["--quick", "--epochs", "2", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "walkthrough.json").read_text()) == found
    before = found["networks"]["strided"]["multiply_adds"]
    costs = [each["multiply_adds"] for each in found["history"]]
    assert 0.98 * before < min(costs) <= max(costs) <= before
    assert [len(network["epochs"]) for network in found["networks"].values()] == [2, 2]
    assert found["frozen_accuracy"] == found["networks"]["converted"]["epochs"][-1]["test_accuracy"]
    printed = capsys.readouterr().out
    assert printed.index("epoch 1 of 2, as built") < printed.index("epoch 1 of 2, converted")
    assert imread(tmp_path / "walkthrough.png").shape[1] == 720
