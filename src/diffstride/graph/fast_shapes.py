"""What fake tensors take long for: norms, the steps of recurrent layers, products of matrices.

A network is analysed several times, and repeats its layers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffstride._torch_compat import FakeTensor, TorchDispatchMode

RECURRENT = (torch.gru, torch.lstm, torch.rnn_relu, torch.rnn_tanh)
PRODUCTS = {
    torch.ops.aten.convolution.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
}
MOST = 1 << 14  # results, of less than a kilobyte each


class FastFunctions(TorchFunctionMode):
    """Runs batch norms and recurrent layers faster, where only shapes matter.

    A batch norm keeps the shape, and does not refuse single values in training. On fake tensors
    PyTorch runs a GRU step by step, which takes seconds for a thousand steps. Here the products of
    all steps run at once; packed sequences run as they are.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is F.batch_norm:
            return torch.empty_like(args[0] if args else given["input"])
        if func in RECURRENT and len(args) == 9 and isinstance(args[2], list):
            return _all_steps(*args)
        return func(*args, **given)


def _all_steps(
    x: Tensor,
    states: Tensor | Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """The output of all steps and the last states, with numbers that mean nothing."""
    directions = 2 if bidirectional else 1
    count = len(weights) // (layers * directions)
    for layer in range(layers):
        first = layer * directions * count
        outputs = [
            _direction(x, weights[at : at + count])
            for at in range(first, first + directions * count, count)
        ]
        x = torch.cat(outputs, -1)
    states = (states,) if isinstance(states, Tensor) else states
    return x, *map(torch.empty_like, states)


def _direction(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """A layer in one direction: each of its matrices multiplies a vector at each step."""
    of_inputs, of_states, *others = (each for each in weights if each.dim() == 2)
    gates = F.linear(x, of_inputs)
    output = gates.new_empty((*x.shape[:-1], of_states.shape[1]))
    F.linear(output, of_states)
    for projection in others:
        F.linear(output.new_empty((*x.shape[:-1], projection.shape[1])), projection)
    return output


class Layout(NamedTuple):
    """All that a tensor without data has."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> "Layout":
        return cls(tuple(x.shape), x.stride(), x.dtype, x.device)

    def empty(self) -> Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)


_known: dict[tuple[Any, ...], Layout] = {}  # of all networks


class RememberedShapes(TorchDispatchMode):
    """Returns what a product returned for the same layouts before, without running it.

    To be used inside of a `FakeTensorMode`, which takes a millisecond for a convolution.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        fake = all(issubclass(each, FakeTensor) for each in types)
        if func not in PRODUCTS or kwargs or not (fake and all(map(_has_only_a_layout, args))):
            return func(*args, **(kwargs or {}))
        key = func, _settings(), *map(_as_key, args)
        if key in _known:
            return _known[key].empty()
        result = func(*args)
        if len(_known) >= MOST:
            _known.clear()
        _known[key] = Layout.of(result)
        return result


def _has_only_a_layout(value: Any) -> bool:
    """Whether nothing else of an argument counts: it is not sparse, and its numbers not known."""
    if not isinstance(value, Tensor):
        return True
    return value.layout is torch.strided and getattr(value, "constant", None) is None


def _settings() -> tuple[Any, ...]:
    """What chooses the kernel of a convolution, and so its layout, besides its arguments."""
    backends = torch.backends
    return backends.mkldnn.enabled, backends.cudnn.enabled, torch.get_num_threads()


def _as_key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Layout.of(value)
    return tuple(value) if isinstance(value, list) else value
