"""Downsampling with learnable strides for PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffstride._version import __version__ as __version__

if TYPE_CHECKING:
    from diffstride import callbacks as callbacks
    from diffstride import huggingface as huggingface
    from diffstride import plots as plots
    from diffstride._public import *  # noqa: F403
    from diffstride._public import __all__ as __all__
else:
    _WITH_EXTRAS = "callbacks", "huggingface", "plots"

    def __getattr__(name: str) -> Any:
        """Load the library when its first name is used, so that the command's help comes at once.

        While it is being loaded, names that are not there yet are modules, which Python imports.
        """
        if name in _WITH_EXTRAS:
            return import_module(f"diffstride.{name}")  # needs packages that the others do not
        if not name.startswith("_") or name == "__all__":
            from diffstride import _public

            public = vars(_public)
            if names := public.get("__all__"):  # all of it is loaded
                globals().update({each: public[each] for each in names}, __all__=names)
            if name in globals():
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__"), *_WITH_EXTRAS})
