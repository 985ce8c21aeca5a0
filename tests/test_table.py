"""The command `experiments.table`, on grids of very short trainings."""

import errno
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import gin
import pytest

from diffstride import resnet
from diffstride.training import command_line, gin_registry
from diffstride.training.checkpoints import CHECKPOINTS, LAST
from diffstride.training.files import locked
from diffstride.training.lightning_compat import exceptions
from experiments import progress, runner, source_commit, table
from experiments.grid import Run, grid
from experiments.results import CHOSEN, KEYS, append_row, identity, read_rows
from experiments.runner import GridRunner
from experiments.selection import select_runs, split_runs

ROOT = Path(__file__).parents[1]

TINY = """
train.train.num_epochs = 1
train.train.accelerator = 'cpu'
torch.optim.SGD.lr = 0.01
resnet.resnet18.width = 4
data.load_datasets.batch_size = 32
data.load_datasets.train_examples = 64
data.load_datasets.test_examples = 20
table.grid.config = 'tiny'
table.grid.groups = [
    {'dataset': 'digits', 'strides': [1, 1, 2, 2, 1], 'pooling': ['strided', 'diffstride'],
     'seeds': [0, 1]},
    {'dataset': 'digits', 'strides': [1, 1, 2, 2, 1], 'pooling': ['diffstride', 'max'],
     'budget': 'strided', 'seeds': [0]},
]
"""
NAMES = [
    "tiny/digits-strided-11221-width4-epochs1-seed0",
    "tiny/digits-diffstride-stopband-before-11221-width4-epochs1-seed0",
    "tiny/digits-diffstride-stopband-before-budget_strided-11221-width4-epochs1-seed0",
    "tiny/digits-max-before-11221-width4-epochs1-seed0",
    "tiny/digits-strided-11221-width4-epochs1-seed1",
    "tiny/digits-diffstride-stopband-before-11221-width4-epochs1-seed1",
]
GROUP = {"dataset": "cifar10", "pooling": "diffstride", "strides": [1, 1, 2, 2, 2]}


@pytest.fixture(autouse=True)
def own_folder(gin_folder):
    """Each test has a working folder with one grid."""
    (gin_folder / "tiny.gin").write_text(TINY)


def command(*arguments):
    return table.main(["--gin_config=tiny.gin", *arguments])


@pytest.fixture
def fake_training(monkeypatch):
    """Replaces the training by one that returns at once; holds the workdirs it was called for."""
    called = []

    def train():
        called.append(gin.query_parameter("train.train.workdir").removeprefix("runs/table/"))
        cost = {"multiply_adds_start": 2, "multiply_adds_end": 1}
        facts = {"test_accuracy": 50.0, "seconds": 1.0, "threads": 1, "torch": "2"}
        return {"strides": {"pool": [2.0, 2.0]}, **cost, **facts, "seed": 7, "dataset": "x"}

    monkeypatch.setattr(gin_registry, "train", train)
    return called


# The grid


def test_group_stands_for_all_combinations_seed_by_seed():
    groups = [
        {**GROUP, "dataset": ["cifar10", "cifar100"], "strides": [[1, 1, 2], [1, 1, 3]]},
        {**GROUP, "strides": [2, 2], "seeds": [5]},
    ]
    runs = grid(groups, seeds=[0, 1]).runs
    assert len(runs) == 2 * 2 * 2 + 1
    assert Counter(run.seed for run in runs[:5]) == {0: 4, 5: 1}
    assert {run.seed for run in runs[5:]} == {1}
    assert {(run.dataset, run.strides) for run in runs[5:]} == {
        (dataset, (1, 1, last)) for dataset in ("cifar10", "cifar100") for last in (2, 3)
    }


def test_options_that_a_pooling_lacks_are_dropped():
    poolings = ["strided", "spectral", "diffstride", "reference", "max"]
    edges = ["stopband", "passband"]
    group = {**GROUP, "pooling": poolings, "edge": edges, "budget": 0.5, "order": "after"}
    facts = [
        (run.pooling, run.edge, run.budget, run.order) for run in grid([group], seeds=[0]).runs
    ]
    assert facts == [
        ("strided", None, None, None),
        ("spectral", None, None, "after"),
        ("diffstride", "stopband", 0.5, "after"),
        ("diffstride", "passband", 0.5, "after"),
        ("reference", "passband", None, "after"),
        ("max", None, None, "after"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"poling": "max"}, "group 1 of the grid: unknown key 'poling': .*did you mean 'pooling'"),
        ({"pooling": "average"}, "'pooling' must be one of strided, .* got 'average'"),
        ({"pooling": None}, "the key 'pooling' is missing"),
        ({"edge": "flat"}, "'edge' must be one of .*'flat'"),
        ({"order": "first"}, "'order' must be one of .*'first'"),
        ({"order": []}, r"'order' must be one of .* got \[\]"),
        ({"dataset": 10}, "'dataset' must be a name such as 'cifar10', .* got 10"),
        ({"config": ""}, "'config' must be a name such as 'cifar10_small', .* but got ''"),
        ({"config": "R > 1"}, "'config' must be a name .*without : ; or >, but got 'R > 1'"),
        ({"strides": 2}, r"'strides' must be a list .* such as \[1, 1, 2, 2, 2\], .* got 2"),
        ({"strides": [1, 1, (2.4, 2.5), 2]}, r"\[\[1, 1, \(2.4, 2.5\), 2, 2\]\], but got \[1, 1, "),
        ({"strides": [True, 2]}, r"'strides' must be .* got \[True, 2\]"),
        ({"strides": [1, 0.5]}, r"strides of at least 1 .* got \[1, 0.5\]"),
        ({"strides": []}, r"'strides' must be .* got \[\]"),
        ({"seeds": 0}, r"'seeds' must be a list of whole numbers such as \[0, 1, 2\], but got 0"),
        ({"seeds": []}, r"'seeds' must be .* got \[\]"),
        (
            {"bindings": "train.num_epochs = 9"},
            r"'bindings' must be a list .*'train.num_epochs = 9'",
        ),
        (
            {"budget": "stride"},
            "'budget' must be None, 'strided', a number above 0 .* got 'stride'",
        ),
        ({"budget": 0}, "'budget' must be .* got 0"),
        (
            {"pooling": ["max", "reference"], "edge": "stopband"},
            "'edge' is 'stopband', but the pooling 'reference' needs 'passband'",
        ),
    ],
)
def test_invalid_groups_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        grid([{**GROUP, **change}])


