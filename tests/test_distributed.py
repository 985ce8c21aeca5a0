"""Two processes with half batches train as one process with whole batches."""

import json
import subprocess
import sys

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


@pytest.mark.slow
def test_a_signal_to_stop_ends_all_processes_between_two_steps(tmp_path):
    stopped = run_script(tmp_path, "--processes", 2, "--terminate", STEPS_PER_EPOCH + 2)
    assert "stopped; the same command resumes this run" in stopped.stdout, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "epoch   2/3" not in stopped.stdout
    with locked(tmp_path / "checkpoints", wait=False) as free:
        assert free


BUDGETS = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from diffstride import CostBudget, DiffStride
rank, store, stride, when = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
pooling = DiffStride(stride if rank else 1.5)
net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), pooling, nn.Conv2d(8, 8, 3, padding=1))
x = torch.zeros(1, 1, 20, 20)
budget = CostBudget(net, x, 0.7) if when == "before" else None
ddp = nn.parallel.DistributedDataParallel(net)
budget = budget or CostBudget(ddp.module, x, 0.7)
optimizer = torch.optim.SGD(net.parameters(), lr=0.001)
for step in range(3):
    torch.manual_seed(2 * step + rank)
    optimizer.zero_grad()
    ddp(torch.randn(4, 1, 20, 20)).square().sum().backward()
    optimizer.step()
    budget.project_()
print(pooling.strides.tolist(), flush=True)
dist.barrier()
os._exit(0)  # threads of the process group may abort an interpreter that shuts down
"""


@pytest.mark.parametrize(
    ("stride", "when", "right"),
    [(2.5, "before", False), (2.5, "after", True)],
    ids=["before", "after"],
)
def test_a_budget_built_before_ddp_needs_equal_networks(tmp_path, stride, when, right):
    command = [sys.executable, "-c", BUDGETS]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), str(stride), when],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    printed, errors = zip(*(each.communicate(timeout=120) for each in ranks), strict=True)
    assert [each.returncode == 0 for each in ranks] == [right, right], errors
    if right:
        first, second = (each.splitlines()[-1] for each in printed)  # gloo may print before
        assert first == second
    for error in errors if not right else ():
        assert "budgets of the processes differ" in error
        assert "build CostBudget after DistributedDataParallel" in error
