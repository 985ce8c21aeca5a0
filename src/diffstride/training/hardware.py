"""Settings for the speed of a machine: numerical precision, and memory kept by malloc."""

import ctypes
import platform

import torch

CPU_BFLOAT16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def choose_precision(precision: str | int, accelerator: str = "auto") -> str | int:
    """Replace ``"auto"`` by the fast precision of the hardware, ``"bf16-mixed"`` or ``"32-true"``.

    A CPU without bf16 instructions emulates them, ten times slower than float32.

    Args:
        precision: ``"auto"``, or a precision of Lightning's `Trainer`, returned as it is.
        accelerator: as for the `Trainer`.

    >>> choose_precision("32-true")
    '32-true'
    """
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = accelerator in ("auto", "cpu") and _cpu_has_bfloat16()
    return "bf16-mixed" if fast else "32-true"


def keep_freed_memory() -> bool:
    """Make glibc keep the memory of freed tensors for later ones; returns whether it could be set.

    By default glibc returns every block above 32 MiB to the system at once. The page faults of
    getting it back take longer than most layers. jemalloc and tcmalloc keep the memory anyway.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, (1 << 31) - 1))


def _cpu_has_bfloat16() -> bool:
    # Public functions for this exist from torch 2.9 on, these private ones since long before. If
    # torch lacks them, float32 is the safe answer.
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return any(getattr(torch.cpu, name, bool)() for name in CPU_BFLOAT16)
