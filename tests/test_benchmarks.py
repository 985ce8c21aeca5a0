"""The benchmarks: their contract, and that each of them runs. No times are judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import diffstride
from benchmarks import (
    budget,
    common,
    conversion_time,
    denoising,
    frozen,
    gain_picture,
    layer,
    machine,
    memory,
    network,
    render,
    scaling,
    scratch,
    signals,
    step_picture,
    steps,
    sweep,
    sweep_networks,
    sweep_sources,
    sweep_trial,
)
from benchmarks import timing as clock
from benchmarks.contenders import COPIES, Case, Row, forward_backward
from benchmarks.tables import goal, goal_table, milliseconds
from diffstride import reference
from diffstride.spectral import axis_product

ROOT = Path(__file__).parents[1]


def test_geometric_mean() -> None:
    assert common.geometric_mean([2.0, 8.0, 4.0]) == pytest.approx(4.0)
    with pytest.raises(ValueError, match=r"positive numbers, but got \[1.0, 0.0\]"):
        common.geometric_mean([1.0, 0.0])


def test_floor_is_the_larger_of_products_and_traffic() -> None:
    assert machine.floor_seconds(6e9, 1e9, products=2e9, copies=1e9) == 3.0
    assert machine.floor_seconds(1e9, 6e9, products=2e9, copies=1e9) == 6.0


def _timing(seconds: float) -> clock.Timing:
    return clock.Timing(seconds, seconds, seconds, 3, 1, None)


def test_floors_use_the_copy_rate_of_the_same_input() -> None:
    row, size = Row(2, 3, 32), 2 * 3 * 32 * 32 * 4
    timings = {
        Case(COPIES[0], "float32", "contiguous"): _timing(2 * size / 1e6),
        Case(COPIES[1], "float32", "contiguous"): _timing(2 * size / 2e6),
    }
    for passes, direction in enumerate(layer.DIRECTIONS, start=1):
        found = layer.floors(row, direction, timings, {"float32": 1e12})
        stopband = common.only(found, edge="stopband")
        # 32 x 32 to 16 x 16 in float32; a copy reads and writes its input at 1 or 2 MB a second.
        assert stopband["moved_bytes"] == size + size // 4
        assert stopband["floor"] == pytest.approx(passes * 1.25 * size / 1e6)
        assert stopband["floor_existing"] == pytest.approx(passes * 1.25 * size / 2e6)
        # The product of one axis, then of the other, for six maps.
        assert stopband["multiply_adds"] == 6 * (16 * 32 * 32 + 16 * 32 * 16)


def test_slow_contenders_take_fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now, log = [0.0], []
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def contender(name: str, seconds: list[float]):
        def call() -> None:
            now[0] += seconds[log.count(name) % len(seconds)]
            log.append(name)

        return call

    calls = {"quick": contender("quick", [1.0, 2.0, 3.0]), "slow": contender("slow", [50.0])}
    timings = clock.measure(calls, clock.Effort(repeats=9, sample_seconds=0.0, budget=100.0))
    assert timings["quick"][:5] == (2.0, 1.0, 3.0, 9, 1)
    assert timings["slow"][:5] == (50.0, 50.0, 50.0, 3, 1)
    # One warm-up call of the slow one is a tenth of its budget and more.
    measured = log[clock.WARM_UP_CALLS + 1 :]
    turns = [index for index, name in enumerate(measured) if name == "slow"]
    # Three of nine rounds, evenly spread, somewhere in its round.
    assert [turn // 4 for turn in turns] == [0, 1, 2]
    assert len(measured) == 12


def test_short_calls_are_repeated_within_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += 0.25

    timing = clock.measure({"": call}, clock.Effort(repeats=2, sample_seconds=1.0))[""]
    assert timing.calls_per_sample == 4
    assert timing.median == 0.25


@pytest.mark.parametrize("size", [8, 18, 20, 24, 32, 37, 56])
@pytest.mark.parametrize("start", [1.0, 2.0])
def test_moving_strides_are_always_new_and_keep_the_map_size(size: int, start: float) -> None:
    for pool in (
        diffstride.DiffStride(start),
        diffstride.DiffStride(start, edge="stopband"),
        reference.DiffStride(start),
    ):
        expected, seen = pool.output_size((size, size)), set()
        move = common.MovingStrides([pool.strides], size)
        for _ in range(300):
            move()
            seen.add(pool.stride_values())
            assert pool.output_size((size, size)) == expected
        assert len(seen) == 300


def test_training_call_returns_the_gradients() -> None:
    x = torch.randn(1, 2, 12, 12, requires_grad=True)
    pool = diffstride.DiffStride(2.0)
    grads = forward_backward(pool, x)()
    assert [grad.shape for grad in grads] == [x.shape, (2,)]
    assert all(grad.abs().sum() > 0 for grad in grads)
    assert pool.strides[0] > 2


def test_file_is_replaced_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "file.json"
    common.write_json(path, {"a": 1.5})
    assert json.loads(path.read_text()) == {"a": 1.5}

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        common.write_json(path, {"a": 2.5})
    assert json.loads(path.read_text()) == {"a": 1.5}
    assert list(path.parent.iterdir()) == [path]


def test_recorded_command_repeats_the_run(tmp_path: Path) -> None:
    parser = common.parser_of("layer", None, repeats=15)
    parser.add_argument("--rows", nargs="+", type=layer._row)
    words = ["--rows", "2,3,12", "1,4,18", "--quick", "--repeats", "5"]
    options = common.start(parser, [*words, "--out", str(tmp_path / "x.json")])
    program, *recorded = options.command.split("benchmarks.layer ")
    again = parser.parse_args(recorded[0].split())
    assert program == "python -m "
    assert (again.rows, again.quick, again.repeats) == ([Row(2, 3, 12), Row(1, 4, 18)], True, 5)


def test_invalid_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        layer.main(["--quick", "--rows", "1,2"])
    assert "a row is batch,channels,size" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scaling.main(["--quick", "--repeats", "0"])
    assert "--repeats must be at least 1, but got 0" in capsys.readouterr().err


def test_goals_state_whether_they_are_reached() -> None:
    goals = [
        goal("fast", 6.9, at_least=7, aim=10),
        goal("small", 1.1, at_most=1.2),
        goal("x", 3.0),
    ]
    assert [line["reached"] for line in goals] == [False, True, None]
    assert "| fast | 6.90 | ≥ 7 | ≥ 10 | **no** |" in goal_table(goals)
    assert "| small | 1.10 | ≤ 1.2 | – | yes |" in goal_table(goals)


def _run(program: str) -> str:
    """What a program prints that has a process of its own."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


