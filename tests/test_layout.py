"""The architecture: which part may import which, what importing loads, and names of modules."""

import ast
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import diffstride

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py")) + sorted((ROOT / "experiments").rglob("*.py"))
# A part may import those above it; parts in one line do not import each other.
ORDER = [
    {"_commands", "_torch_compat", "_extras", "_files", "_processes", "_random_states", "_wording"},
    {"_named_networks", "_picture_style", "_version"},
    {"spectral"},
    {"_arguments", "_stride_text"},
    {"functional"},
    {"pooling"},
    {"strides", "reference", "resnet"},
    {"convnet", "graph"},
    {"cost"},
    {"conversion", "callbacks", "plots"},
    {"huggingface", "_public"},
    {"__init__"},  # the public names, imported when they are used
    {"training"},
    {"cli"},
    {"examples"},
    {"__main__"},
    {"experiments"},
]
RANKS = {part: rank for rank, parts in enumerate(ORDER) for part in parts}


def part_of(file: Path) -> str:
    name = file.relative_to(ROOT).with_suffix("").parts
    return name[2] if name[0] == "src" else name[0]


def imports(file: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, at its top or in functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_part(name: str) -> str | None:
    """The part of this project that an import is from, None for other packages."""
    top, *inner = name.split(".")
    if top == "diffstride":
        return inner[0] if inner and inner[0] in RANKS else "__init__"
    return top if top in RANKS else None


def test_imports_point_one_way():
    wrong = [
        (str(file.relative_to(ROOT)), name)
        for file in SOURCES
        for name in imports(file)
        if (part := imported_part(name)) and part != part_of(file)
        if RANKS[part] >= RANKS[part_of(file)]
    ]
    assert wrong == []


def test_private_parts_of_torch_are_used_in_one_module():
    users = {
        file.name
        for file in SOURCES
        if any(re.match(r"torch\..*\._", name) for name in imports(file))
        or re.search(r"\btorch\.([a-z]\w*\.)*_[a-zA-Z]", file.read_text())
    }
    assert users == {"_torch_compat.py"}


def loaded_by(program: str) -> set[str]:
    """The packages that a program has loaded at its end; "compiler" stands for that of torch."""
    program += "; import sys; print(*(m.split('.')[0] for m in sys.modules))"
    program += "; print('compiler' if 'torch._dynamo' in sys.modules else '')"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_importing_loads_nothing_and_the_first_name_loads_torch_and_nothing_heavier():
    assert not loaded_by("import diffstride; diffstride.__version__") & {"torch", "numpy"}
    loaded = loaded_by("from diffstride import DiffStride")
    heavy = {"gin", "lightning", "pytorch_lightning", "datasets", "matplotlib", "torchvision"}
    assert "torch" in loaded
    assert not loaded & (heavy | {"sklearn", "tensorboard", "absl", "timm", "onnx", "compiler"})


HEAVY = {"datasets", "lightning", "matplotlib", "onnxruntime", "pytorch_lightning", "sklearn"}
HEAVY |= {"timm", "torchmetrics", "torchvision", "transformers"}
HELP = """
import contextlib, io, json, runpy, sys
for name in sys.argv[1:]:
    before, printed = set(sys.modules), io.StringIO()
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        runpy.run_module(name, run_name="__main__")
    print(json.dumps([name, printed.getvalue(), sorted(set(sys.modules) - before)]))
"""


def examples() -> list[str]:
    """The modules that users run by ``python -m``, beside the command of the library."""
    folder = ROOT / "src" / "diffstride" / "examples"
    return sorted(f"diffstride.examples.{file.stem}" for file in folder.glob("[!_]*.py"))


def test_help_of_examples_loads_nothing_heavier_than_torch():
    names = examples()
    assert "diffstride.examples.convert_torchvision" in names
    program = [sys.executable, "-c", HELP, *names]
    done = subprocess.run(program, capture_output=True, text=True, check=True, cwd=ROOT)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in answers] == names
    for name, printed, loaded in answers:
        assert printed.startswith("usage: "), name
        assert not set(loaded) & HEAVY, name
    assert any("torch" in loaded for *_, loaded in answers)


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("import diffstride; diffstride.DifStride", "DiffStride"),
        ("import diffstride; diffstride.callback", "callbacks"),
        ("import diffstride.training as training; training.load_rnu", "load_run"),
        pytest.param(
            "from diffstride import DifStride",
            "DiffStride",
            marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="Python suggests none"),
        ),
    ],
)
def test_python_suggests_the_name_that_was_meant(program, name):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.rstrip().endswith(f"Did you mean: {name!r}?")


@pytest.mark.slow
def test_modules_of_the_package_are_attributes_and_unknown_names_are_not():
    loaded_by("import diffstride; diffstride.strides.attach, diffstride.conversion.convert")
    loaded_by(
        "import diffstride; diffstride.callbacks.StrideMonitor, diffstride.plots.plot_windows"
    )
    loaded_by("from diffstride import *; DiffStride, pooling.DiffStride")
    loaded_by("from diffstride import pooling; pooling.DiffStride")
    loaded_by("import diffstride._public; from diffstride import *; DiffStride")
    with pytest.raises(AttributeError, match="'diffstride' has no attribute 'nothing'"):
        diffstride.nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from diffstride import nothing  # noqa: F401


def test_no_name_of_a_package_hides_a_module_of_it():
    pytest.importorskip("diffstride.training", reason="needs the extra train")
    inner = pkgutil.walk_packages(diffstride.__path__, "diffstride.")
    for name in ("diffstride", *(module.name for module in inner if module.ispkg)):
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(package.__path__):
            value = vars(package).get(module.name)
            assert value is None or isinstance(value, ModuleType), f"{name}.{module.name}"
