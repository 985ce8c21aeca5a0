"""Caches outside of a network that its forward pass fills: those of functions, classes and files.

A run on shapes alone leaves fake tensors there, and a trace proxies. Later the network would take
them in place of true tensors, and train nothing.
"""

import gc
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import EnumMeta
from functools import lru_cache
from itertools import islice
from types import FunctionType, ModuleType
from typing import Any
from weakref import ref

from torch import Tensor, fx, nn

from diffstride._torch_compat import FakeTensor, hook_dictionaries

DEPTH = 4  # of containers and objects in a value of a cache
NESTED = 2  # containers in containers of a file that are looked through,
NEWEST = 300  # and their items, from the last one back: data of the user may be there, too
OTHERS = {*sys.stdlib_module_names, "diffstride", "numpy", "torch"}
FAKES = FakeTensor, fx.Proxy, tuple  # of which a tuple may hold some
_LruCache: Any = type(lru_cache(lambda: None))


@contextmanager
def kept_out_of_caches(model: nn.Module) -> Iterator[None]:
    """Forget, afterwards, what a run on shapes alone has put into caches outside of the model.

    Functions with `functools.cache` or `functools.lru_cache` forget all values if one of them is
    fake. Variables, dictionaries and lists lose fake values if they belong to a file that defines
    classes or hooks of the model, or functions that such a file has imported, or to a class, a
    function or an object at its top.
    """
    holders = _holders(_files_of(model))
    before = [(holder, dict(vars(holder))) for holder in holders]
    with_caches = [*holders, *model.modules()]
    misses = {id(cache): cache.cache_info().misses for cache in _function_caches(with_caches)}
    try:
        yield
    finally:
        for cache in _function_caches(with_caches):
            ran = cache.cache_info().misses > misses.get(id(cache), 0)
            if ran and any(map(_is_fake, gc.get_referents(cache))):
                cache.cache_clear()
        for holder, values in before:
            _restore_variables(holder, values)


def is_plain_object(value: Any) -> bool:
    """Whether a value is of a class of the user that may keep values, such as a cache of grids."""
    library = type(value).__module__.partition(".")[0] in OTHERS
    others = nn.Module, Tensor, type, ModuleType, FunctionType
    return hasattr(value, "__dict__") and not library and not isinstance(value, others)


def _files_of(model: nn.Module) -> list[ModuleType]:
    modules = list(model.modules())
    classes = {each for kind in set(map(type, modules)) for each in kind.__mro__}
    dictionaries = [hooks for module in modules for hooks in hook_dictionaries(module) if hooks]
    hooks = {getattr(hook, "__module__", "") for each in dictionaries for hook in each.values()}
    files = _loaded({each.__module__ for each in classes} | hooks)
    values = [value for file in files for value in [*vars(file).values()]]
    imported = _loaded({each.__module__ for each in values if isinstance(each, FunctionType)})
    return list(dict.fromkeys([*files, *imported]))


def _loaded(names: set[Any]) -> list[ModuleType]:
    """The modules of Python with these names, without those of torch and of this library."""
    own = {name for name in names if name and name.partition(".")[0] not in OTHERS}
    return [sys.modules[name] for name in own if name in sys.modules]


def _holders(files: list[ModuleType]) -> list[Any]:
    """These files, and the classes, functions and objects at their top."""
    holders: list[Any] = [*files]
    for file in files:
        for value in [*vars(file).values()]:
            own = isinstance(value, type | FunctionType) and value.__module__ == file.__name__
            if (own and not isinstance(value, EnumMeta)) or is_plain_object(value):
                holders.append(value)
    return list({id(holder): holder for holder in holders}.values())


def _function_caches(holders: list[Any]) -> list[Any]:
    """The caches of functions: all that imported modules have, and those of later definitions."""
    values = [value for holder in holders for value in [*vars(holder).values()]]
    functions = [value.__func__ if isinstance(value, staticmethod) else value for value in values]
    caches = [*_CACHES_OF_MODULES.alive(), *(each for each in functions if type(each) is _LruCache)]
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


def _restore_variables(holder: Any, before: dict[str, Any]) -> None:
    for name, value in [*vars(holder).items()]:
        if name.startswith("__"):
            continue
        if isinstance(value, FunctionType):
            _forget_fakes([*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()])
        elif isinstance(value, dict | list | deque):
            _forget_fakes(value)
        elif isinstance(value, FAKES) and _is_fake(value):
            if name in before:
                setattr(holder, name, before[name])
            else:
                delattr(holder, name)


def _forget_fakes(values: Any, depth: int = NESTED) -> None:
    """Remove fake values from a dictionary or list."""
    keys = values if isinstance(values, dict) else range(len(values))
    for key in list(islice(reversed(keys), NEWEST)):
        value = values[key]
        if isinstance(value, dict | list | deque):
            if depth:
                _forget_fakes(value, depth - 1)
        elif isinstance(value, FAKES) and _is_fake(value):
            del values[key]


def _is_fake(value: Any, depth: int = DEPTH) -> bool:
    """Whether a value is a fake tensor or a proxy, or holds one."""
    if isinstance(value, FakeTensor | fx.Proxy):
        return True
    if depth == 0:
        return False
    if isinstance(value, dict):
        parts: Any = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | deque):
        parts = value
    else:
        parts = vars(value).values() if is_plain_object(value) else ()
    return any(_is_fake(each, depth - 1) for each in [*parts])
