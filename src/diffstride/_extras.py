"""The packages that the extras bring, and an error that names the extra if one is missing."""

from importlib.util import find_spec

# As imported, by extra. One of several that serve the same purpose is enough.
PACKAGES: dict[str, tuple[tuple[str, ...], ...]] = {
    "audio": (("soundfile",), ("torchaudio",)),
    "lightning": (("lightning", "pytorch_lightning"),),
    "plots": (("matplotlib",),),
    "train": (
        ("datasets",),
        ("filelock",),
        ("gin",),
        ("lightning", "pytorch_lightning"),
        ("matplotlib",),
        ("PIL",),
        ("sklearn",),
        ("tensorboard",),
        ("torchmetrics",),
        ("torchvision",),
    ),
}


def require(extra: str, module: str) -> None:
    """Check that all packages of an extra are installed, without importing them.

    Args:
        extra: its name in ``pyproject.toml``.
        module: what needs it, for the error.

    Raises:
        ModuleNotFoundError: a package is missing. The error names it and the extra.

    >>> require("plots", "diffstride.plots")
    """
    missing = [names[0] for names in PACKAGES[extra] if not any(map(find_spec, names))]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ModuleNotFoundError(
            f"{module} needs {', '.join(missing)}, which {verb} not installed: "
            f'pip install "diffstride[{extra}]"',
            name=missing[0],
        )
