"""The parts of `benchmarks.gpu`, each from end to end at tiny sizes on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import PIL.Image
import pytest
import torch

from benchmarks import render
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import data, device, layer, network, page, train
from benchmarks.gpu.rows import OutOfTimeError, Rows

ROOT = Path(__file__).parents[1]


def run(part: str, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The file of a part after a tiny run."""
    path = tmp_path / "gpu" / f"{part}.json"
    command.main([part, "--device", "cpu", "--tiny", "--out", str(path), *arguments])
    return json.loads(path.read_text())


def rendered(tmp_path: Path) -> str:
    return render.page(render.read_reports(tmp_path))


def measurements(report: dict[str, Any]) -> list[dict[str, Any]]:
    assert not [row for row in report["rows"] if "error" in row]
    return [each for row in report["rows"] for each in row["measurements"]]


@pytest.mark.slow
def test_layer_part(tmp_path: Path) -> None:
    report = run("layer", tmp_path)
    found = measurements(report)
    assert {row["precision"] for row in report["rows"]} == set(device.PRECISIONS)
    assert {row["runner"] for row in report["rows"]} == set(layer.RUNNERS)
    assert {"passband", "stopband", "reference", "average", "convolution"} <= {
        each["contender"] for each in found
    }
    assert all(each["median"] > 0 and each["peak_memory"] is None for each in found)
    assert all(floor["floor"] > 0 for row in report["rows"] for floor in row["floors"])
    assert "Milliseconds, forward and backward, float32, channels_last, compiled" in rendered(
        tmp_path
    )


@pytest.mark.slow
def test_network_part(tmp_path: Path) -> None:
    report = run("network", tmp_path)
    found = measurements(report)
    assert {each["pooling"] for each in found} == {"strided", "stopband"}
    assert {row["runner"] for row in report["rows"]} == set(layer.RUNNERS)
    assert all(each["floor"] > 0 for each in found)
    assert "Width 8, batch 2, 16 x 16, float32, TF32, channels_last, eager:" in rendered(tmp_path)


@pytest.mark.slow
def test_convert_part(tmp_path: Path) -> None:
    report = run("convert", tmp_path)
    strided, converted, held = measurements(report)[:3]
    assert strided["multiply_adds"] < converted["multiply_adds"]
    assert held["multiply_adds"] <= strided["multiply_adds"]
    assert "converted, cost before conversion" in rendered(tmp_path)


@pytest.mark.slow
def test_train_part_and_its_second_call(tmp_path: Path) -> None:
    report = run("train", tmp_path)
    rows = {row["row"]: row for row in report["rows"]}
    assert list(rows) == list(train.FIRST_ROWS)
    assert rows["stopband"]["multiply_adds_end"] <= rows["strided"]["multiply_adds_end"]
    assert all(len(row["losses"]) == row["epochs"] == 1 for row in rows.values())
    report = run("train", tmp_path, "--rows", "published")
    assert [row["row"] for row in report["rows"]] == [*train.FIRST_ROWS, "published"]
    assert report["rows"][:3] == list(rows.values())
    published = report["rows"][3]
    assert published["multiply_adds_start"] > 3 * rows["strided"]["multiply_adds_start"]
    assert "1 (400)" in rendered(tmp_path)


def test_a_stopped_training_resumes_as_if_it_had_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("train", tmp_path / "whole", "--rows", "stopband", "--epochs", "2")["rows"][0]
    remaining = Rows.remaining
    with monkeypatch.context() as patch:
        # The time is up after the first epoch.
        patch.setattr(train.Training, "test", lambda self: pytest.fail("it was not stopped"))
        original = train.Training.run_epoch

        def run_epoch(self: train.Training) -> None:
            original(self)
            patch.setattr(Rows, "remaining", lambda rows: -1.0)

        patch.setattr(train.Training, "run_epoch", run_epoch)
        path = tmp_path / "gpu" / "train.json"
        words = "train --device cpu --tiny --rows stopband --epochs 2"
        assert command.main([*words.split(), "--out", str(path)])["rows"] == []
    assert Rows.remaining is remaining
    assert (tmp_path / "gpu" / "train-stopband.pt").exists()
    resumed = run("train", tmp_path, "--rows", "stopband", "--epochs", "2")["rows"][0]
    for name in ("losses", "strides", "test_accuracy", "multiply_adds_end"):
        assert resumed[name] == whole[name]
    assert not (tmp_path / "gpu" / "train-stopband.pt").exists()


