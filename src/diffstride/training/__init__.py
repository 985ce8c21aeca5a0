"""Training of classifiers of images and sounds by Gin: data, loop, checkpoints, logs, command.

Modules that import Lightning or matplotlib, which take seconds, are loaded when they are first used
by those who import them as modules: ``from diffstride.training import run``.
"""

from typing import TYPE_CHECKING, Any

from diffstride._extras import require
from diffstride._lazy import lazy_modules

require("train", "diffstride.training")

__all__ = ["load_run"]

if TYPE_CHECKING:
    from diffstride.training.loaded_run import load_run as load_run
else:
    _SLOW = "checkpoints", "gin_registry", "lightning_compat", "run", "run_summary", "trainer"
    _lazy_module = lazy_modules(__name__, *_SLOW)

    def __getattr__(name: str) -> Any:
        """`load_run`, or a module that is loaded when it is used."""
        if name == "load_run":
            from diffstride.training.loaded_run import load_run

            return load_run
        return _lazy_module(name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
