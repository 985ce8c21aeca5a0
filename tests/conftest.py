"""What several test modules share: the slow obvious version and where real images lie."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# The tests compute on small tensors, in which a second thread only gets in the way, twice so on
# cores that others use. Set before torch is loaded, for the programs that tests start as well.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

RELEASE = tuple(map(int, torch.__version__.split(".")[:2]))  # of torch
PUBLISHED = {"edge": "passband", "straight_through": False}  # the window of the published layer
WINDOWED = {"edge": "stopband", "straight_through": False}
DATA = Path(os.environ.get("DIFFSTRIDE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def gin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder of the test's own, after which Gin is as it was."""
    import gin  # here, since most tests do without

    monkeypatch.chdir(tmp_path)
    yield tmp_path
    gin.clear_config()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests away from the user's folders and environment variables."""
    import datasets  # here, since most tests do without

    monkeypatch.delenv("DIFFSTRIDE_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def quiet_datasets() -> Iterator[None]:
    """Data sets are read without progress bars."""
    import datasets

    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def cifar_root() -> Path:
    if not (DATA / "cifar10" / "train.parquet").exists():
        pytest.skip(f"no CIFAR-10 under {DATA}; set DIFFSTRIDE_DATA to a folder that has it")
    return DATA


def literal_window(size: int, stride: float, smoothness_factor: float, edge: str) -> Tensor:
    """The gains of the bins ``0 … floor(N/2)``, written from the design's table."""
    width = min(smoothness_factor, size / 4)
    if edge == "passband":
        stride = max(stride, size / (size - width))
        cutoff = size / (2 * stride) + width
    else:
        width = max(1.0, min(smoothness_factor, size / 8))
        cutoff = max(size / (2 * stride), min(1.0, size / 2))
    bins = torch.arange(size // 2 + 1, dtype=torch.float64)
    gains = ((cutoff - bins) / width).clip(0, 1)
    gains[0] = 1.0
    return gains


def literal_pool_axis(x: Tensor, gains: Tensor, output_size: int, dim: int) -> Tensor:
    """FFT, symmetric window, symmetric crop with both Nyquist halves averaged, inverse FFT."""
    size = x.shape[dim]
    spectrum = torch.fft.fft(x.movedim(dim, -1).to(torch.complex128))
    out = torch.zeros(*spectrum.shape[:-1], output_size, dtype=torch.complex128)
    for k in range(-(output_size // 2), output_size // 2 + 1):
        share = 0.5 if 2 * abs(k) == output_size else 1.0
        if 2 * abs(k) == size == output_size:
            share = 0.5  # one bin stands for both halves
        out[..., k % output_size] += share * gains[abs(k)] * spectrum[..., k % size]
    return (torch.fft.ifft(out).real * output_size / size).movedim(-1, dim)


def literal_diff_stride(
    x: Tensor,
    strides: tuple[float, ...],
    output_size: tuple[int, ...],
    smoothness_factor: float,
    edge: str,
) -> Tensor:
    """`diffstride.diff_stride` on complex FFTs, one bin at a time."""
    for i, (stride, out) in enumerate(zip(strides, output_size, strict=True)):
        dim = x.dim() - len(strides) + i
        gains = literal_window(x.shape[dim], stride, smoothness_factor, edge)
        x = literal_pool_axis(x, gains, out, dim)
    return x