def test_strides_of_two_axes_need_a_list_of_lists():
    (run,) = grid([{**GROUP, "strides": [[1, [2.4, 2.5]]]}], seeds=[0]).runs
    assert run.strides == (1, (2.4, 2.5))


def test_groups_that_differ_only_in_bindings_need_different_configs():
    bindings = {"bindings": ["train.stride_learning_rate = 0.01"]}
    with pytest.raises(ValueError, match=r"bindings needs a 'config' .* those of 'table' without"):
        grid([GROUP | bindings])
    with pytest.raises(ValueError, match="different values of 'config'"):
        grid([GROUP, GROUP | bindings | {"config": "table"}])
    named = grid([GROUP, GROUP | bindings | {"config": "fast strides"}]).runs
    assert [run.config for run in named] == ["table", "fast strides"] * 3
    assert named[1].extra == ("train.stride_learning_rate = 0.01",)


def test_packaged_grid_has_the_runs_of_the_tables():
    runs = GridRunner(("table.gin",)).runs.values()
    kinds = Counter((r.dataset, r.pooling, r.edge, r.budget, r.order, r.strides[2]) for r in runs)
    expected = {}
    for dataset in ("cifar10", "cifar100"):
        for stride in (2, 3):
            expected[dataset, "strided", None, None, None, stride] = 3
            for pooling in ("spectral", "max", "blur"):
                expected[dataset, pooling, None, None, "before", stride] = 3
            for budget in (None, "strided"):
                expected[dataset, "diffstride", "stopband", budget, "before", stride] = 3
            # Three seeds, and one of strides at the rate of the weights.
            expected[dataset, "diffstride", "stopband", None, "before", stride] += 1
        # The same budget from both starts.
        expected[dataset, "diffstride", "stopband", 35.05e6, "before", 3] = 3
    for stride in (2, 3):
        expected["cifar10", "diffstride", "passband", None, "after", stride] = 1
    expected["cifar10", "reference", "passband", None, "after", 2] = 1
    expected["cifar10", "diffstride", "stopband", None, "before", 2] += 2  # windowed, two widths
    for stride in (2, 3):
        expected["cifar10", "diffstride", "stopband", "strided", "before", stride] += 1  # windowed
    for dataset, budget, stride in itertools.product(
        ("cifar10", "cifar100"), (None, "strided"), (2, 3)
    ):  # with a layer in the stem
        made = dataset == "cifar10" or (budget, stride) == (None, 3)
        expected[dataset, "diffstride", "stopband", budget, "before", stride] += made
        expected[dataset, "spectral", None, None, "before", stride] += budget is None
    assert kinds == expected


def test_packaged_grid_of_convnet_has_three_seeds():
    grid = GridRunner(("fast_table.gin",))
    assert [run.seed for run in grid.runs.values()] == [0, 1, 2]
    assert not any("None" in name for name in grid.runs)
    for run in grid.runs.values():
        bindings = run.bindings("convnet.ConvNet")
        assert bindings["convnet.ConvNet.pooling_cls"] == "@pooling.DiffStride"
        assert bindings["convnet.ConvNet.order"] == "'after'"
        assert grid.chosen(run)["width"] is None
        assert grid.weight(run) > 1e9