KEEP = """
import resource, torch
from benchmarks.machine import set_allocator

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x.clone()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

x = torch.ones(1 << 24)  # glibc learns to keep blocks of up to 32 MB by itself
default = min(faults() for _ in range(3))
set_allocator("keep")
print(default, min(faults() for _ in range(20)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="options of glibc")
def test_keeping_allocator_avoids_page_faults() -> None:
    default, kept = map(int, _run(KEEP).split())
    assert default > 1000 > 10 > kept


@pytest.mark.skipif(not memory.STATUS.exists(), reason="the peak is read from /proc")
def test_peak_memory_counts_tensors_alive_at_the_same_time() -> None:
    # In a process of its own, as in the benchmark: a training in this one has the allocator keep
    # what is freed, and nothing would rise.
    assert int(_run(PEAK)) == pytest.approx(192 * 2**20, rel=0.05)


PEAK = """
import torch
from benchmarks import memory
from benchmarks.machine import set_allocator

def make_step():
    def step():
        # 64 MB, then 64 and 128 together, then nothing.
        torch.ones(1 << 24).repeat(2)
    return step

set_allocator("release")
make_step()()
print(memory.peak_rise(make_step))
"""


def test_average_pooling_gives_the_same_map_sizes() -> None:
    def maps(pooling: str) -> list[tuple[int, ...]]:
        task = steps.Task(pooling, "float32", "contiguous", steps.FEWEST_CHANNELS, 1, 32, 0)
        model, seen = task.network().eval(), []
        for name, module in model.named_modules():
            if name.endswith("second_norm"):
                module.register_forward_hook(lambda _, __, y: seen.append(tuple(y.shape[2:])))
        with torch.no_grad():
            model(task.images())
        return seen

    assert maps("average") == maps("stopband") == maps("strided")
    assert maps("average, passband sizes") == maps("passband") == maps("reference")
    assert [size for size, _ in maps("passband")[2::2]] == [24, 20, 18]


def test_macs_of_the_strided_network_are_the_published_ones() -> None:
    task = steps.Task("strided", "float32", "contiguous", 64, 32, 32, 0)
    assert steps.multiply_adds(task) == pytest.approx(0.555e9, rel=0.01)


def _quick(main, tmp_path: Path, *arguments: str) -> dict:
    path = tmp_path / "results" / f"{main.__module__.split('.')[-1]}.json"
    main(["--quick", "--repeats", "2", "--out", str(path), *arguments])
    report = json.loads(path.read_text())
    contract = report["contract"]
    assert contract["quick"]
    assert contract["torch"] == torch.__version__
    assert all(contract[name] for name in ("processor", "commit", "date", "threads", "command"))
    shown = render.page(render.read_reports(path.parent))
    assert "A trial run at tiny sizes" in shown
    assert shown == render.page(render.read_reports(path.parent))
    for entry in report["measurements"]:
        assert 0 < entry["lower_quartile"] <= entry["median"] <= entry["upper_quartile"]
        copied = entry.get("contender") in COPIES
        assert copied or milliseconds(entry) in shown
    return report


def test_layer_runs(tmp_path: Path) -> None:
    report = _quick(layer.main, tmp_path)
    for direction in layer.DIRECTIONS:
        where = {"direction": direction, "size": 18}
        ours = common.only(
            report["measurements"], **where, contender="passband", dtype="float32",
            format="channels_last",
        )  # fmt: skip
        theirs = common.only(report["measurements"], **where, contender="reference")
        ratios = layer.ratios(report, direction, "passband", "float32", "channels_last")
        assert ratios["speedup"][1] == theirs["median"] / ours["median"]
        least = common.only(report["floors"], **where, edge="passband", dtype="float32")
        assert ratios["floor"][1] == ours["median"] / least["floor"]


@pytest.mark.slow
def test_scaling_runs(tmp_path: Path) -> None:
    report = _quick(scaling.main, tmp_path)
    rows = list(scaling.ratios(report, "size", "forward"))
    assert [row["size"] for row in rows] == [8, 32]
    worst = min(row["speedups"][0] for row in rows)
    name = "reference / ours, worst of size, forward: contiguous"
    assert common.only(report["goals"], what=name)["value"] == worst


@pytest.mark.slow
def test_signals_run(tmp_path: Path) -> None:
    report = _quick(signals.main, tmp_path)
    rows = list(signals.rows(report, "forward"))
    assert [(row["length"], row["stride"]) for row in rows[:3]] == [(16, 2.0), (16, 4.0), (30, 2.0)]
    largest = max(row["ratios"][0] for row in rows)
    name = "transforms / products, forward: largest"
    assert common.only(report["goals"], what=name)["value"] == largest


@pytest.mark.parametrize("way", signals.WAYS)
def test_both_ways_of_signals_are_what_they_are_called(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, transform = [], axis_product.fourier_pool

    def recording(*args: Any) -> Any:
        used.append(args)
        return transform(*args)

    monkeypatch.setattr(axis_product, "fourier_pool", recording)
    signals.calls_of(100, 2.0, "forward", samples=100)[way]()
    assert bool(used) == (way == "transforms")


@pytest.mark.slow
def test_network_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "multiplies_bfloat16", lambda: False)
    measured = {"average": {"training": 40, "inference": 4}}
    real = network.peaks
    monkeypatch.setattr(network, "peaks", lambda task: measured.get(task.pooling) or real(task))
    report = _quick(network.main, tmp_path)
    (skipped,) = report["skipped"]
    assert skipped["precision"] == "bf16-mixed"
    ratios = {line["what"]: line for line in report["goals"]}
    peak = ratios["peak memory of training, stopband / average: float32, contiguous"]
    ours = common.only(report["memory"], pooling="stopband")["training"]
    assert peak["value"] == ours / 40
    assert peak["at_most"] == 1.2
    assert report["multiply_adds"]["stopband"] > report["multiply_adds"]["average"]


# Deprecations inside the exporter and the compiler.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_frozen_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(frozen.shutil, "which", lambda name: None)  # compiling takes a minute
    report = _quick(frozen.main, tmp_path, "--networks", "resnet18, width 16")
    assert report["skipped"] == ["torch.compile, which needs a C++ compiler on the path"]
    found = {(each["strides"], each["runner"]) for each in report["measurements"]}
    assert found == {
        *((strides, "eager") for strides in frozen.STRIDES),
        ("strided", "onnxruntime"),
        ("frozen", "onnxruntime"),
    }
    goals = {line["what"]: line for line in report["goals"]}
    assert goals["largest difference of outputs, in 1e-4"]["reached"]
    costs = report["multiply_adds"]["resnet18, width 16"]
    assert costs["strided"] < costs["learned"] == costs["frozen"]


@pytest.mark.slow
def test_budget_runs(tmp_path: Path) -> None:
    report = _quick(budget.main, tmp_path, "--steps", "40")
    (row,) = report["measurements"]
    assert (row["network"], row["layers"], row["strides"], row["steps"]) == ("resnet18", 5, 10, 40)
    assert row["upper_quartile"] <= row["worst"]
    assert 0 < row["size_changes"] < 40
    assert 0.9 < row["least_share"] <= row["largest_share"] <= 1
    assert report["training_step"]["batch"] == 2
    assert common.only(report["goals"], what="largest share of a budget")["reached"]


def test_benchmark_page_matches_its_results() -> None:
    reports = render.read_reports(common.RESULTS)
    pages = {render.PAGE: render.page(reports), render.TARGETS: render.targets_page(reports)}
    for page, expected in pages.items():
        assert page.read_text(encoding="utf-8") == expected, "run: python -m benchmarks.render"
    assert " target " not in pages[render.PAGE]
    assert pages[render.TARGETS].count("| target |") == 5


def test_bar_chart_of_a_training_step_shows_the_measured_times(tmp_path: Path) -> None:
    report = render.read_reports(common.RESULTS)["network.json"]
    panel = step_picture.plot_steps(report, tmp_path / "steps.png").axes[0]
    seconds = step_picture.step_seconds(report)
    lengths = [bar.get_width() for bar in panel.patches]
    assert lengths == [each / seconds["strided"] for each in seconds.values()]
    assert panel.texts[-1].get_text().endswith(f"({seconds['reference']:.2f} s)")
    opening = render.page(render.read_reports(common.RESULTS)).partition("## ")[0]
    assert f"published layer\ntakes {lengths[-1]:.1f} times" in opening
    assert (render.PAGE.parent / render.PICTURE).exists()


def test_picture_of_gains_shows_the_mean_of_each_method_and_network(tmp_path: Path) -> None:
    rows = common.read_rows(scratch.RESULT)
    (axes,) = gain_picture.plot_gain(rows, tmp_path / "gain.png").axes
    assert [text.get_text() for text in axes.texts] == [*gain_picture.NETWORKS.values()]
    drawn: dict[Any, Any] = {each.get_label(): each for each in axes.containers}
    for method, (label, _) in gain_picture.METHODS.items():
        for at, name in enumerate(gain_picture.NETWORKS):
            found = common.select(rows, dataset="cifar100", network=name, method=method)
            accuracy = sum(row["test_accuracy"] for row in found) / len(found)
            assert drawn[label].lines[0].get_ydata()[at] == pytest.approx(accuracy)


def test_file_of_an_unknown_benchmark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"benchmark": "speed"}')
    with pytest.raises(ValueError, match=r"x\.json is of benchmark 'speed'"):
        render.read_reports(tmp_path)


@pytest.mark.slow
def test_training_steps_of_converted_networks_are_timed(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    out = tmp_path / "time.json"
    report = conversion_time.main(["--quick", "--out", str(out)])
    assert json.loads(out.read_text()) == report
    assert [row["dtype"] for row in report["rows"]] == list(conversion_time.DTYPES)
    for row in report["rows"]:
        costs = row["multiply_adds"]
        assert costs["strided"] == 1 < costs["converted"]
        assert costs["measured"] == pytest.approx(costs["held"])
        assert costs["held"] <= 1
        assert min(row["converted"], row["held"], row["measured"]) > 0


@pytest.mark.filterwarnings("ignore:.*in eval mode")
def test_networks_are_trained_from_scratch_and_finished_runs_are_skipped(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("lightning")
    arguments = ["--quick", "--networks", "torchvision resnet18", "--seeds", "0"]
    arguments += ["--methods", "strided", "learned"]
    arguments += ["--workdir", str(tmp_path / "runs"), "--out", str(tmp_path / "rows.jsonl")]
    rows = scratch.main(arguments)
    assert [row["method"] for row in rows] == ["strided", "learned"]
    assert rows[0]["strides"] == {}
    assert rows[1]["multiply_adds"] <= rows[0]["multiply_adds"] == rows[1]["multiply_adds_before"]
    assert scratch.main(arguments) == rows


def test_runs_of_two_data_sets_have_two_folders(tmp_path):
    run = (tmp_path, "torchvision resnet18", "learned, equal time", 0)
    cifar10, of_owner = (scratch.run_folder(*run, name) for name in ("cifar10", "owner/name"))
    assert cifar10.name == "torchvision_resnet18_learned_equal_time_0_cifar10"
    assert cifar10.parent == of_owner.parent == tmp_path
    assert cifar10 != of_owner


@pytest.mark.slow
def test_denoising_writes_rows_and_a_table(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    rows = denoising.main(["--quick", "--seeds", "0", "--out", str(out)])
    assert [row["method"] for row in rows] == list(denoising.METHODS)
    assert all(0.97 <= row["multiply_adds"] / row["multiply_adds_before"] <= 1 for row in rows)
    assert rows == denoising.main(["--quick", "--seeds", "0", "--out", str(out)])
    assert "| learned |" in capsys.readouterr().out


def _raised(function, *arguments: object) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function(*arguments)
    return caught.value


def _assert_false() -> None:
    raise AssertionError("by another package")


def test_outcomes_of_failures_are_told_apart() -> None:
    own = _raised(diffstride.convert, torch.nn.Sequential(torch.nn.ReLU()), torch.zeros(1, 3, 8, 8))
    other = _raised(int, "x")
    differs = _raised(sweep_trial.check_equal, torch.zeros(3), torch.ones(3))
    expected = {
        ("build", other): "not built",
        ("run", own): "not built",
        ("convert", own): "no stride",
        ("convert", other): "error",
        ("freeze", own): "partly",
        ("freeze", other): "error",
        ("freeze", differs): "wrong",
        ("gradients", _raised(_assert_false)): "error",
        (sweep_trial.MOVED, other): "wrong",
    }
    for (step, error), outcome in expected.items():
        assert sweep_trial.failure(step, error)["outcome"] == outcome, (step, error)
    assert sweep_trial.failure("convert", other)["frame"].endswith("in _raised")
    assert sweep_trial.failure("freeze", differs)["reason"] == "frozen outputs differ by 1 of 1"


@pytest.mark.parametrize(
    ("network", "outcome"),
    [
        (torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, stride=4)), "no stride"),
        (
            torch.nn.Sequential(
                torch.nn.Conv2d(3, 8, 4, stride=4), torch.nn.Flatten(), torch.nn.Linear(512, 2)
            ),
            "no stride",
        ),
        (sweep_networks.segnet(), "refused"),
        (sweep_networks.data_dependent(), "refused"),
    ],
    ids=["patches", "patches of a fixed number", "max-unpooling", "a number of the data"],
)
def test_refusals_count_unless_only_patches_stride(network: torch.nn.Module, outcome: str) -> None:
    error = _raised(diffstride.convert, network, torch.zeros(2, 3, 32, 32))
    assert sweep_trial.failure("convert", error)["outcome"] == outcome


def test_inputs_that_a_network_takes_are_found() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1))
    inputs = [(torch.rand(2, 3, size, size),) for size in (2, 4, 8)]
    found = sweep_trial.fitting_inputs(sweep_trial.Network(network, inputs))
    assert found[0].shape[2] == 4
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        sweep_trial.fitting_inputs(sweep_trial.Network(network, inputs[:1]))


def test_a_kind_that_takes_too_long_is_ended() -> None:
    row = sweep.try_kind(("hand-written", "lenet"), seconds=0.0, memory=8.0)
    assert row == {"outcome": "not built", "step": "build", "reason": "no end within 0 s"}


@pytest.mark.slow
def test_kinds_are_swept_and_those_with_a_row_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--out", str(tmp_path / "rows.jsonl")]
    rows = sweep.main(arguments)
    assert [f"{row['source']}/{row['kind']}" for row in rows] == list(sweep.QUICK)
    assert common.only(rows, kind="resnet_blocks")["outcome"] == "passed"
    assert common.only(rows, kind="lenet")["outcome"] in ("passed", "refused")
    for row in rows:
        assert row["contract"]["torch"] == torch.__version__
        assert row["version"] == diffstride.__version__
    printed = capsys.readouterr().out
    assert "| hand-written | " in printed
    assert sweep.main(arguments) == rows
    assert sweep.tables(rows) in capsys.readouterr().out


def test_table_of_the_sweep_counts_what_was_tried() -> None:
    row = {"source": "torchvision", "version": "1", "convert_seconds": 2.0}
    failed = {**row, "kind": "x", "outcome": "refused", "step": "convert", "reason": "a | `b`" * 40}
    passed = {**row, "outcome": "passed", "modules": 4, "layers": 2, "left_out": {"conv": "why"}}
    rows = [{**passed, "kind": str(i)} for i in range(3)]
    rows += [failed, {**row, "kind": "y", "outcome": "no stride"}]
    counts, more, listed, well = sweep.tables(rows).split("\n\n")
    assert "| torchvision | 1 | 4 | 3 | 1 | 0 | 0 |" in counts
    assert "| torchvision | 0 | 0 | 75 % | 1 | 2.00 (2.00) | – |" in more
    assert "| `torchvision/x` | refused | convert | `a \\| 'b'a" in listed
    assert listed.count("\n") == 2
    assert "| `torchvision/2` | 4 | 2 | 1 |" in well
    assert sweep.tables([]) == "No results yet: `python -m benchmarks.sweep`."


def test_cheapest_variants_are_found_by_name() -> None:
    names = ["vit_base_patch16", "vit_tiny_patch16", "vit_large_patch16"]
    assert sweep_sources.cheapest(names) == "vit_tiny_patch16"
    modules = [("a", "net50"), ("b", "x"), ("a", "net18")]
    assert sweep_sources.cheapest_by_module(modules) == ["net18", "x"]