def test_the_recipe_is_that_of_the_configuration() -> None:
    recipe = train.read_recipe("cifar10.gin")
    assert (recipe.dataset, recipe.batch_size, recipe.epochs) == ("cifar10", 128, 400)
    assert (recipe.learning_rate, recipe.weight_decay) == (0.1, 5e-4)
    with pytest.raises(ValueError, match=r"cifar10_fast\.gin augments images"):
        train.read_recipe("cifar10_fast.gin")


def test_images_of_parquet_files_are_read_to_the_device(tmp_path: Path) -> None:
    folder = tmp_path / "colours"
    folder.mkdir()
    for split, rows in (("train", 140), ("test", 6)):
        images = [PIL.Image.new("RGB", (4, 4), (row % 256, 0, 9)) for row in range(rows)]
        features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(2))
        content = {"img": images, "label": [row % 2 for row in range(rows)]}
        datasets.Dataset.from_dict(content, features).to_parquet(folder / f"{split}.parquet")
    held = data.read_data("colours", tmp_path, torch.device("cpu"), tiny=False)
    assert held.train.images.shape == (140, 3, 4, 4)
    assert held.test.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert held.train.images[:, 0].mean().abs() < 1e-5
    assert held.train.images[:, 0].std() == pytest.approx(1, abs=0.01)


def test_batches_are_mixed_in_pairs() -> None:
    images = torch.arange(10.0).reshape(10, 1, 1, 1)
    split = data.Split(images, torch.arange(10) % 2)
    held = data.DeviceData(split, split, 2)
    found = list(data.batches(held, 2, 0.2, seed=0))
    assert len(found) == data.steps_per_epoch(held, 2, 0.2) == 2
    for x, y in found:
        assert x.shape == (2, 1, 1, 1)
        assert torch.allclose(y.sum(1), torch.ones(2))
    again = list(data.batches(held, 2, 0.2, seed=0))
    assert all(torch.equal(a, b) for a, b in zip(found[0], again[0], strict=True))
    plain = torch.cat([x.flatten() for x, _ in data.batches(held, 3, 0.0, seed=1)])
    assert len(set(plain.tolist())) == 9