@pytest.mark.parametrize(
    ("name", "usual", "cost"),
    [
        ("fsdd_mel_table.gin", (2, 1, 2, 2, 2), 8.73e6),
        ("fsdd_wave_table.gin", (4, 1, 4, 4, 4), 17.14e6),
    ],
)
def test_grids_of_sounds_compare_at_the_cost_of_the_strided_network(name, usual, cost):
    pytest.importorskip("torchaudio", reason="needs the extra audio")
    packaged = GridRunner((name,))
    runs = packaged.runs
    assert {run.fold for run in runs.values()} == {None, 0, 1, 2}
    assert len({key.split("-seed")[0] for key in runs}) == len(runs) / 3
    assert {run.budget for run in runs.values()} == {None, cost}
    costs = {
        run.pooling: packaged.cost(run)
        for run in runs.values()
        if run.strides == usual and run.fold == 0 and run.seed == 0
    }
    assert costs["strided"] == pytest.approx(cost, rel=1e-3)  # of a sound, not of 32 x 32 pixels
    for pooling in ("max", "blur"):
        assert costs[pooling] == pytest.approx(cost, rel=0.005)
    assert costs["spectral"] == pytest.approx(cost, rel=0.07)


@pytest.mark.slow
def test_costs_in_the_results_are_those_of_the_packaged_grids(monkeypatch):
    """Where no budget rules, a network starts at the cost that its rows tell."""
    monkeypatch.setattr(resnet, "he_normal_", lambda weight: weight)  # slow, and of no account
    kind = [key for key in CHOSEN if key != "seed"]
    recorded = {}
    for row in read_rows(ROOT / "results"):
        recorded.setdefault(identity(row, kind), set()).add(row["multiply_adds_start"])
    wrong, seen = {}, 0
    for name in ("table.gin", "fast_table.gin"):
        packaged = GridRunner((name,))
        for run in packaged.runs.values():
            costs = recorded.pop(identity(packaged.chosen(run), kind), None)
            if costs is None or run.budget is not None or run.pooling == "reference":
                continue
            seen += 1
            classes = {"cifar10": 10, "cifar100": 100}[run.dataset]
            cost = packaged.cost(run, num_classes=classes)
            if costs != {cost}:
                wrong[packaged.name(run)] = costs, cost
    assert seen > 15
    assert not wrong, "these rows are of other networks than the grid's: make them anew"


def test_packaged_grids_have_their_own_paths():
    usual = GridRunner(("table.gin",)).paths
    assert usual == GridRunner(("fast_table.gin",)).paths
    assert usual.results == Path("results")
    assert usual.pages == (Path("docs/results.md"),)
    explored = GridRunner(("explore.gin",)).paths
    assert explored.results == Path("results/holdout")
    assert explored.pages == (Path("docs/exploration.md"),)


# Making it


@pytest.mark.slow
def test_rows_agree_with_the_summaries_of_the_runs(capsys):
    assert command("--only=seed0") == 0
    found = read_rows(Path("results"))
    for name, row in zip(NAMES[:4], found, strict=True):
        summary = json.loads(Path("runs/table", name, "summary.json").read_text())
        assert list(row) == list(KEYS)
        measured = ("test_accuracy", "seconds", "precision", "threads", "torch")
        for key in ("dataset", "seed", "epochs", *measured):
            assert row[key] == summary[key]
        learned = summary["strides"] if row["pooling"] == "diffstride" else None
        assert row["strides_end"] == learned != {}
        assert (row["config"], row["width"]) == ("tiny", 4)
        assert row["strides_start"] == [1, 1, 2, 2, 1]
        for key in ("multiply_adds_start", "multiply_adds_end"):
            assert row[key] == summary[key] > 0
    poolings = [(row["pooling"], row["edge"], row["budget"], row["order"]) for row in found[:4]]
    assert poolings == [
        ("strided", None, None, None),
        ("diffstride", "stopband", None, "before"),
        ("diffstride", "stopband", "strided", "before"),
        ("max", None, None, "before"),
    ]
    assert found[2]["multiply_adds_end"] <= found[0]["multiply_adds_end"]
    assert f"run 4 of 4: {NAMES[3]}" in capsys.readouterr().out

    config = Path("runs/table", NAMES[2], "operative_config.gin")
    command_line.configure([str(config)])
    gin_registry.train()  # the main command with its configuration finds the same run, finished
    assert "holds this run, finished" in capsys.readouterr().out


def test_runs_in_any_file_of_results_are_not_repeated(fake_training):
    assert command("--only=seed1") == 0
    assert fake_training == NAMES[4:]
    Path("results/runs.jsonl").rename("results/runs.other.jsonl")
    assert command() == 0
    assert fake_training == NAMES[4:] + NAMES[:4]
    assert command() == 0
    assert len(fake_training) == 6
    assert len(read_rows(Path("results"))) == 6


def test_grid_resumes_after_an_interruption(fake_training, monkeypatch, capsys):
    train = gin_registry.train

    def interrupt():
        if len(fake_training) == 2:
            raise KeyboardInterrupt
        return train()

    with monkeypatch.context() as patch:
        patch.setattr(gin_registry, "train", interrupt)
        assert command() == 128 + 2
    assert "4 runs are left\n2 of 6 runs are done" in capsys.readouterr().out
    assert len(read_rows(Path("results"))) == 2
    assert command("--list") == 0
    printed = capsys.readouterr().out
    assert f" 50.00 %  {NAMES[1]}\n   to do  {NAMES[2]}\n" in printed
    assert "2 of 6 runs are done" in printed
    assert command() == 0
    assert fake_training == NAMES
    assert len(read_rows(Path("results"))) == 6


