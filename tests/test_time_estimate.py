"""The estimate of how long a training takes on a CPU."""

from types import SimpleNamespace

import pytest
import torch
from tiny_runs import train_tiny

from diffstride.training import time_estimate
from diffstride.training.time_estimate import TimeEstimate


@pytest.mark.parametrize(
    ("device", "seconds", "printed"), [("cpu", 9.0, 1), ("cpu", 0.1, 0), ("meta", 9.0, 0)]
)
def test_only_long_trainings_on_a_cpu_are_announced_once(monkeypatch, device, seconds, printed):
    clock = iter(range(1000))
    monkeypatch.setattr(time_estimate.time, "perf_counter", lambda: seconds * 3 * next(clock))
    lines = []
    module = SimpleNamespace(
        device=torch.device(device), print=lambda text, **options: lines.append(text)
    )
    trainer = SimpleNamespace(estimated_stepping_batches=78_004, global_step=4)
    estimate = TimeEstimate()
    estimate.on_train_start(trainer, module)
    for _ in range(10):
        estimate.on_train_batch_end(trainer, module)
    assert len(lines) == printed
    if printed:
        assert lines[0].startswith("estimate: 195 hours on this CPU")
        assert "cifar10_small.gin" in lines[0]


def test_estimate_is_printed_above_a_progress_bar(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(time_estimate, "LONG", 0)
    train_tiny(tmp_path / "run", num_epochs=1, progress_bar=True)
    assert "hours on this CPU, without tests: 1 step " in capsys.readouterr().out
