"""Modules that are loaded when they are first used, so that the help of commands comes at once."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


class _LazyModule:
    """Stands for a module that may not be loaded yet, and has the attributes of that.

    It is not in ``sys.modules``, other than the modules of `importlib.util.LazyLoader`. `inspect`
    reads an attribute of all that are there, which would load them, even in the middle of an import
    of torch.
    """

    __slots__ = ("_path",)  # no __dict__ of its own: that of the module is found

    def __init__(self, path: str) -> None:
        object.__setattr__(self, "_path", path)

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._path), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(import_module(self._path), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(import_module(self._path), name)

    def __dir__(self) -> list[str]:
        return dir(import_module(self._path))


def lazy_modules(package: str, *names: str) -> Callable[[str], Any]:
    """A ``__getattr__`` for a package, with which ``from package import name`` loads nothing yet.

    The module is loaded when an attribute of it is first used. ``import package.name`` and ``from
    package.name import something`` load it at once, as always.

    Args:
        package: name of the package.
        names: names of the modules in it that are slow to load.

    Returns:
        The function. It raises `AttributeError` for other names, which Python then imports.

    >>> find = lazy_modules("xml.etree", "ElementTree")
    >>> find("ElementTree").fromstring("<a/>").tag
    'a'
    """

    def find(name: str) -> _LazyModule:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return _LazyModule(f"{package}.{name}")

    return find
