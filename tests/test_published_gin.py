"""Gin files of the published system: one message with each line that differs."""

import re
from pathlib import Path

import gin
import pytest

from diffstride.training.command_line import configure, explain
from diffstride.training.gin_compat import bound_values
from diffstride.training.published_gin import PublishedNamesError, changes, check_published_names

PAGE = (Path(__file__).parents[1] / "docs" / "coming_from_tensorflow.md").read_text()
# The bindings of the published recipe, each on a line of its own.
THEIRS = """\
import diffstride.examples.external_configurables
import diffstride.examples.train as train
import diffstride.pooling as pooling
data.load_datasets.name = 'cifar10'
data.load_datasets.batch_size = 128
data.load_datasets.mixup_alpha = 0.2
train.train.load_data_fn = @data.load_datasets
train.train.model_cls = @resnet.resnet18
train.train.optimizer_cls = @tf.keras.optimizers.SGD
train.train.num_epochs = 400
tf.keras.optimizers.SGD.learning_rate = @tf.keras.optimizers.schedules.PiecewiseConstantDecay()
tf.keras.optimizers.SGD.momentum = 0.9
tf.keras.optimizers.schedules.PiecewiseConstantDecay.boundaries = [400, 18_000, 32_000]
tf.keras.optimizers.schedules.PiecewiseConstantDecay.values = [0.01, 0.1, 0.01, 0.001]
tf.keras.losses.CategoricalCrossentropy.label_smoothing = 0.2
resnet.resnet18.strides = [1, 1, 2, 2, 2]
resnet.Resnet.output_activation = 'softmax'
resnet.Resnet.weight_decay = 5e-4
resnet.Resnet.pooling_cls = @pooling.DiffStride
batch_norm.momentum = 0.9
batch_norm.epsilon = 1e-5
pooling.DiffStride.smoothness_factor = 4.0
"""


@pytest.fixture(autouse=True)
def _cleared():
    yield
    gin.clear_config()


def bindings():
    return {f"{name}.{argument}": value for name, argument, value in bound_values()}


def test_changed_as_told_the_published_file_is_the_packaged_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = changes(THEIRS, "theirs.gin")
    changed = {int(each.where.rpartition(" ")[2]) for each in found[:-1]}
    kept = [line for i, line in enumerate(THEIRS.splitlines(), 1) if i not in changed]
    told = [line for each in found for line in each.instead if not line.startswith("remove it")]
    Path("ours.gin").write_text("\n".join([*kept, *told]))
    configure(["ours.gin"])
    ours = bindings()
    configure(["cifar10.gin"])
    packaged = bindings()
    spelled_out = {"augment_fn", "workdir", "stride_learning_rate", "label_smoothing"}
    for name, value in packaged.items():
        if name.rpartition(".")[2] not in spelled_out:
            assert ours[name] == value, name


def test_one_message_has_all_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("theirs.gin").write_text(THEIRS)
    with pytest.raises(PublishedNamesError) as raised:
        configure(["theirs.gin"], ["train.model_cls = @resnet.resnet56"])
    message = explain(raised.value)
    assert "theirs.gin is for google-research/diffstride. Lines to change: 14" in message
    for line in (1, 2, 3, 7, 8, 9, 11, 12, 13, 14, 15, 17):
        assert f"theirs.gin, line {line}: " in message
    assert "--gin_bindings, line 1: train.model_cls = @resnet.resnet56" in message
    assert "\n      -> schedules.multi_step.factors = [0.1, 1.0, 0.1, 0.01]\n" in message
    assert "pooling.DiffStride.straight_through = False" in message


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("train.scheduler_fn = @lr_schedule", "train.train.schedule = @schedules.multi_step"),
        (
            "lr_schedule.divisions = [(200, 10.0)]",
            "schedules.multi_step.boundaries = …  # in steps",
        ),
        (
            "resnet.ResidualLayer.pooling_cls = @pooling.LearnableSpectralPooling",
            "resnet.Resnet.pooling_cls = @pooling.DiffStride",
        ),
        ("LearnableSpectralPooling.cropping = True", "pooling.DiffStride.cropping = True"),
        ("resnet.Resnet.channels_first = True", "remove it"),
        (
            "train.lr_schedule = @tf.keras.optimizers.schedules.CosineDecay()",
            "train.train.schedule",
        ),
        ("train.loss = @keras.losses.MSE()", "remove it: there is no such value, see docs/"),
        (
            "train.parts = [@a/tf.image.flip_up_down]",
            "remove it: there is no such value, see docs/",
        ),
        ("tf.keras.optimizers.Nadam.learning_rate = 0.1", "torch.optim.NAdam.lr = 0.1"),
        ("tf.keras.regularizers.L2.l2 = 0.1", "remove it: there is no such name, see docs/"),
    ],
)
def test_other_names_are_known(line, instead):
    (first, *_) = changes(line, "a.gin")
    assert any(each.startswith(instead) for each in first.instead)


