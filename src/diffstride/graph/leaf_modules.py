"""Modules that the tracer records as one call: how they are named, and where that is kept."""

from collections.abc import Iterable, Sequence

from torch import nn

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
