"""The commit of this checkout."""

import subprocess
from pathlib import Path

DIRTY = "-dirty"


def read_commit(*code: str) -> str | None:
    """The commit of this checkout, with ``-dirty`` if code differs from it; None outside of one.

    Args:
        code: the files that count as code: paths or patterns of git, from the top of the checkout.
    """
    if _git("ls-files", "--error-unmatch", __file__) is None:  # a copy inside a foreign checkout
        return None
    changed = _git("status", "--porcelain", "--", *code)
    return f"{_git('rev-parse', 'HEAD')}{DIRTY if changed else ''}"


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
