"""Training of image classifiers by Gin configuration: data, loop, checkpoints, logs, command."""

from typing import TYPE_CHECKING, Any

from diffstride._extras import require

require("train", "diffstride.training")

__all__ = ["load_run"]

if TYPE_CHECKING:
    from diffstride.training.loaded_run import load_run as load_run
else:

    def __getattr__(name: str) -> Any:
        """Load `load_run` when it is used: it imports Lightning, which the command's help lacks."""
        if name == "load_run":
            from diffstride.training.loaded_run import load_run

            return load_run
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
