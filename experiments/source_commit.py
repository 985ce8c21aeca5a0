"""Which commit of this program a run was made at."""

import subprocess
from pathlib import Path

from diffstride.training.checkpoints import CHECKPOINTS, LAST
from diffstride.training.files import atomic_file
from diffstride.training.run_summary import read_summary

NOTE = "commit.txt"
UNKNOWN = "unknown"


def commit() -> str | None:
    """The commit of this program, ``-dirty`` where its files differ; None outside a checkout."""
    folder = Path(__file__).parents[1]
    code = [str(folder / part) for part in ("src", "experiments")]

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", __file__) is None:  # a copy inside a foreign checkout
        return None
    changed = git("status", "--porcelain", "--", *code)
    return f"{git('rev-parse', 'HEAD')}{'-dirty' if changed else ''}"


def note_commit(workdir: Path, now: str | None) -> str | None:
    """The commit that the run in a folder is trained at; kept there for when it is resumed.

    A run that was begun at one commit and goes on at another has both, with ``+`` between. One that
    is finished keeps what it has.

    Args:
        workdir: the folder, of a run that is about to be started.
        now: the commit of this process.

    Returns:
        The commit, None if it is not known.
    """
    path = workdir / NOTE
    noted = path.read_text(encoding="utf-8").strip() if path.exists() else UNKNOWN
    if read_summary(workdir) is None:
        parts = noted.split("+") if (workdir / CHECKPOINTS / LAST).exists() else []
        if parts[-1:] != [now or UNKNOWN]:
            parts.append(now or UNKNOWN)
        noted = "+".join(parts)
        with atomic_file(path) as file:
            file.write(f"{noted}\n".encode())
    return None if noted == UNKNOWN else noted
