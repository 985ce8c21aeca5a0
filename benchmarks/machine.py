"""The machine: processor, memory allocator, and speed of products and copies."""

import ctypes
import os
import platform
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import diffstride
from diffstride.training.hardware import choose_precision
from experiments.source_commit import DIRTY, read_commit

ROOT = Path(__file__).parents[1]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_THRESHOLDS = {
    # The process keeps freed memory and reuses it, as with jemalloc and tcmalloc. By default glibc
    # maps memory anew for every large tensor. The kernel clears its pages at one page fault each,
    # which takes longer than many layers.
    "keep": {_M_MMAP_THRESHOLD: 1 << 30, _M_TRIM_THRESHOLD: (1 << 31) - 1},
    # Freed memory returns to the system at once: the resident memory is that of live tensors.
    "release": {_M_MMAP_THRESHOLD: 1 << 16, _M_TRIM_THRESHOLD: 1 << 16},
}


def set_allocator(name: str) -> None:
    """Choose what glibc does with freed memory; call this before tensors are made.

    ``"default"`` changes nothing, ``"keep"`` and ``"release"`` need glibc (RuntimeError without).
    """
    if name == "default":
        return
    if platform.libc_ver()[0] != "glibc":
        raise RuntimeError(f"allocator {name!r} needs glibc, which is not in use: use 'default'")
    libc = ctypes.CDLL(None)
    for parameter, value in _THRESHOLDS[name].items():
        if libc.mallopt(parameter, value) != 1:
            raise RuntimeError(f"glibc refused mallopt({parameter}, {value}) of {name!r}")


def processor_name() -> str:
    """The model of the processor, from the kernel if possible, else from Python."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def multiplies_bfloat16() -> bool:
    """Whether the processor has bf16 matrix products; torch emulates them otherwise."""
    return choose_precision("auto", "cpu") == "bf16-mixed"


def environment() -> dict[str, Any]:
    """Facts of machine and software that a timing depends on."""
    commit = read_commit("src", ":(glob)benchmarks/**/*.py") or "unknown"
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "multiplies_bfloat16": multiplies_bfloat16(),
        "system": " ".join((platform.system(), *platform.libc_ver())).strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffstride": diffstride.__version__,
        "commit": commit.removesuffix(DIRTY),
        "uncommitted_changes": commit.endswith(DIRTY),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def product_rate(dtype: torch.dtype, sizes: tuple[int, ...], repeats: int = 4) -> float:
    """MACs a second of square matrix products, the best over sizes and repeats."""
    return max(_product_rate(torch.randn(size, size).to(dtype), repeats) for size in sizes)


def _product_rate(square: torch.Tensor, repeats: int) -> float:
    torch.mm(square, square)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(square, square)
        best = min(best, time.perf_counter() - start)
    return square.shape[0] ** 3 / best


def floor_seconds(
    multiply_adds: float, moved_bytes: float, products: float, copies: float
) -> float:
    """A lower bound of the time of a layer, from its products and its input and output.

    ``products`` is MACs a second, ``copies`` is bytes read and written a second.

    >>> floor_seconds(2e9, 1e9, products=1e9, copies=1e9)
    2.0
    """
    return max(multiply_adds / products, moved_bytes / copies)
