"""Test CONTRIBUTING.md: its map matches the tree, and the tests and files that it names exist."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
MAP = re.search(r"```text\n(src/diffstride/.*?)```", TEXT, re.DOTALL)[1]  # type: ignore[index]
MAPPED = ("src/diffstride", "experiments", "benchmarks", "tests", "docs")


def listed_paths(tree: str) -> list[str]:
    """Paths of a tree whose indentation shows the folders, two spaces each."""
    folders: list[str] = []
    paths = []
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        name = line.split()[0]
        folders = [*folders[: indent // 2], name]
        paths.append("".join(folders).rstrip("/"))
    return paths


def modules(folder: str) -> set[str]:
    """Modules below ``folder``; a package stands for its ``__init__.py``."""
    files = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")]
    return {path.as_posix().removesuffix("/__init__.py") for path in files}


def test_paths_follow_the_indentation():
    tree = "a/b/   top\n  c.py   x\n  d/   y\n    e.py   z\nf/\n  g.py\n"
    assert listed_paths(tree) == ["a/b", "a/b/c.py", "a/b/d", "a/b/d/e.py", "f", "f/g.py"]


@pytest.mark.parametrize("folder", MAPPED)
def test_map_lists_every_module_once(folder):
    counts = Counter(listed_paths(MAP))
    assert {name: counts[name] for name in modules(folder) if counts[name] != 1} == {}


def test_map_lists_only_what_exists():
    assert [path for path in listed_paths(MAP) if not (ROOT / path).exists()] == []


def test_every_module_has_a_description():
    assert [line for line in MAP.splitlines() if ".py" in line and len(line.split()) < 2] == []


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\btests/\w+\.py", TEXT))))
def test_named_test_files_exist(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+/\w+\.(?:py|md))`", TEXT))))
def test_named_files_exist(name):
    assert (ROOT / name).is_file() or (ROOT / "src/diffstride" / name).is_file()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake (\w+)", TEXT))))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
