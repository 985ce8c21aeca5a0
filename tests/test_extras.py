"""Optional packages: the errors where they are missing, and the extras that bring them."""

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from diffstride import _extras

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # of pytest

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
PARTS = {
    "diffstride.callbacks": "lightning",
    "diffstride.plots": "plots",
    "diffstride.training.command_line": "train",
    "diffstride.examples.main": "train",
}


def without(packages, program):
    """Run a program as if packages were not installed, and return its last line of errors."""
    hidden = "; ".join(f"sys.modules[{name!r}] = None" for name in packages)
    command = [sys.executable, "-c", f"import sys; {hidden}; {program}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stderr.strip().rpartition("\n")[2]


def requirements(extra):
    """Names of the distributions that an extra brings."""
    names = set()
    for requirement in EXTRAS[extra]:
        if nested := re.match(r"diffstride\[(.+)\]", requirement):
            names.update(*map(requirements, nested[1].split(",")))
        else:
            names.add(re.split(r"[<>=]", requirement)[0])
    return names


@pytest.mark.parametrize("module", PARTS)
def test_importing_without_the_extra_names_it(module):
    extra = PARTS[module]
    hidden = [name for names in _extras.PACKAGES[extra] for name in names]
    error = without(hidden, f"import {module}")
    assert error.startswith("ModuleNotFoundError: diffstride.")
    assert error.endswith(f' not installed: pip install "diffstride[{extra}]"')


def test_only_missing_packages_are_named(monkeypatch):
    pytest.importorskip("diffstride.training", reason="needs the extra train")
    monkeypatch.setitem(sys.modules, "gin", None)
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(ImportError, match=r"^this needs filelock, gin, which are not installed"):
        _extras.require("train", "this")


def test_one_of_the_two_packages_of_lightning_is_enough(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.setitem(_extras.PACKAGES, "lightning", (("lightning", "json"),))
    _extras.require("lightning", "this")


def test_the_command_tells_what_trainings_need():
    pytest.importorskip("diffstride.training", reason="needs the extra train")
    program = "from diffstride.cli import main; sys.exit(main(['train', 'digits.gin']))"
    error = without(["gin"], program)
    assert error == (
        "error: diffstride.training needs gin, which is not installed: "
        'pip install "diffstride[train]"'
    )


@pytest.mark.parametrize("extra", _extras.PACKAGES)
def test_extras_bring_the_packages_that_are_required(extra):
    distributions = packages_distributions()
    packages = [names[0] for names in _extras.PACKAGES[extra]]
    missing = [name for name in packages if name not in distributions]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    assert {distributions[name][0] for name in packages} == requirements(extra)


def test_the_library_itself_needs_torch_alone():
    hidden = [name for names in _extras.PACKAGES["train"] for name in names]
    hidden += ["numpy", "timm", "onnx"]
    program = "import diffstride; print(diffstride.DiffStride(2.0), file=sys.stderr)"
    assert without(hidden, program).startswith("DiffStride(strides=(2, 2)")
