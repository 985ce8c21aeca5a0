"""Two processes with half batches train as one process with whole batches."""

import json

import pytest
from tiny_runs import EPOCHS, STEPS_PER_EPOCH, WriteStrides, run_script, train_tiny

from diffstride.training.files import locked


def read(path):
    return json.loads(path.read_text())


# Batch norms stay in evaluation mode: on a CPU they cannot share statistics between processes.
@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_two_processes_learn_the_strides_of_one(tmp_path):
    pair = run_script(tmp_path / "pair", "--processes", 2, "--strides", tmp_path / "pair_strides")
    assert pair.returncode == 0, pair.stderr
    writer = WriteStrides(tmp_path / "single_strides")
    single = train_tiny(tmp_path / "single", frozen_norms=True, callbacks=[writer])

    ranks = [read(tmp_path / "pair_strides" / f"{rank}.json") for rank in (0, 1)]
    alone = read(tmp_path / "single_strides" / "0.json")
    assert ranks[0] == ranks[1]
    assert len(alone) == len(ranks[0]) == EPOCHS * STEPS_PER_EPOCH
    for step, strides in enumerate(alone):
        assert ranks[0][step] == pytest.approx(strides, abs=1e-6)
    assert max(abs(stride - 2.0) for stride in alone[-1].values()) > 1e-3

    # 101 test images are odd, and each must count once.
    summary = read(tmp_path / "pair" / "summary.json")
    assert summary["test_accuracy"] == pytest.approx(single["test_accuracy"], abs=1e-3)
    assert summary["multiply_adds_end"] == single["multiply_adds_end"]
    assert pair.stdout.count("epoch   1/3") == 1


def test_a_signal_to_stop_ends_all_processes_between_two_steps(tmp_path):
    stopped = run_script(tmp_path, "--processes", 2, "--terminate", STEPS_PER_EPOCH + 2)
    assert "stopped; the same command resumes this run" in stopped.stdout, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "epoch   2/3" not in stopped.stdout
    with locked(tmp_path / "checkpoints", wait=False) as free:
        assert free
