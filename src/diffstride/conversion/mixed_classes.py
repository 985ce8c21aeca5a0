"""Change what a module does by a class made at run time, without renaming anything.

Checkpoints, hooks and optimisers know modules by their names and classes. So a converted ``Conv2d``
stays the same object with the same parameters. Only its class becomes a subclass of ``Conv2d``,
made of a mixin of ours and the old class.
"""

from functools import cache, wraps
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


class Mixin(nn.Module):
    """Base of what is mixed into the class of a module; its name begins with ``class_prefix``."""

    class_prefix = "Mixed"

    def __reduce_ex__(self, protocol: Any) -> tuple:
        function, args, *state = super().__reduce_ex__(protocol)
        bases = type(self).__bases__
        # Pickle could not find the class by its name, since it is made at run time. A class derived
        # from it, by a parametrization for instance, has its own way to be restored, or none.
        if len(bases) == 2 and issubclass(bases[0], Mixin):
            function, args = _restore, bases
        return function, args, *state


def mix_in(module: nn.Module, mixin: type[Mixin]) -> None:
    """Mix a class of ours into the class of a module, in place."""
    base = type(module)
    if not is_parametrized(module):
        module.__class__ = mixed_class(mixin, base)
        return
    # Removing a parametrization removes the outermost class, which torch made for it. So that one
    # stays outermost, derived from a mixed class instead.
    mixed = mixed_class(mixin, base.__bases__[0])
    own = {k: v for k, v in vars(base).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(f"Parametrized{mixed.__name__}", (mixed,), own)


@cache
def mixed_class(mixin: type[Mixin], base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of both; cached, so that types compare equal.

    Its ``forward`` has the signature of the old class, which exporters read for names and shapes.
    """

    @wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return mixin.forward(self, *args, **kwargs)

    about = f"{base.__name__}, changed by `{mixin.__module__}.{mixin.__name__}`."
    namespace = {"__doc__": about, "forward": forward}
    return type(f"{mixin.class_prefix}{base.__name__}", (mixin, base), namespace)


def _restore(mixin: type[Mixin], base: type[nn.Module]) -> nn.Module:
    cls = mixed_class(mixin, base)
    return cls.__new__(cls)
