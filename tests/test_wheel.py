"""The wheel and the source distribution: their files, and what they say of the package."""

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src"
REPOSITORY = "https://github.com/diffstride/diffstride"
BUILD = "import sys, hatchling.build as b; b.build_wheel(sys.argv[1]), b.build_sdist(sys.argv[1])"


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder of ``make package``, or one with a wheel and source distribution built here."""
    if folder := os.environ.get("DIFFSTRIDE_DIST"):
        return ROOT / folder
    missing = [name for name in ("hatchling", "hatch_fancy_pypi_readme") if not find_spec(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed, of the extra dev")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_string(wheel.read(name).decode())


def test_wheel_holds_the_package_and_nothing_else(wheel):
    kept = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = {path for path in SOURCES.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert kept == {path.relative_to(SOURCES).as_posix() for path in files}
    assert {"diffstride/py.typed", "diffstride/training/configs/cifar10.gin"} <= kept
    assert {name.partition("/")[0] for name in kept} == {"diffstride"}


def test_wheel_has_the_command_and_the_licence(wheel):
    (entry,) = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    assert "[console_scripts]\ndiffstride = diffstride.cli:main" in wheel.read(entry).decode()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


def test_links_of_the_description_are_absolute_and_lead_to_files(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    assert text.startswith("# diffstride")
    # Code has brackets of its own.
    links = re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    ours = [link for link in links if link.startswith(REPOSITORY)]
    assert len(ours) > 10
    for link in ours:
        kind, file = re.fullmatch(rf"{REPOSITORY}/(blob|raw)/main/([^#]+)(?:#.*)?", link).groups()
        assert (ROOT / file).exists(), link
        assert (kind == "raw") == (Path(file).suffix == ".png"), link


def test_code_of_the_description_is_that_of_readme(metadata):
    blocks = [
        re.findall(r"```.*?```", text, re.DOTALL)
        for text in (metadata.get_payload(), (ROOT / "README.md").read_text())
    ]
    assert blocks[0]
    assert blocks[0] == blocks[1]


def test_metadata_names_addresses_extras_and_versions(metadata):
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL"))
    assert {"Homepage", "Documentation", "Source", "Changelog", "Issues"} == set(urls)
    assert all(url.startswith(REPOSITORY) for url in urls.values())
    assert {"lightning", "plots", "train", "export"} <= set(metadata.get_all("Provides-Extra"))
    assert metadata["License-Expression"] == "Apache-2.0"
    needed = [each for each in metadata.get_all("Requires-Dist") if "extra ==" not in each]
    assert len(needed) == 1
    assert needed[0].startswith("torch>=")
    source = (SOURCES / "diffstride/_version.py").read_text()
    assert f'__version__ = "{metadata["Version"]}"' in source


def test_source_distribution_holds_what_the_tests_need(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {"pyproject.toml", "Makefile", "tests/conftest.py", "docs/index.md"} <= names
    assert {".github/workflows/tests.yml", "src/diffstride/py.typed", "README.md"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(".venv")]
