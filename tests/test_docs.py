"""Test the pages of the documentation: quoted code, pictures, names, bindings."""

import inspect
import pkgutil
import re
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import diffstride
from diffstride.training import command_line, gin_registry
from docs import pictures
from experiments.runner import CONFIGS

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES["README.md"] = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)
MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    pictures.main(["--folder", str(folder)])
    return folder


ALL_PICTURES = [*pictures.PICTURES, pictures.TRAJECTORIES, pictures.LEARNED]


def _pixels(path: Path) -> np.ndarray:
    """The grey levels of a picture on a white page."""
    with PIL.Image.open(path) as picture:
        drawn = picture.convert("RGBA")
    page = PIL.Image.new("RGBA", drawn.size, "white")
    return np.asarray(PIL.Image.alpha_composite(page, drawn).convert("L"), dtype=float)


@pytest.mark.parametrize("name", ALL_PICTURES)
def test_command_draws_the_pictures_of_the_pages(name, drawn):
    new, kept = _pixels(drawn / name), _pixels(pictures.FOLDER / name)
    assert new.std() > 10, f"{name} is blank"
    assert new.shape == kept.shape, f"{name} is outdated: python -m docs.pictures"
    # Versions of matplotlib differ in how they draw letters.
    assert np.abs(new - kept).mean() < 2, f"{name} is outdated: python -m docs.pictures"
    assert (pictures.FOLDER / name).stat().st_size < MAX_BYTES
    assert any(f"(pictures/{name})" in text for text in PAGES.values()), f"no page shows {name}"


def test_folder_holds_no_other_picture(drawn):
    assert {path.name for path in pictures.FOLDER.iterdir()} == {p.name for p in drawn.iterdir()}


def test_aliases_are_as_strong_as_the_picture_shows():
    # At the upper border all circles of the zone plate are too fine for a stride of 3.
    rows = pictures.downsample(pictures.zone_plate(96))
    strong, faint, gone = (images["stride 3"][..., :8, :].std() for images in rows.values())
    assert strong > 0.5 > 0.1 > faint > 0.02 > gone


API = sorted((ROOT / "docs" / "api").glob("*.md"))
LISTED = re.findall(r"^::: ([\w.]+)$", "\n".join(path.read_text() for path in API), re.MULTILINE)


def _parts(name: str) -> list[object]:
    """The object of a public name; for a module, its public members."""
    thing = getattr(diffstride, name)
    if not inspect.ismodule(thing):
        return [thing]
    if hasattr(thing, "__all__"):
        return [getattr(thing, member) for member in thing.__all__]
    members = [member for key, member in vars(thing).items() if not key.startswith("_")]
    return [member for member in members if getattr(member, "__module__", "") == thing.__name__]


@pytest.mark.parametrize("name", diffstride.__all__)
def test_every_public_name_is_in_the_api(name):
    listed: list = [pkgutil.resolve_name(path) for path in LISTED]
    for part in _parts(name):
        module = getattr(part, "__module__", "diffstride.spectral.axis_plan")  # of plain constants
        package = module.rpartition(".")[0]
        assert part in listed or {sys.modules[module], sys.modules[package]} & set(listed), part


def _bindings() -> list[str]:
    return sorted(
        {b for text in PAGES.values() for b in re.findall(r'--gin_bindings="(.+?)"', text)}
    )


@pytest.mark.parametrize("binding", _bindings())
def test_gin_accepts_the_bindings(binding):
    command_line.configure(["digits.gin"], [binding])
    assert len(_bindings()) > 15


def test_training_page_lists_every_gin_name():
    listed = set(re.findall(r"`([a-z]+\.\w+)`", PAGES["training.md"].partition("### ")[0]))
    ours = {name for name in gin_registry.NAMES if not name.startswith("torch")}
    assert ours <= listed, ours - listed


def test_named_configurations_exist():
    folders = command_line.CONFIGS, CONFIGS
    packaged = {path.name for folder in folders for path in folder.glob("*.gin")}
    for name, text in PAGES.items():
        named = set(re.findall(r"\b\w+\.gin\b", text)) - {"operative_config.gin"}
        assert named <= packaged, name


def test_docstrings_are_converted_to_markdown():
    docstrings = pytest.importorskip("docs.docstrings", reason="needs griffe, of the extra docs")
    example = [">>> 1 + 1  # doctest: +SKIP", "2", "", "So::", "", "    text"]
    shown = ["```pycon", ">>> 1 + 1", "2", "```", "", "So:", "", "    text"]
    assert list(docstrings.fence_examples(example)) == shown
    assert list(docstrings.fence_examples(["  >>> 1"])) == ["  ```pycon", "  >>> 1", "  ```"]
    arguments = ["Args:", "    a, b: both,", "        of them.", "    c: alone, d: not one."]
    each = ["    a: both,", "        of them.", "    b: both,", "        of them."]
    assert docstrings.split_arguments(arguments) == ["Args:", *each, "    c: alone, d: not one."]
