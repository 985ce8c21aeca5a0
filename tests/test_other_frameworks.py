"""Run the page on Keras and NumPy, and check its Keras layer."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "other_frameworks.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", PAGE, re.DOTALL)
LAYER = BLOCKS[0][0].partition("\n# A model")[0]
CHECKS = """
import sys

model.save(sys.argv[1] + "/model.keras")
images = np.random.default_rng(1).standard_normal((2, 32, 32, 3)).astype("float32")
loaded = keras.saving.load_model(sys.argv[1] + "/model.keras")
assert np.allclose(loaded.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-6)

for shape, strides in (((3, 20), [1.7]), ((3, 9, 8, 7), [1.0, 1.5, 3.0])):
    x = torch.randn(2, *shape)
    pooled = SpectralPooling(strides, "channels_first")(x)
    assert torch.allclose(pooled, FixedSpectralPooling(strides)(x), atol=1e-5), shape
half = SpectralPooling((2.0, 2.0), "channels_first", dtype="bfloat16")(torch.ones(1, 1, 5, 6))
assert half.dtype == torch.bfloat16 and half.shape == (1, 1, 3, 3) and (half == 1).all()

for shape in ((None, None, 32, 3), (2, 32, 3)):
    try:
        SpectralPooling((2.0, 2.0), "channels_last")(keras.Input(batch_shape=shape))
    except ValueError as error:
        assert f"2 strides need as many spatial axes of known size" in str(error)
        assert f"has the shape {shape} (channels_last)" in str(error)
    else:
        raise AssertionError(f"{shape} was taken")
"""


def run(program, folder):
    """What a program prints, run by itself, as Keras reads its backend once."""
    if importlib.util.find_spec("keras") is None:
        pytest.skip("needs keras, of the extra dev")
    environment = os.environ | {"KERAS_BACKEND": "torch", "KERAS_HOME": str(folder)}
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_page_runs_and_its_layer_saves_pools_any_axes_and_refuses_others(tmp_path):
    assert len(BLOCKS) == 2
    assert run(BLOCKS[0][0] + CHECKS, tmp_path) == BLOCKS[0][1]


def test_matrices_of_numpy_are_those_of_the_library(tmp_path):
    assert run(BLOCKS[1][0], tmp_path) == BLOCKS[1][1]


def test_layer_takes_about_fifty_lines():
    lines = [line for line in LAYER.splitlines() if line.strip()]
    assert 30 < len(lines) <= 50
    assert "fifty\nlines" in PAGE
