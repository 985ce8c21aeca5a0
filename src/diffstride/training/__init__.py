"""Training of classifiers of images and sounds by Gin: data, loop, checkpoints, logs, command."""

from typing import TYPE_CHECKING, Any

from diffstride._extras import require

require("train", "diffstride.training")

__all__ = ["load_run"]

if TYPE_CHECKING:
    from diffstride.training.loaded_run import load_run as load_run
else:

    def __getattr__(name: str) -> Any:
        """`load_run`, loaded when it is used, as Lightning takes seconds."""
        if name != "load_run":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from diffstride.training.loaded_run import load_run

        return load_run

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