def test_times_of_a_grid_follow_from_the_runs_that_were_finished(
    fake_training, monkeypatch, capsys
):
    """Two of eight runs take three epochs, and the third run fails."""
    extra = "'seeds': [0, 1], 'config': 'long', 'bindings': ['train.num_epochs = 3']"
    group = "{'dataset': 'digits', 'strides': [1, 1, 2, 2, 1], 'pooling': 'max', " + extra + "}"
    text = TINY.replace("table.grid.groups = [", f"table.grid.groups = [{group},")
    Path("tiny.gin").write_text(text)
    clock = itertools.count(0, 60)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    train = gin_registry.train

    def train_or_fail():
        summary = train()
        if len(fake_training) == 3:
            raise ValueError("diverged")
        return summary

    monkeypatch.setattr(gin_registry, "train", train_or_fail)
    command()
    lines = re.findall(r"run (\d) of 8: [^ \n]+(.*)", capsys.readouterr().out)
    assert [int(number) for number, _ in lines] == [*range(1, 9)]
    work = [gin_epochs(name) for name in fake_training]
    assert sorted(work) == [1] * 6 + [3] * 2
    assert lines[0][1] == ""
    for number, (_, times) in enumerate(lines[1:], start=1):
        done = sum(work[:number]) - (work[2] if number > 2 else 0)
        left = round(60 * number * sum(work[number:]) / done)
        assert (
            times == f" ({timedelta(minutes=number)} elapsed, about {timedelta(seconds=left)} left)"
        )


def gin_epochs(name):
    return int(re.search(r"epochs(\d+)", name)[1])


def test_time_left_counts_runs_of_other_processes(monkeypatch):
    times = iter([0.0, 30.0, 60.0, 3 * 24 * 3600.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(times)))
    shown = progress.Progress(dict.fromkeys("abcdef", 10.0))
    assert shown.describe("abcdef") == ""
    assert shown.describe("abcdef", failed="a") == " (0:00:30 elapsed)"
    assert shown.describe("aef", failed="a") == " (0:01:00 elapsed, about 0:00:40 left)"
    assert shown.describe("af", failed="a").endswith("about 18:00:00 left)")


def test_exit_code_shows_that_the_grid_was_terminated(fake_training, monkeypatch):
    def terminate():
        raise exceptions.SIGTERMException

    monkeypatch.setattr(gin_registry, "train", terminate)
    assert command() == 128 + 15


def test_failed_run_stops_no_other_and_is_printed_at_the_end(fake_training, monkeypatch, capsys):
    train = gin_registry.train

    def fail():
        summary = train()
        if fake_training[-1] == NAMES[1]:
            raise ValueError("the strides have diverged")
        return summary

    monkeypatch.setattr(gin_registry, "train", fail)
    assert command() == table.FAILED
    assert fake_training == NAMES
    assert len(read_rows(Path("results"))) == 5
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"failed: {NAMES[1]}: the strides have diverged"
    assert not Path("runs/table", NAMES[1]).exists()  # it wrote nothing
    assert Path("runs/table", NAMES[0]).exists()


def test_run_folder_that_cannot_be_made_stops_no_other_run(fake_training, capsys):
    taken = Path("runs/table", NAMES[1])
    taken.parent.mkdir(parents=True)
    taken.touch()
    assert command() == table.FAILED
    assert fake_training == [NAMES[0], *NAMES[2:]]
    printed = capsys.readouterr()
    assert f"failed: {NAMES[1]}: [Errno 17] File exists" in printed.err
    assert printed.out.endswith("5 of 6 runs are done\n")


@pytest.mark.parametrize("option", ["--results", "--runs"])
def test_folders_that_cannot_be_written_are_refused_before_training(fake_training, capsys, option):
    Path("file").touch()
    assert command(f"{option}=file/folder") == 2
    assert f"cannot write to {option} 'file/folder' (Not a directory)" in capsys.readouterr().err
    assert fake_training == []


def test_run_locked_by_another_process_is_skipped(fake_training, capsys):
    workdir = Path("runs/table", NAMES[0])
    workdir.mkdir(parents=True)
    with locked(workdir):
        assert command() == 0
    assert fake_training == NAMES[1:]
    assert "1 run is left to other processes" in capsys.readouterr().out


def test_bindings_of_a_group_reach_its_runs(fake_training):
    extra = "'config': 'long', 'bindings': ['train.num_epochs = 9']"
    text = TINY.replace("'seeds': [0, 1]}", f"'seeds': [0], {extra}}}")
    Path("tiny.gin").write_text(text.replace("train.train.num_epochs = 1\n", ""))
    assert command("--only=pooling=strided") == 0
    assert command("--only=pooling=max", "--gin_bindings=train.threads = 1") == 0
    assert gin.query_parameter("train.train.threads") == 1
    # The last one is the default of the training.
    assert [row["epochs"] for row in read_rows(Path("results"))] == [9, 10]


def test_macros_are_resolved_in_rows(fake_training):
    text = TINY.replace("num_epochs = 1", "num_epochs = %EPOCHS").replace("width = 4", "width = %W")
    Path("tiny.gin").write_text(f"{text}\nEPOCHS = %LONG\nLONG = 3\nW = 8\n")
    assert command("--only=pooling=max") == 0
    (row,) = read_rows(Path("results"))
    assert (row["epochs"], row["width"]) == (3, 8)