@pytest.mark.slow
def test_correctness_part(tmp_path: Path) -> None:
    path = tmp_path / "gpu" / "correctness.json"
    words = ["correctness", "--device", "cpu", "--tiny", "--out", str(path)]

    def call(*more: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu", *words, *more],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert "0 rows" in call("--minutes", "1e-9")
    call()
    report = json.loads(path.read_text())
    assert report["counts"]["passed"] == len(report["rows"]) > 10
    assert report["counts"]["failed"] == report["counts"]["skipped"] == 0
    assert "nothing is left" in call()
    assert json.loads(path.read_text())["rows"] == report["rows"]
    assert f"| {report['counts']['passed']} | 0 | 0 |" in rendered(tmp_path)


def test_rows_are_measured_once_and_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, calls = tmp_path / "part.json", []

    def measure(rows: Rows, name: str, outcome: Any = None) -> None:
        def make() -> dict[str, Any]:
            calls.append(name)
            if outcome is not None:
                raise outcome
            return {"value": len(calls)}

        rows.measure({"name": name}, make)

    rows = Rows(path, "layer", {"torch": "1", "date": "today"}, seconds=60)
    measure(rows, "a")
    measure(rows, "b", torch.OutOfMemoryError("too large\nand more"))
    measure(rows, "c", OutOfTimeError())
    measure(rows, "d")
    assert calls == ["a", "b", "c"]
    assert rows.left == [{"name": "c"}, {"name": "d"}]
    assert "2 left, the same command continues with:\n  c\n  d" in rows.message()
    stored = json.loads(path.read_text())["rows"]
    assert [row["name"] for row in stored] == ["a", "b"]
    assert stored[1]["error"] == "OutOfMemoryError: too large"

    rows = Rows(path, "layer", {"torch": "1", "date": "tomorrow"}, seconds=60)
    for name in "abcd":
        measure(rows, name)
    assert calls == ["a", "b", "c", "b", "c", "d"]
    assert not any("error" in row for row in rows.report["rows"])

    rows = Rows(path, "layer", {"torch": "2", "date": "tomorrow"}, seconds=0)
    assert "part.json differs in torch: it is now part.json.old" in capsys.readouterr().out
    rows.longest = 1.0
    measure(rows, "a")
    assert rows.left == [{"name": "a"}]
    assert not path.exists()
    assert (tmp_path / "part.json.old").exists()


def test_tf32_is_set_and_restored() -> None:
    def settings() -> tuple[Any, Any]:
        owners = torch.backends.cuda.matmul, torch.backends.cudnn.conv
        return tuple(owner.fp32_precision for owner in owners)  # type: ignore[return-value]

    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has the setting allow_tf32 only")
    before = settings()
    with device.tf32(True):
        assert settings() == ("tf32", "tf32")
        with device.tf32(False):
            assert settings() == ("ieee", "ieee")
    assert settings() == before


def test_cuda_events_are_the_clock_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stand-ins: no GPU is needed to see that 30 ms of three calls are 10 ms each."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            return 30.0

    fake = SimpleNamespace(Event=Event, synchronize=lambda: log.append("idle"))
    monkeypatch.setattr(device.torch, "cuda", fake)
    sample = device.cuda_sample(lambda: log.append("call"), 3)
    assert sample.seconds == pytest.approx(0.01)
    assert log == ["idle", "record", "call", "call", "call", "record", "wait"]
    assert device.sampler(torch.device("cuda")) is device.cuda_sample


def test_a_gpu_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        command.main(["layer"])
    assert "torch finds no CUDA device: add --device cpu --tiny" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["layer", "--device", "cpu"])
    assert "--device cpu needs --tiny" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["layer", "--device", "cpu", "--tiny", "--minutes", "0"])
    assert "--minutes must be positive, but got 0.0" in capsys.readouterr().err


def test_sizes_reach_224_at_a_batch_of_128() -> None:
    assert (128, 224) in {(group.row.batch, group.row.size) for group in layer.groups(tiny=False)}
    assert (128, 224) in {(group.size.batch, group.size.size) for group in network.groups(False)}


def test_the_page_says_what_is_not_measured(tmp_path: Path) -> None:
    assert "## GPU: not measured yet" in render.page({})
    (tmp_path / "gpu").mkdir()
    report = {"benchmark": "gpu convert", "contract": {"tiny": True, "device": "A"}, "rows": []}
    report["rows"] = [{"name": "resnet50", "error": "too large", "row_seconds": 1.0}]
    (tmp_path / "gpu" / "convert.json").write_text(json.dumps(report))
    shown = rendered(tmp_path)
    assert "- error: resnet50: too large" in shown
    assert "Not measured yet: correctness, layer, network, train." in shown
    assert "**A trial run at tiny sizes, no result.**" in shown
    (tmp_path / "gpu" / "x.json").write_text('{"benchmark": "speed"}')
    with pytest.raises(ValueError, match=r"x\.json is of benchmark 'speed', expected 'gpu PART'"):
        page.read_reports(tmp_path / "gpu")
