"""The most memory that a network needs, measured in a process of its own.

What counts on a CPU is the resident memory of the process, for that is what a machine runs out of.
It includes what a profiler of torch's own tensors does not see: the work space of convolutions and
FFTs. It usually depends on the allocator as well, which keeps freed memory or not as it likes;
here freed memory goes back at once, so that the peak is that of what is alive, and repeatable.

The number is the rise of the peak over the process before the network was made, after a step of a
tiny network of the same kind has loaded code and made threads. It holds weights, gradients, the
optimiser's momenta, activations and work space.
"""

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.machine import ROOT, set_allocator
from benchmarks.steps import FEWEST_CHANNELS, PHASES, Task, step_of

STATUS = Path("/proc/self/status")
STEPS = 3


def peaks(task: Task) -> dict[str, int | None]:
    """Peak bytes by phase, or None where the system does not tell (it takes Linux and glibc)."""
    if not STATUS.exists():
        return dict.fromkeys(PHASES)
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", json.dumps(task), str(torch.get_num_threads())],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


def measure_peaks(task: Task) -> dict[str, int]:
    """The peaks of this process, which should be a fresh one."""
    found = {}
    for phase in PHASES:
        step_of(task._replace(width=FEWEST_CHANNELS, batch=2), phase)()
        found[phase] = peak_rise(partial(step_of, task, phase))
    return found


def peak_rise(make_step: Callable[[], Callable[[], object]]) -> int:
    """By how many bytes the resident memory rises above what it is now, at most."""
    gc.collect()
    before = _resident("VmRSS")
    # From here on Linux counts the peak anew.
    Path("/proc/self/clear_refs").write_text("5")
    step = make_step()
    for _ in range(STEPS):
        step()
    return _resident("VmHWM") - before


def _resident(kind: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(kind + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {kind}")


def main() -> None:
    task, threads = sys.argv[1:]
    set_allocator("release")
    torch.set_num_threads(int(threads))
    print(json.dumps(measure_peaks(Task(*json.loads(task)))))


if __name__ == "__main__":
    main()
