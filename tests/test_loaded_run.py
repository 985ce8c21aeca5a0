"""`load_run`: the trained network of a run folder."""

import pytest
import torch
from tiny_runs import tiny_datasets, tiny_network, train_tiny

from diffstride.training import gin_registry, load_run
from diffstride.training.command_line import configure
from diffstride.training.run_summary import layer_strides


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


def test_images_are_normalised_as_in_the_training(folder):
    run, data = load_run(folder, tiny_network), tiny_datasets()(seed=0)
    raw = data.test.dataset.first(8).images  # pyright: ignore[reportAttributeAccessIssue]
    expected = next(iter(data.test))[0][:8]
    assert torch.allclose(run.normalize(torch.as_tensor(raw)), expected, atol=0.01)  # rounded


def test_images_of_another_kind_are_refused(folder):
    run = load_run(folder, tiny_network)
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(B, 1, H, W\), but got .*float"):
        run.normalize(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"of shape \(1, 3, 8, 8\)"):
        run.normalize(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_network_gets_the_weights_itself(folder):
    network = tiny_network(10, 1)
    assert load_run(folder, network).network is network


def test_missing_model_is_named(folder):
    with pytest.raises(ValueError, match=r"does not say how its network is built.*pass model"):
        load_run(folder)


def test_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no finished run, as it has no summary.json"):
        load_run(tmp_path / "none")


def test_checkpoint_of_another_network_is_refused(folder):
    with pytest.raises(ValueError, match="holds another network"):
        load_run(folder, tiny_network(11, 1))
