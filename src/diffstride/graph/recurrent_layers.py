"""Recurrent layers on fake tensors, all steps at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

RECURRENT = (torch.gru, torch.lstm, torch.rnn_relu, torch.rnn_tanh)


class StepsAtOnce(TorchFunctionMode):
    """Runs recurrent layers as products of all steps at once, where only shapes matter.

    On fake tensors PyTorch runs a GRU step by step, which takes seconds for a thousand steps. The
    shapes and the products are the same. Packed sequences run as they are.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in RECURRENT and len(args) == 9 and isinstance(args[2], list):
            return _all_steps(*args)
        return func(*args, **(kwargs or {}))


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
