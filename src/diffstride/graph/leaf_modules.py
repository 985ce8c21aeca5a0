"""Modules that the tracer records as one call: which these are, and where their names are kept."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from diffstride._torch_compat import class_of
from diffstride.pooling.base import SizedPooling

Leaf = str | type[nn.Module]


class LeafModulesRecord:
    """Base of a record that a network carries as an attribute: `trace` reads its leaf modules.

    So a network that was traced with ``leaf_modules`` once need not be given them again.
    """

    leaf_modules: tuple[Leaf, ...]


class TracedInto(nn.Module):
    """Base of modules that `trace` never records as one call, though they have a stride."""


def as_leaves(leaf_modules: Iterable[Leaf] | Leaf) -> tuple[Leaf, ...]:
    """The names and classes in ``leaf_modules``, which may also be a single one."""
    return (leaf_modules,) if isinstance(leaf_modules, (str, type)) else tuple(leaf_modules)


def is_among(leaves: Sequence[Leaf], name: str, module: nn.Module) -> bool:
    """Whether ``leaves`` contain the name of a module or one of its classes."""
    return name in leaves or isinstance(module, tuple(t for t in leaves if isinstance(t, type)))


def recorded_leaves(model: nn.Module) -> tuple[Leaf, ...]:
    """The leaf modules in the records of a network and of its parts, by their full names."""
    modules = dict(model.named_modules())
    leaves: list[Leaf] = []
    for prefix, module in modules.items():
        records = (r for r in vars(module).values() if isinstance(r, LeafModulesRecord))
        for leaf in (leaf for record in records for leaf in record.leaf_modules):
            name = f"{prefix}.{leaf}" if prefix else leaf
            if not isinstance(leaf, str):
                leaves.append(leaf)
            elif name in modules:
                leaves.append(name)
    return tuple(leaves)


def is_leaf(module: nn.Module, name: str, leaves: Sequence[Leaf]) -> bool:
    """Whether a module is recorded as one call: see `diffstride.graph.tracer.trace`."""
    if isinstance(module, TracedInto):
        return False
    return (
        is_among(leaves, name, module)
        or isinstance(module, SizedPooling | torch.jit.ScriptModule)
        or (hasattr(module, "stride") and not any(map(_is_network, _inner_modules(module))))
        or (is_of_torch(module) and not any(map(_is_to_be_traced, _inner_modules(module))))
    )


def _inner_modules(module: nn.Module) -> list[nn.Module]:
    """All modules inside, without parametrizations."""
    children = [child for name, child in module.named_children() if name != "parametrizations"]
    return [*children, *(inner for child in children for inner in _inner_modules(child))]


def _is_network(module: nn.Module) -> bool:
    """Whether a module pools or has weights or strides, unlike a padding or an activation."""
    pools = isinstance(module, SizedPooling) or hasattr(module, "stride")
    return pools or any(True for _ in module.parameters(recurse=False))


def is_of_torch(module: nn.Module) -> bool:
    """Whether the class of a module is one of torch's layers, and none that only holds others."""
    name = class_of(module).__module__
    of_torch = name.startswith(("torch.nn.", "torch.ao.nn."))
    return of_torch and not isinstance(module, nn.Sequential | nn.DataParallel)


def _is_to_be_traced(module: nn.Module) -> bool:
    """Whether a module inside one of torch, such as a user's layer, may have a stride."""
    return hasattr(module, "stride") or not is_of_torch(module)
