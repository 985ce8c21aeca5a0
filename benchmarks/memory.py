"""Peak memory of a network on a CPU, measured in a process of its own.

Measured is the resident memory of the process, which is what a machine runs out of. Unlike a
profiler of torch's tensors it includes the work space of convolutions and FFTs. Freed memory
returns to the system at once, so that the peak is that of live tensors and repeatable.

The number is the rise of the peak above the memory before the network was made. A step of a tiny
network of the same kind comes first, to load code and start threads. The number includes weights,
gradients, momenta of the optimiser, activations and work space.
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
    """Peak bytes in each phase, None on systems other than Linux."""
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
    """Peak bytes in each phase of this process, which should be a fresh one."""
    found = {}
    for phase in PHASES:
        step_of(task._replace(width=FEWEST_CHANNELS, batch=2), phase)()
        found[phase] = peak_rise(partial(step_of, task, phase))
    return found


def peak_rise(make_step: Callable[[], Callable[[], object]]) -> int:
    """The largest rise of the resident memory above the present one, in bytes."""
    gc.collect()
    before = _resident("VmRSS")
    # This resets the peak that Linux records.
    Path("/proc/self/clear_refs").write_text("5")
    step = make_step()
    for _ in range(STEPS):
        step()
    return _resident("VmHWM") - before


def _resident(kind: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(kind + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no line {kind}: the peak cannot be measured here")


def main() -> None:
    task, threads = sys.argv[1:]
    set_allocator("release")
    torch.set_num_threads(int(threads))
    print(json.dumps(measure_peaks(Task(*json.loads(task)))))


if __name__ == "__main__":
    main()