def test_the_number_of_classes_is_among_the_lines_of_a_published_file():
    theirs = "import diffstride.examples.train\nresnet.resnet18.num_output_classes = 10"
    found = changes(theirs, "a.gin")
    assert [each.instead for each in found[1:]] == [("remove it: the data set says it",)]


@pytest.mark.parametrize("values", ["%rates", "[%low, %high]", "'0.1, 0.2'", "[]"])
def test_values_that_are_no_numbers_are_listed(values):
    name = "tf.keras.optimizers.schedules.PiecewiseConstantDecay.values"
    (first, *_) = changes(f"{name} = {values}", "a.gin")
    assert first.instead == (
        "remove it: there is no such name, see docs/coming_from_tensorflow.md",
    )


def test_names_of_users_stay_beside_those_of_this_library():
    lines = [
        "import my_data",
        "my_data.load.channels_first = True",
        "resnet.Resnet.order = 'after'",
    ]
    assert changes("\n".join(lines), "a.gin") == []


@pytest.mark.parametrize(
    "line",
    [
        "train.train.model = @resnet.resnet18",
        "resnet.Resnet.output_activation = None",
        "import diffstride.pooling",
        "resnet.Resnet.output_activation = 'softmax'",
        "resnet.resnet18.num_output_classes = 10",
        "my_keras_sounds.load.reader = @my_keras_sounds.read",
        "torch.optim.SGD.momentum = 0.9",
        "my_data.load.channels_first = True",
        "my_data.load.data_format = 'NHWC'",
        "my_keras_sounds.load.path = 'x'",
        "my_rates.lr_schedule.divisions = 3",
        "my_search.train.model_cls = @resnet.resnet18",
        "my_net.MLP.output_activation = @torch.nn.ReLU",
        "not a binding",
    ],
)
def test_lines_of_this_library_stay(line):
    assert changes(line, "a.gin") == []
    check_published_names([], [line])


def test_page_lists_the_changes_of_the_published_file():
    told = " ".join(line for each in changes(THEIRS, "a") for line in (each.line, *each.instead))
    for name in re.findall(r"[\w.]+\.\w+(?= = )", told):
        short = name.replace("tf.keras.optimizers.schedules.", "").replace("tf.keras.losses.", "")
        if "learning_rate" not in name and name != "train.train.label_smoothing":
            assert f"`{short}" in PAGE or f" {short}" in PAGE, name


def test_names_of_keras_are_known_without_their_modules():
    lines = {
        "PiecewiseConstantDecay.boundaries = [400, 18_000]": "schedules.multi_step.boundaries",
        "PiecewiseConstantDecay.values = [0.01, 0.1, 0.01]": "torch.optim.SGD.lr = 0.1",
        "CategoricalCrossentropy.label_smoothing = 0.2": "train.train.label_smoothing = 0.2",
    }
    found = changes("\n".join(lines), "their.gin")
    assert [each.line for each in found] == [line.replace("18_000", "18000") for line in lines]
    for change, instead in zip(found, lines.values(), strict=True):
        assert instead in " ".join(change.instead)
