"""Run the programs of pages whose code blocks stand alone."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("recipes.md",)
PART = re.compile(r"^## (.+)\n((?:(?!## ).*\n)*)", re.MULTILINE)
BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)
IMPORTED = re.compile(r"^(?:import|from) (\w+)", re.MULTILINE)


def programs() -> list:
    """Each program of the pages and what it prints, under its heading."""
    return [
        pytest.param(program, printed, id=f"{heading} {number}")
        for page in PAGES
        for heading, part in PART.findall((DOCS / page).read_text())
        for number, (program, printed) in enumerate(BLOCK.findall(part), start=1)
    ]


@pytest.mark.parametrize(("program", "printed"), programs())
def test_program_runs_alone_and_prints_what_follows_it(program, printed, capsys):
    for package in IMPORTED.findall(program):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    exec(compile(program, "recipe", "exec"), {"__name__": "recipe"})
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("page", PAGES)
def test_every_program_of_the_page_is_found(page):
    text = (DOCS / page).read_text()
    found = [param.values[0] for param in programs()]
    written = BLOCK.findall(text)
    assert len(written) > 0
    assert all(program in found for program, _ in written)
