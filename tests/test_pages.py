"""The generated parts of converting.md and walkthrough.md, and the results behind them."""

import json
import re
from pathlib import Path

import pytest
from matplotlib.image import imread

from benchmarks import conversion, scratch, walkthrough
from experiments.markdown import with_table

ROOT = Path(__file__).parents[1]


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


WALKTHROUGH = walkthrough.PAGE.read_text()
BLOCKS = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", WALKTHROUGH, re.DOTALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("number", range(3))
def test_each_block_of_the_walkthrough_runs_alone(number, tmp_path, monkeypatch, capsys):
    assert len(BLOCKS) == 3
    program, printed = BLOCKS[number]
    if "onnxruntime" in program:
        pytest.importorskip("onnxruntime", reason="needs onnxruntime, of the extra export")
    monkeypatch.chdir(tmp_path)
    shared: dict = {}
    exec(compile(program, f"block {number} of walkthrough.md", "exec"), shared)
    output = capsys.readouterr().out
    if printed:
        assert output == printed
    if "budget" in shared:
        used, allowed = shared["budget"].cost.value(), shared["budget"].multiply_adds
        assert 0.98 * allowed < used <= allowed
        strides = list(shared["stride_scalars"](shared["model"]).values())
        assert len(strides) == 6
        assert len(set(strides)) > 3  # they started equal


def test_walkthrough_page_matches_its_results():
    found = report_of(walkthrough)
    assert not found["contract"]["quick"]
    assert table_is(WALKTHROUGH, "walkthrough", walkthrough.shown(found))
    assert walkthrough.PICTURE.stat().st_size < 200_000
    accuracy = {
        name: network["epochs"][-1]["test_accuracy"] for name, network in found["networks"].items()
    }
    assert f"{accuracy['converted'] - accuracy['strided']:.2f} points ahead" in WALKTHROUGH
    last = found["history"][-1]["maps"]
    for name in ("layer2.0.conv1.pooling", "layer4.0.conv1.pooling"):
        assert f"end at {' x '.join(map(str, last[name]))}" in WALKTHROUGH


def test_walkthrough_keeps_its_budget_while_maps_change():
    found = report_of(walkthrough)
    before = found["networks"]["strided"]["multiply_adds"]
    costs = [each["multiply_adds"] for each in found["history"]]
    assert 0.99 * before <= min(costs) <= max(costs) <= before
    assert len({str(each["maps"]) for each in found["history"]}) > 3


def test_step_of_the_walkthrough_is_the_measured_one():
    rows = json.loads((ROOT / "benchmarks/results/conversion_time.json").read_text())["rows"]
    (row,) = [r for r in rows if r["network"] == "torchvision resnet18" and r["dtype"] == "bf16"]
    assert f"takes {row['held']:.2f} times as long" in WALKTHROUGH


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