def test_rows_of_held_out_images_need_a_folder_named_holdout(fake_training, capsys):
    held = "data.load_datasets.holdout = 50\n"
    Path("held.gin").write_text(f"include 'tiny.gin'\n{held}")
    assert table.main(["--gin_config=held.gin"]) == 2
    message = "holdout = 50, but the folder results is for accuracies on test images"
    assert message in capsys.readouterr().err
    assert table.main(["--gin_config=held.gin", "--results=results/holdout"]) == 0
    assert len(read_rows(Path("results/holdout"))) == 6
    assert command("--results=results/holdout") == 2
    assert "for accuracies on held-out images" in capsys.readouterr().err
    extra = "'config': 'held', 'bindings': ['load_datasets.holdout = 9']"
    Path("tiny.gin").write_text(TINY.replace("'budget'", f"{extra}, 'budget'"))
    assert command() == 2
    assert not Path("results/runs.jsonl").exists()


def test_grid_may_set_its_folder_of_results(fake_training):
    Path("tiny.gin").write_text(f"{TINY}\ntable.grid.results = 'elsewhere'\n")
    assert command("--only=seed0") == 0
    assert len(read_rows(Path("elsewhere"))) == 4
    assert command("--only=seed0", "--results=results") == 0
    assert len(read_rows(Path("results"))) == 4


def test_parts_of_a_grid_follow_one_flag_or_several(fake_training, capsys):
    command("--list", "--only", "pooling=max", "seed=0")
    (name, count) = capsys.readouterr().out.splitlines()
    assert "-max-" in name
    assert name.endswith("-seed0")
    assert count == "0 of 1 runs are done"
    command("--list", "--only=pooling=max", "--only=seed=0")
    assert capsys.readouterr().out.splitlines() == [name, count]


def test_several_bindings_after_one_flag_are_refused_with_how_to_give_them(capsys):
    with pytest.raises(SystemExit):
        command("--gin_bindings", "train.threads=1", "train.precision=32")
    assert "train.precision=32: each --gin_bindings takes one binding" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=nothing"], "no run of the grid matches --only=nothing"),
        (
            ["--only=stride=2"],
            "no run of .* matches .*KEY=VALUE where KEY is one of config, ",
        ),
        (["--gin_bindings=table.grid.groups = []"], "no table.grid.groups"),
        (["--gin_bindings=table.grid.group = []"], "did you mean 'groups'"),
        (["--gin_bindings=table.grid.order = 'x'"], "group 1 of the grid: 'order' must be"),
        (["--gin_bindings=torch.optim.SGD.lr = 9.0"], "SGD.lr = 9.0 changes the training"),
        (["--gin_bindings=train.num_epochs = 2"], "set it in the 'bindings' of a group"),
        (["--gin_bindings=train.threads = 1\nEPOCHS = 2"], "'EPOCHS' names no setting; .*Here you"),
        (["--gin_bindings=threads = 1"], r"mean 'train\.train\.threads'\? Here you can bind table"),
        (["--gin_bindings=include 'tiny.gin'"], "changes the training"),
        (["--gin_bindings=train.threads ="], "Unable to parse value"),
    ],
)
def test_mistake_in_the_options_gives_a_one_line_error(capsys, arguments, message):
    assert command(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(lines[0])


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ("load_datasets.name = 'x'", "name is bound to 'x', but the grid asks for 'digits'"),
        ("train.budget = 0.5", "budget is bound to 0.5, but the grid asks for None"),
        ("Resnet.pooling_cls = @pooling.MaxPooling", "is bound to @pooling.Max"),
        (
            "resnet18.pooling_cls = @pooling.MaxPooling",
            "resnet18.pooling_cls is bound to @pooling.M",
        ),
        (
            "resnet18.order = 'after'",
            "resnet.resnet18.order is bound to 'after', but the grid asks",
        ),
        (
            "train.model = @a/resnet.resnet18",
            "@a/resnet.resnet18, but the bindings of the grid have no",
        ),
        (
            "train.datasets = @a/data.load_datasets",
            "@a/data.load_datasets, but the bindings of the grid",
        ),
        ("train.devices = 2", "train.train.devices is bound to 2, but the grid asks for 1"),
        (
            "resnet.resnet18.width = @resnet.resnet56",
            "resnet18.width must be a whole number",
        ),
    ],
)
def test_bindings_that_contradict_their_group_are_refused(capsys, bindings, message):
    text = TINY.replace("'seeds': [0, 1]", f'"config": "own", "bindings": ["{bindings}"]')
    Path("tiny.gin").write_text(text)
    assert command() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_group_may_train_another_network():
    group = {
        "dataset": "digits",
        "strides": [2, 2, 1],
        "pooling": ["strided", "diffstride"],
        "config": "plain",
        "bindings": ["train.model = @convnet.ConvNet", "convnet.ConvNet.filters = [4, 8, 8]"],
    }
    small = {"dataset": "digits", "strides": [1, 1, 2, 2, 1], "pooling": ["max"]}
    text = TINY[: TINY.index("table.grid.groups")] + f"table.grid.groups = {[group, small]}"
    Path("tiny.gin").write_text(text)
    grid = GridRunner(("tiny.gin",))
    strided, learned, pooled = list(grid.runs.values())[:3]
    assert [grid.chosen(run)["width"] for run in (strided, pooled)] == [None, 4]
    assert learned.bindings("convnet.ConvNet")["convnet.ConvNet.pooling_cls"] == (
        "@pooling.DiffStride"
    )
    assert grid.cost(strided) < grid.cost(learned)


