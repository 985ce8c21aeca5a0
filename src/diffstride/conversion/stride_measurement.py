"""Measure on noise whether the stride of a module can be replaced by pooling at stride 1.

It can if the strided output is the output at stride 1, sampled. No table of types says so, so
modules of any library are accepted.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from diffstride._torch_compat import Conv
from diffstride._wording import one_line
from diffstride.conversion.module_strides import set_stride, stride_of
from diffstride.conversion.strided_call import StridedCall
from diffstride.graph.restoring import restoring
from diffstride.graph.tracer import Trace

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def measure_call(trace: Trace, node: fx.Node, module: nn.Module) -> StridedCall | str:
    """Measure a call of a module; returns a reason if its stride cannot be replaced."""
    source = trace.values[node.args[0]]  # type: ignore[index]
    strides = stride_of(module, source.dim() - 2)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((1, *source.shape[1:]), generator=generator, device=generator.device)
    noise = noise.to(source.device, source.dtype)
    args, kwargs = fx.map_arg((node.args[1:], node.kwargs), lambda n: trace.values[n])
    if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        return "takes more than one tensor"
    # Spectral norm changes its weight from one call to the next in training, unless it is cached.
    with restoring(module), torch.random.fork_rng(devices=[]), parametrize.cached():
        try:
            with trace.autocast(node):
                run = partial(_run_on, module, args, kwargs)
                strided = full = run(noise)
                # Without a stride, nothing to compare; dropout would not return the same twice.
                if hasattr(module, "stride"):
                    set_stride(module, 1)
                    full = run(noise)
                # A class of its own may do more, such as an activation, that pooling must follow.
                affine = not isinstance(module, Conv) or convolves(module) or _is_affine(run, noise)
        except Exception as error:
            return f"cannot be measured at stride 1 ({one_line(error, most=150)})"
    crop = _first_sample(strided, full, strides)
    if crop is None:
        return "its output is not its output at stride 1, sampled"
    return StridedCall(
        node,
        module,
        strides,
        input_size=tuple(source.shape[2:]),
        full_size=tuple(size - c for size, c in zip(full.shape[2:], crop, strict=True)),
        crop=crop,
        strided_size=tuple(strided.shape[2:]),
        affine=affine,
    )


def _run_on(module: Any, args: Any, kwargs: Any, x: Tensor) -> Tensor:
    return module.forward(x, *args, **kwargs)


def convolves(module: nn.Module) -> bool:
    """Whether a module computes what a convolution of torch computes, as its class tells."""
    return (
        isinstance(module, CONVOLUTIONS)
        and any(type(module).forward is kind.forward for kind in CONVOLUTIONS)
        and any(type(module)._conv_forward is kind._conv_forward for kind in CONVOLUTIONS)
        and "forward" not in vars(module)
    )


def _is_affine(function: Callable[[Tensor], Tensor], noise: Tensor) -> bool:
    """Whether ``f(a + b) + f(0) = f(a) + f(b)``, up to rounding, for numbers of any sign."""
    a, b = noise - 0.5, 1 - 2 * noise.flip(-1)
    together, apart = function(a + b) + function(0 * a), function(a) + function(b)
    return _are_close(together, apart, apart.abs().max().item())


def _are_close(one: Tensor, other: Tensor, largest: float) -> bool:
    """Whether two results agree up to rounding, for weights that may be tiny."""
    tolerance = 1e-4 if one.dtype in (torch.float32, torch.float64) else 2e-2
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * largest)


def _first_sample(strided: Tensor, full: Tensor, strides: Sequence[int]) -> tuple[int, ...] | None:
    """The index of the first strided sample in the output at stride 1; None if samples differ.

    Extra samples at the end, due to ``ceil_mode``, are not compared.
    """
    largest = strided.abs().max().item()  # weights may be tiny
    for start in product(*map(range, strides)):
        window = [slice(first, None, step) for first, step in zip(start, strides, strict=True)]
        sampled = full[(..., *window)]
        common = [slice(min(sizes)) for sizes in zip(sampled.shape, strided.shape, strict=True)]
        one, other = sampled[tuple(common)], strided[tuple(common)]
        if one.numel() and _are_close(one, other, largest):
            return start
    return None
