"""Caches outside of a network that its forward pass fills: those of functions and of their files.

A run on shapes alone leaves fake tensors there, and a trace proxies. Later the network would take
them in place of true tensors, and train nothing.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import FunctionType, ModuleType
from typing import Any
from weakref import ref

from torch import fx, nn

from diffstride._torch_compat import FakeTensor

DEPTH = 4  # of containers in a cache
OTHERS = "builtins", "diffstride", "functools", "torch", "typing"
_LruCache: Any = type(lru_cache(lambda: None))


@contextmanager
def kept_out_of_caches(model: nn.Module) -> Iterator[None]:
    """Forget, afterwards, what a run on shapes alone has put into caches outside of the model.

    Functions with `functools.cache` or `functools.lru_cache` forget all values if one of them is
    fake. Fake values are removed from dictionaries at the top of the files that define the classes
    of the model or functions that these files have imported.
    """
    files = _files_of(model)
    before = {id(cache): cache.cache_info().misses for cache in _function_caches(files)}
    try:
        yield
    finally:
        for cache in _function_caches(files):
            ran = cache.cache_info().misses > before.get(id(cache), 0)
            if ran and any(map(_is_fake, gc.get_referents(cache))):
                cache.cache_clear()
        for file in files:
            for name, value in [*vars(file).items()]:
                if type(value) is dict and not name.startswith("__"):
                    _forget_fakes(value)


def _files_of(model: nn.Module) -> list[ModuleType]:
    classes = {each for kind in set(map(type, model.modules())) for each in kind.__mro__}
    files = _loaded({each.__module__ for each in classes})
    values = [value for file in files for value in [*vars(file).values()]]
    imported = _loaded({each.__module__ for each in values if isinstance(each, FunctionType)})
    return list(dict.fromkeys([*files, *imported]))


def _loaded(names: set[str]) -> list[ModuleType]:
    """The modules of Python with these names, without those of torch and of this library."""
    own = {name for name in names if name and name.partition(".")[0] not in OTHERS}
    return [sys.modules[name] for name in own if name in sys.modules]


def _function_caches(files: list[ModuleType]) -> list[Any]:
    """The caches of functions: all that imported modules have, and later ones of these files."""
    in_files = (value for file in files for value in vars(file).values())
    caches = [*_CACHES_OF_MODULES.alive(), *(each for each in in_files if type(each) is _LruCache)]
    return list({id(cache): cache for cache in caches}.values())


class _CachesOfModules:
    """Finds caches again only where modules were imported since: it takes 50 ms."""

    def __init__(self) -> None:
        self.modules = 0
        self.caches: list[Any] = []

    def alive(self) -> list[Any]:
        if self.modules != len(sys.modules):
            self.modules = len(sys.modules)
            self.caches = [ref(each) for each in gc.get_objects() if type(each) is _LruCache]
        return [cache for each in self.caches if (cache := each()) is not None]


_CACHES_OF_MODULES = _CachesOfModules()


def _forget_fakes(values: dict[Any, Any], depth: int = DEPTH) -> None:
    for key, value in [*values.items()]:
        if type(value) is dict and depth:  # a dictionary may hold itself
            _forget_fakes(value, depth - 1)
        elif _is_fake(value):
            del values[key]


def _is_fake(value: Any, depth: int = DEPTH) -> bool:
    if isinstance(value, FakeTensor | fx.Proxy):
        return True
    if depth == 0 or type(value) not in (dict, list, tuple):
        return False
    parts = [*value.keys(), *value.values()] if type(value) is dict else value
    return any(_is_fake(each, depth - 1) for each in parts)