def test_names_of_runs_contain_the_number_of_held_out_images():
    Path("tiny.gin").write_text(TINY + "data.load_datasets.holdout = 7\n")
    assert all("-holdout7-epochs1-" in name for name in GridRunner(("tiny.gin",)).runs)


def test_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    message = r"has no locks .Function not implemented.: make sure"
    with pytest.warns(UserWarning, match=message), locked(tmp_path, wait=False) as free:
        assert free


def test_runs_with_the_same_name_are_refused(capsys):
    group = {"dataset": "digits", "strides": [1, 1, 2, 2, 1], "pooling": "max"}
    groups = [group | {"config": config} for config in ("a b", "a_b")]
    Path("tiny.gin").write_text(f"table.grid.groups = {groups}")
    assert command("--list") == 2
    printed = capsys.readouterr().err
    assert "two runs have the name a_b/digits-max-" in printed
    assert "with the 'config' 'a b' and 'a_b'" in printed


@pytest.mark.parametrize("arguments", [[], ["--list"], ["--report"]])
def test_damaged_file_of_results_is_refused(capsys, fake_training, arguments):
    Path("results").mkdir()
    Path("results/runs.jsonl").write_text('{"config": "tiny"}\n')
    assert command(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: line 1 of results/runs.jsonl: a row must have the keys")
    assert not fake_training


def test_file_damaged_during_the_grid_loses_no_run(capsys, fake_training, monkeypatch):
    train, damaged = gin_registry.train, Path("results/runs.other.jsonl")

    def damage():
        if len(fake_training) == 1:
            damaged.write_text("{\n")
        return train()

    monkeypatch.setattr(gin_registry, "train", damage)
    assert command() == table.FAILED
    *_, failed, last = capsys.readouterr().err.splitlines()
    message = "line 1 of results/runs.other.jsonl is not JSON"
    assert failed.startswith(f"failed: {NAMES[-1]}: {message}")
    assert last.startswith(f"error: {message}")
    assert fake_training == NAMES[:2]
    damaged.unlink()
    assert command() == 0
    assert len(read_rows(Path("results"))) == 6


def test_number_of_finished_runs_is_always_printed(fake_training, capsys):
    assert command("--only=seed1") == 0
    assert capsys.readouterr().out.endswith("\n2 of 2 runs are done\n")
    assert command("--only=seed1") == 0
    assert capsys.readouterr().out == "2 of 2 runs are done\n"
    assert command("--only=seed1", "--shard=5/8") == 0
    assert capsys.readouterr().out == "0 of 0 runs are done\n"


def test_failed_runs_are_not_left_to_other_processes(capsys, fake_training):
    grid = GridRunner(("tiny.gin",))
    assert table._finish(grid, {}, {"a": "x"}, Path("results")) == table.FAILED
    assert "left to other processes" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--report", "--shard=1/2"], "remove --list, --shard and --only"),
        (["--report", "--list"], "remove --list, --shard and --only"),
        (["--report", "--only=R_"], "remove --list, --shard and --only"),
        (["--pages", "a.md"], "--pages and --pictures need --report"),
        (["--pictures=a", "--list"], "--pages and --pictures need --report"),
    ],
)
def test_options_that_would_be_ignored_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit):
        command(*arguments)
    assert message in capsys.readouterr().err


def test_help_shows_the_defaults(capsys):
    with pytest.raises(SystemExit):
        command("--help")
    printed = " ".join(capsys.readouterr().out.split())
    for default in ("[table.gin]", "[runs/table]", "or results]", "or docs/images]"):
        assert default in printed


def test_resumed_run_notes_all_its_commits(tmp_path):
    note = runner.note_commit
    assert note(tmp_path, "a") == "a"
    assert note(tmp_path, "b") == "b"  # nothing was trained at a
    (tmp_path / CHECKPOINTS).mkdir()
    (tmp_path / CHECKPOINTS / LAST).touch()
    assert note(tmp_path, "b") == "b"
    assert note(tmp_path, "c") == "b+c"
    summary = {"test_accuracy": 1, "strides": {}, "epochs": 1, "seconds": 1}
    summary |= {"multiply_adds_start": 1, "multiply_adds_end": 1}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert note(tmp_path, "d") == "b+c"
    (tmp_path / runner.COMMIT_NOTE).unlink()
    assert note(tmp_path, "d") is None  # finished before there were notes


def test_finished_run_keeps_its_commit(monkeypatch):
    monkeypatch.setattr(table, "read_commit", lambda *_: "earlier")
    assert command("--only=pooling=max") == 0
    Path("results/runs.jsonl").unlink()
    monkeypatch.setattr(table, "read_commit", lambda *_: "now")
    assert command("--only=pooling=max") == 0
    assert read_rows(Path("results"))[0]["commit"] == "earlier"


