"""`load_run`: the trained network of a run folder."""

import importlib.util
import itertools
import os
import shutil
from functools import partial

import pytest
import torch
from tiny_runs import tiny_datasets, tiny_network, train_tiny

from diffstride.resnet import resnet18
from diffstride.training import gin_registry, load_run
from diffstride.training.command_line import configure
from diffstride.training.data import load_datasets
from diffstride.training.run_summary import layer_strides

needs_audio = pytest.mark.skipif(
    importlib.util.find_spec("soundfile") is None, reason="needs the extra audio"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    train_tiny(workdir, stride_learning_rate=0.02)
    return workdir


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    bindings = ["train.train.num_epochs = 1", "train.train.accelerator = 'cpu'"]
    bindings += ["data.load_datasets.train_examples = 320", "resnet.resnet18.width = 4"]
    configure(["digits.gin"], bindings, str(workdir))
    gin_registry.train()
    return workdir


def accuracy(run, data):
    """In percent, on the test images, which the loader normalises."""
    hits = [run.network(images).argmax(1) == labels for images, labels in data.test]
    return 100 * torch.cat(hits).float().mean().item()


@torch.no_grad()
def test_run_of_python_is_loaded_with_its_model(folder):
    run = load_run(folder, tiny_network)
    assert not run.network.training
    expected = pytest.approx(run.summary["test_accuracy"], abs=0.001)
    assert accuracy(run, tiny_datasets()(seed=0)) == expected
    assert layer_strides(run.network) == run.summary["strides"]
    assert run.class_names == tuple("0123456789")


@torch.no_grad()
def test_run_of_a_configuration_is_loaded_without_more(configured):
    configure(["cifar10.gin"])  # another configuration
    run = load_run(configured)
    data = gin_registry.data.load_datasets("digits", train_examples=320)
    assert accuracy(run, data) == pytest.approx(run.summary["test_accuracy"], abs=0.001)
    assert run.image_shape == data.image_shape


def first_test_examples(data):
    """As `normalize` takes them, and as the network does."""
    return data.test.dataset.first(8).images, next(iter(data.test))[0][:8]


def test_images_are_normalised_as_in_the_training(folder):
    run, data = load_run(folder, tiny_network), tiny_datasets()(seed=0)
    raw, expected = first_test_examples(data)
    assert torch.allclose(run.normalize(raw), expected, atol=1e-6)


def quiet_tones(root):
    """Recordings whose standard deviation is 0 if it is rounded to thousandths."""
    import soundfile

    for part, frequency in itertools.product(("train", "test"), (300, 900)):
        (root / part / str(frequency)).mkdir(parents=True)
        tone = 4e-4 * torch.sin(frequency * torch.arange(2000) * 2 * torch.pi / 8000)
        for number in range(4):
            path = root / part / str(frequency) / f"{number}.wav"
            soundfile.write(path, tone.numpy(), 8000, subtype="FLOAT")


@needs_audio
@torch.no_grad()
def test_run_on_quiet_waveforms_is_loaded_and_normalises_them(tmp_path):
    quiet_tones(tmp_path / "tones")
    model = partial(resnet18, width=4, strides=[4, 1, 4, 4, 4])
    options = {"root": tmp_path, "sound_fn": "waveform", "batch_size": 4}
    datasets = partial(load_datasets, "tones", **options)
    train_tiny(tmp_path / "run", model=model, datasets=datasets, num_epochs=1)
    run, data = load_run(tmp_path / "run", model), datasets()
    assert accuracy(run, data) == pytest.approx(run.summary["test_accuracy"], abs=0.001)
    raw, expected = first_test_examples(data)
    assert expected.std() > 0.5
    assert torch.allclose(run.normalize(raw)[: len(expected)], expected, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"floating-point of shape \(B, 1, 8000\), but got torch.uint8"
    ):
        run.normalize(torch.zeros(1, 1, 8000, dtype=torch.uint8))


def test_images_of_another_kind_are_refused(folder):
    run = load_run(folder, tiny_network)
    with pytest.raises(ValueError, match=r"of shape \(B, 1, H, W\), but got .*float"):
        run.normalize(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"of shape \(1, 3, 8, 8\)"):
        run.normalize(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_network_gets_the_weights_itself(folder):
    network = tiny_network(10, 1)
    assert load_run(folder, network).network is network


def test_weights_of_an_earlier_epoch_are_refused(folder, tmp_path):
    older = shutil.copytree(folder, tmp_path / "run")
    (older / "checkpoints/last.ckpt").unlink()
    with pytest.raises(ValueError, match=r"previous\.ckpt has the weights after epoch \d+ of \d+"):
        load_run(older, tiny_network)


def test_run_of_python_has_no_configuration_of_another_run(configured, tmp_path):
    configure([str(configured / "operative_config.gin")])
    gin_registry.train(workdir=str(configured))  # it is finished
    train_tiny(tmp_path / "run", num_epochs=1)
    with pytest.raises(ValueError, match="pass model, as to train"):
        load_run(tmp_path / "run")


def test_run_with_a_scope_of_its_network_is_loaded(tmp_path):
    bindings = ["train.train.num_epochs = 1", "train.train.accelerator = 'cpu'"]
    bindings += ["data.load_datasets.train_examples = 320", "resnet.resnet18.width = 2"]
    bindings += ["train.train.model = @wide/resnet.resnet18", "wide/resnet.resnet18.width = 4"]
    configure(["digits.gin"], bindings, str(tmp_path / "run"))
    gin_registry.train()
    assert load_run(tmp_path / "run").network.stem.conv.out_channels == 4


def test_run_with_the_default_network_is_loaded(tmp_path):
    bindings = ["train.num_epochs = 1", "train.accelerator = 'cpu'", "torch.optim.SGD.lr = 0.01"]
    bindings += ["data.load_datasets.name = 'digits'", "data.load_datasets.train_examples = 320"]
    bindings += ["resnet18.width = 4", "resnet18.strides = [1, 1, 2, 2, 1]"]
    configure([], bindings, str(tmp_path / "run"))
    gin_registry.train()
    assert load_run(tmp_path / "run").network.stem.conv.out_channels == 4


def test_reading_leaves_a_damaged_checkpoint_where_it_is(folder, tmp_path, capsys):
    damaged = shutil.copytree(folder, tmp_path / "run")
    checkpoints = sorted(path.name for path in (damaged / "checkpoints").iterdir())
    os.truncate(damaged / "checkpoints/last.ckpt", 100)
    with pytest.raises(ValueError, match=r"previous\.ckpt has the weights .* put last\.ckpt back"):
        load_run(damaged, tiny_network)
    assert sorted(path.name for path in (damaged / "checkpoints").iterdir()) == checkpoints
    assert "resum" not in capsys.readouterr().out


def test_missing_model_is_named(folder):
    with pytest.raises(ValueError, match=r"does not say how its network is built.*pass model"):
        load_run(folder)


@pytest.mark.parametrize("inner", ["checkpoints/last.ckpt", "checkpoints", "summary.json"])
def test_path_inside_of_a_run_folder_is_refused_with_the_run_folder(folder, inner):
    with pytest.raises(ValueError, match=r"is in the run folder .* expected a run") as error:
        load_run(folder / inner)
    assert str(error.value).endswith(f"give {str(folder)!r}")


def test_what_is_no_run_folder_is_refused(tmp_path):
    (tmp_path / "own.ckpt").touch()
    with pytest.raises(
        ValueError, match=r"own\.ckpt is a file: expected a run folder, .* give the"
    ):
        load_run(tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"none does not exist: expected a run folder, .* check"):
        load_run(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no finished run, as it has no summary.json"):
        load_run(tmp_path)


def test_checkpoint_of_another_network_is_refused(folder):
    with pytest.raises(ValueError, match=r"holds another network .*: pass the network of that"):
        load_run(folder, tiny_network(11, 1))
