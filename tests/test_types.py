"""Types of the public names: a user's script is clean under pyright's standard mode."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import user_script

ROOT = Path(__file__).parents[1]
MISTAKES = """
import torch
import diffstride
diffstride.DiffStride(2.0, edge="stopped")
diffstride.convert(torch.nn.ReLU(), torch.rand(1), order="behind")
diffstride.DiffStride(2.0)(torch.rand(1, 1, 8, 8)).no_such_attribute
"""


def problems(text: str, folder: Path) -> list[str]:
    """The rules that a script breaks in pyright's standard mode."""
    script = folder / "script.py"
    script.write_text(text)
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT / "src")]}
    (folder / "pyrightconfig.json").write_text(json.dumps({**settings, "include": ["script.py"]}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(
        [*command, "--project", str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright cannot start here: {done.stderr[-200:]}")
    return [each["rule"] for each in json.loads(done.stdout)["generalDiagnostics"]]


def test_the_script_runs(tmp_path):
    assert user_script.train_one_layer(torch.rand(1, 1, 8, 8)).shape == (1, 1, 4, 4)
    assert user_script.train_network(str(tmp_path / "network.pt")).shape == (2, 8)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is missing")
def test_a_users_script_is_clean_and_mistakes_in_it_are_found(tmp_path):
    assert problems(Path(user_script.__file__).read_text(), tmp_path) == []
    found = problems(MISTAKES, tmp_path)
    assert found.count("reportArgumentType") == 2
    assert found.count("reportAttributeAccessIssue") == 1