# Shards


def run_of(number, seed):
    return Run("c", f"d{number}", "max", None, None, "before", (1, 2), seed)


def test_shards_have_every_run_once_in_order_and_equal_work():
    runs = {f"{number}-{seed}": run_of(number, seed) for seed in range(3) for number in range(7)}
    weights = {name: 1.0 + int(name[0]) ** 2 for name in runs}
    for parts in (1, 2, 4):
        shares = split_runs(runs, weights, parts)
        assert sorted(chain(*shares)) == sorted(runs)
        loads = [sum(weights[name] for name in share) for share in shares]
        assert max(loads) - min(loads) <= max(weights.values())
        for share in shares:
            assert share == [name for name in runs if name in share]


def test_each_shard_writes_its_own_file(fake_training):
    for part in (1, 2):
        assert command(f"--shard={part}/2") == 0
    files = sorted(Path("results").glob("*.jsonl"))
    assert [path.name for path in files] == ["runs.1-of-2.jsonl", "runs.2-of-2.jsonl"]
    assert sorted(fake_training) == sorted(NAMES)
    assert all(len(path.read_text().splitlines()) == 3 for path in files)
    assert len(read_rows(Path("results"))) == 6


def test_weights_follow_the_cost_of_the_networks():
    runs = GridRunner(("tiny.gin",))
    strided, learned, held = (runs.weight(runs.runs[name]) for name in NAMES[:3])
    assert learned == held > strided > runner.OVERHEAD
    Path("longer.gin").write_text("include 'tiny.gin'\ntrain.num_epochs = 3\n")
    longer = GridRunner(("longer.gin",))
    assert longer.weight(next(iter(longer.runs.values()))) == 3 * strided


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_invalid_shards_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        command(f"--shard={text}")
    assert f"expected i/n with 1 <= i <= n, but got {text!r}" in capsys.readouterr().err


def test_runs_are_selected_by_name_or_value():
    runs = {f"d{number}": run_of(number, number) for number in range(3)}
    assert list(select_runs(runs, ["d1"])) == ["d1"]
    assert list(select_runs(runs, ["seed=2"])) == ["d2"]
    assert list(select_runs(runs, ["strides=1,2", "dataset=d0"])) == ["d0"]
    assert list(select_runs(runs, [])) == list(runs)


def test_numbers_are_matched_by_value_and_other_text_by_name():
    group = {**GROUP, "budget": [None, 35.05e6], "strides": [[1, 1, 2, 2, 2], [1, (2.4, 2.5)]]}
    runs = {f"R_=_{number}": run for number, run in enumerate(grid([group], seeds=[0]).runs)}
    assert list(select_runs(runs, ["budget=35.05e6"])) == ["R_=_2", "R_=_3"]
    assert list(select_runs(runs, ["budget=None"])) == ["R_=_0", "R_=_1"]
    assert list(select_runs(runs, ["strides=1.0,1,2,2,2"])) == ["R_=_0", "R_=_2"]
    assert list(select_runs(runs, ["strides=1,2.4x2.5"])) == ["R_=_1", "R_=_3"]
    assert list(select_runs(runs, ["R_=_3"])) == ["R_=_3"]


# The file


ROW = {
    "config": "c",
    "dataset": "digits",
    "pooling": "max",
    "edge": None,
    "budget": None,
    "order": "after",
    "strides_start": [1, 2],
    "strides_end": None,
    "seed": 0,
    "fold": None,
    "width": 4,
    "epochs": 1,
    "test_accuracy": 50.0,
    "multiply_adds_start": 1,
    "multiply_adds_end": 1,
    "seconds": 1.0,
    "precision": "bf16-mixed",
    "threads": 1,
    "commit": None,
    "torch": "2",
}


NEVER_NONE = [
    key for key in KEYS if ROW[key] is not None and key not in ("order", "width", "precision")
]


def row_of(**changes):
    return ROW | changes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, None) for key in NEVER_NONE],
        *[("test_accuracy", each) for each in (float("nan"), float("inf"), "50", -1, 101, True)],
        *[("multiply_adds_end", each) for each in (float("inf"), 0, [1])],
        *[("strides_start", each) for each in ([], [0.5, 1], [1, "2"], 2)],
        *[("strides_end", each) for each in (3, {"pool": 2.0}, {"pool": [float("nan")]})],
        *[("seed", each) for each in (0.5, "0")],
        ("budget", float("nan")),
        ("pooling", "other"),
        ("commit", 7),
    ],
)
def test_values_of_rows_are_checked(key, value):
    lines = [json.dumps(row) + "\n" for row in (row_of(), row_of(seed=1) | {key: value})]
    Path("runs.jsonl").write_text("".join(lines))
    shown = re.escape(repr(json.loads(json.dumps(value))))
    message = rf"line 2 of runs\.jsonl: '{key}' must be .*, but got {shown}: remove or correct it"
    with pytest.raises(ValueError, match=message):
        read_rows(Path())


