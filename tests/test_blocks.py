"""Run every code block of README and of the pages alone, as somebody who copies it does."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# test_pages.py runs the blocks of the walk-through and looks at what they leave. Those of the page
# on other frameworks run in processes of their own (test_other_frameworks.py).
ELSEWHERE = ("walkthrough.md", "other_frameworks.md")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)


def programs() -> list:
    """Each program of the pages and what it prints; those that export take long."""
    return [
        pytest.param(
            program,
            printed,
            id=f"{page.stem} {number}",
            marks=pytest.mark.slow if "onnx" in program else (),
        )
        for page in PAGES
        if page.name not in ELSEWHERE
        for number, (program, printed) in enumerate(BLOCK.findall(page.read_text()), start=1)
    ]


def needed(program: str) -> set[str]:
    """The packages that a program imports.

    >>> sorted(needed("import torch, timm.models as m\\nfrom einops.layers import torch"))
    ['einops', 'timm', 'torch']
    """
    names = re.findall(r"^from (\w+)", program, re.MULTILINE)
    for line in re.findall(r"^import (.+)", program, re.MULTILINE):
        names += re.findall(r"(?:^|, )(\w+)", line)
    return set(names)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize(("program", "printed"), programs())
def test_block_runs_alone_and_prints_what_follows_it(
    program: str,
    printed: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = [name for name in needed(program) if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "block", "exec"), {"__name__": "block"})
    output = capsys.readouterr().out
    assert not printed or output == printed


def test_blocks_of_all_pages_are_found() -> None:
    found = [param.values[0] for param in programs()]
    assert len(found) > 30
    for page in PAGES:
        written = page.read_text().count("```python\n")
        assert page.name in ELSEWHERE or len(BLOCK.findall(page.read_text())) == written, page
