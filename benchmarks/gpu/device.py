"""A device, its facts and its clock: CUDA events on a GPU, the clock of the CPU elsewhere."""

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.machine import processor_name
from benchmarks.timing import Effort, Sample, cpu_sample, measure

MEASURED_STEPS = 3  # of which the peak memory is taken


class Precision(NamedTuple):
    """A dtype, and whether products of float32 may use TF32."""

    dtype: str
    tf32: bool


PRECISIONS = {
    "float32": Precision("float32", False),
    "float32, TF32": Precision("float32", True),
    "bf16": Precision("bfloat16", False),
}


def facts(device: torch.device) -> dict[str, Any]:
    """What a timing depends on apart from the machine: the GPU, CUDA and cuDNN."""
    if device.type != "cuda":
        return {"device": processor_name()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "device_memory": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def cuda_sample(call: Callable[[], Any], calls: int) -> Sample:
    """Time that many calls by CUDA events, gaps between their kernels included."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return Sample(start.elapsed_time(end) / 1e3 / calls, math.nan)  # elapsed_time is in ms


def sampler(device: torch.device) -> Callable[[Callable[[], Any], int], Sample]:
    """The clock of a device, for `benchmarks.timing.measure`."""
    return cuda_sample if device.type == "cuda" else cpu_sample


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all work that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let products and convolutions of float32 use TF32, or forbid it, and restore the setting."""
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # from torch 2.9 on
        name, value = "fp32_precision", "tf32" if allowed else "ieee"
        owners = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # pyright: ignore
    else:
        name, value = "allow_tf32", allowed
        owners = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [getattr(owner, name) for owner in owners]
    for owner in owners:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, old in zip(owners, before, strict=True):
            setattr(owner, name, old)


def product_rate(device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...]) -> float:
    """Multiply-adds a second of square matrix products, the best of these sizes."""
    squares = {size: torch.randn(size, size, device=device).to(dtype) for size in sizes}
    calls = {size: partial(torch.mm, square, square) for size, square in squares.items()}
    timings = measure(calls, Effort(repeats=5), sampler(device))
    return max(size**3 / timing.lower_quartile for size, timing in timings.items())


def peak_memory(device: torch.device, make: Callable[[], Callable[[], Any]]) -> int | None:
    """Peak bytes of tensors on a GPU while ``make`` builds a call and it runs; elsewhere None."""
    if device.type != "cuda":
        return None
    gc.collect()  # what is freed later would count as free from the start
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call = make()
    for _ in range(MEASURED_STEPS):
        call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_of_call(device: torch.device, call: Callable[[], Any]) -> int | None:
    """By how many bytes the tensors on a GPU grow during a call, at most; elsewhere None."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