@pytest.mark.parametrize("line", [b"\xff", b'{"config": "\xff"}', b"[" * 100_000, b"{"])
def test_lines_that_are_no_json_are_named(line):
    Path("runs.jsonl").write_bytes(json.dumps(row_of()).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"line 2 of runs\.jsonl is not JSON"):
        read_rows(Path())


def test_a_run_whose_values_are_not_valid_gets_no_row(fake_training, monkeypatch, capsys):
    train = gin_registry.train
    monkeypatch.setattr(gin_registry, "train", lambda: train() | {"test_accuracy": float("nan")})
    assert command() == table.FAILED
    assert "'test_accuracy' must be a number from 0 to 100, but got nan" in capsys.readouterr().err
    assert not list(Path("results").glob("runs*.jsonl"))


def test_a_linked_file_of_results_grows_where_it_points_to():
    Path("shared").mkdir()
    Path("runs.jsonl").symlink_to("shared/all.jsonl")
    assert append_row(Path("runs.jsonl"), row_of())
    assert append_row(Path("runs.jsonl"), row_of(seed=1))
    assert Path("runs.jsonl").is_symlink()
    assert len(Path("shared/all.jsonl").read_text().splitlines()) == 2
    assert [row["seed"] for row in read_rows(Path())] == [0, 1]


@pytest.mark.slow
def test_processes_that_append_to_one_file_lose_no_row():
    program = """
import json, sys
from pathlib import Path
from experiments.results import append_row
row = json.loads(sys.argv[2])
for seed in range(8):
    append_row(Path("runs.jsonl"), row | {"config": sys.argv[1], "seed": seed})
    append_row(Path("runs.jsonl"), row | {"config": "both", "seed": seed})
"""
    command = [sys.executable, "-c", program]
    processes = [
        subprocess.Popen(
            [*command, name, json.dumps(ROW)], env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        for name in ("one", "two")
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    lines = Path("runs.jsonl").read_text().splitlines()
    found = Counter((json.loads(line)["config"], json.loads(line)["seed"]) for line in lines)
    assert found == {(name, seed): 1 for name in ("one", "two", "both") for seed in range(8)}


def test_kill_while_writing_leaves_the_file_unchanged(monkeypatch):
    path = Path("runs.jsonl")
    assert append_row(path, row_of())
    before = path.read_text()

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", die)
        with pytest.raises(KeyboardInterrupt):
            append_row(path, row_of(seed=1))
    assert path.read_text() == before
    assert append_row(path, row_of(seed=1))
    assert not append_row(path, row_of(seed=1, test_accuracy=1.0))
    assert [row["seed"] for row in read_rows(Path())] == [0, 1]


def test_rows_with_other_keys_are_refused():
    with pytest.raises(ValueError, match=r"a row has the keys config, .* but got seed"):
        append_row(Path("runs.jsonl"), {"seed": 1})
    Path("runs.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=r"line 1 of runs\.jsonl is not JSON"):
        read_rows(Path())


def test_identity_depends_only_on_chosen_values():
    one = row_of()
    for key in CHOSEN:
        assert identity(one) != identity({**one, key: "other"})
    assert identity(one) == identity({**one, "test_accuracy": 1.0, "commit": "x"})


def test_identity_ignores_how_a_number_is_written():
    one = row_of(budget=35_050_000, strides_start=[1, [2.0, 2.5]])
    assert identity(one) == identity(row_of(budget=35.05e6, strides_start=[1, [2, 2.5]]))


def test_two_accuracies_of_one_run_give_a_warning():
    append_row(Path("runs.a.jsonl"), row_of(test_accuracy=1.0))
    append_row(Path("runs.b.jsonl"), row_of(test_accuracy=2.0))
    with pytest.warns(UserWarning, match=r"of 1.0 % in runs.a.jsonl, .* of 2.0 % in runs.b.jsonl"):
        assert [row["test_accuracy"] for row in read_rows(Path())] == [1.0]


def test_commit_is_that_of_the_checkout(monkeypatch):
    command = ["git", "-C", str(Path(source_commit.__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        assert source_commit.read_commit("src") is None
    else:
        assert source_commit.read_commit("src").removesuffix("-dirty") == done.stdout.strip()
    monkeypatch.setattr(source_commit, "__file__", "/elsewhere/experiments/source_commit.py")
    assert source_commit.read_commit("src") is None


def test_parts_take_about_equally_long():
    names = ["light", "slight", "small", "heavy"]
    runs = {name: Run("c", name, "max", None, None, "before", (1, 2), 0) for name in names}
    weights = dict(zip(names, (1.0, 1.0, 1.0, 3.0), strict=True))
    parts = split_runs(runs, weights, 2)
    assert sorted(parts) == [["heavy"], ["light", "slight", "small"]]


@pytest.mark.parametrize("strides", ["1", "1,2,2"])
def test_strides_are_matched_as_a_whole(strides):
    runs = {"run": Run("c", "d", "max", None, None, "before", (1, 2), 0)}
    assert select_runs(runs, ["strides=1,2"]) == runs
    with pytest.raises(ValueError, match="no run of the grid matches"):
        select_runs(runs, [f"strides={strides}"])
