"""The training command: flags, Gin names, error messages and packaged configurations."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gin
import pytest
import torch
from lightning.pytorch.utilities import exceptions
from PIL import Image

from diffstride import cli, pooling, reference, resnet, stride_layers
from diffstride.pooling.base import SizedPooling
from diffstride.training import command_line, gin_compat, gin_registry

PACKAGED = sorted(command_line.CONFIGS.glob("*.gin"))
TINY = """
train.train.model = @resnet.resnet18
train.train.num_epochs = 1
train.train.accelerator = 'cpu'
torch.optim.SGD.lr = 0.01
resnet.resnet18.width = 8
data.load_datasets.name = 'digits'
data.load_datasets.batch_size = 32
data.load_datasets.train_examples = 64
data.load_datasets.test_examples = 20
"""


@pytest.fixture(autouse=True)
def own_folder(gin_folder, monkeypatch):
    """Each test has its own working folder with one configuration."""
    monkeypatch.delenv("DIFFSTRIDE_DATA", raising=False)
    (gin_folder / "tiny.gin").write_text(TINY)


def command(*arguments):
    return cli.published_main(arguments)


def train_tiny(*bindings, flags=()):
    bindings = [f"--gin_bindings={binding}" for binding in bindings]
    assert command("--gin_config=tiny.gin", *bindings, *flags) == 0


def build_network(*bindings, config="cifar10.gin"):
    command_line.configure([config], ["resnet.resnet18.width = 4", *bindings])
    return gin_registry.resnet18(num_output_classes=10, in_channels=3)


def kinds_of_pooling(network):
    return {type(module) for module in network.modules() if isinstance(module, SizedPooling)}


# The command


def test_published_command_trains(tmp_path):
    command = [sys.executable, "-m", "diffstride.examples.main", "--gin_config=tiny.gin"]
    command.append("--gin_bindings=train.workdir = 'runs/resnet18'")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.search(r"^test accuracy +\d+\.\d\d % after 1 epoch$", done.stdout, re.MULTILINE)
    files = {path.name for path in (tmp_path / "runs" / "resnet18").iterdir()}
    assert {"summary.json", "metrics.csv", "tensorboard", "operative_config.gin"} <= files


@pytest.mark.slow
def test_stderr_is_empty_without_a_terminal(tmp_path):
    for number, path in enumerate(("train/a", "train/b", "test/a", "test/b")):
        folder = tmp_path / "own" / path
        folder.mkdir(parents=True)
        for shade in range(4):
            image = Image.new("RGB", (8, 8), (number, 60 * shade, 0))
            image.save(folder / f"{shade}.png")
    tmp_path.joinpath("own.gin").write_text(
        """
        include 'tiny.gin'
        data.load_datasets.name = 'own'
        data.load_datasets.root = '.'
        data.load_datasets.batch_size = 4
        """
    )
    command = [sys.executable, "-m", "diffstride.examples.main", "--gin_config=own.gin"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    assert done.stderr == ""
    assert "test accuracy" in done.stdout


@pytest.mark.parametrize(
    ("bindings", "flags", "folder"),
    [
        (["train.workdir = 'short'"], [], "short"),
        (["train.train.workdir = 'long'"], [], "long"),
        (["train.workdir = 'binding'"], ["--workdir=flag"], "flag"),
        (["train.workdir = 'first'\ntrain.workdir = 'second'"], [], "second"),
        (["train.workdir = 'first'", "train.workdir = 'second'"], [], "second"),
    ],
)
def test_workdir_comes_from_bindings_unless_the_flag_is_given(bindings, flags, folder):
    train_tiny(*bindings, flags=flags)
    assert sorted(path.parent.name for path in Path().glob("*/summary.json")) == [folder]


def test_seed_comes_from_the_flag(capsys):
    train_tiny("train.seed = 1", flags=["--workdir=run", "--seed=2"])
    assert command("--gin_config=tiny.gin", "--workdir=run") == 2
    assert "differs in seed (2 there, 0 asked for): choose" in capsys.readouterr().err
    train_tiny("train.seed = 2", flags=["--workdir=run"])


def test_operative_config_makes_the_same_run_again(capsys):
    bindings = ["resnet.Resnet.pooling_cls = @pooling.DiffStride", "batch_norm.momentum = 0.5"]
    train_tiny(*bindings, "train.schedule = @OneCycleLR", flags=["--workdir=run"])
    config = Path("run/operative_config.gin")
    assert "batch_norm.momentum = 0.5" in config.read_text()
    assert command(f"--gin_config={config}") == 0
    assert "run holds this run, finished" in capsys.readouterr().out


def test_operative_config_has_the_arguments_of_augmentations(capsys):
    bindings = ["data.load_datasets.augment_fn = @augment.crop_and_flip"]
    bindings.append("augment.crop_and_flip.padding = 1")
    train_tiny(*bindings, flags=["--workdir=run"])
    config = Path("run/operative_config.gin")
    assert "crop_and_flip.padding = 1" in config.read_text()
    assert "crop_and_flip.padding_mode = 'constant'" in config.read_text()
    assert command(f"--gin_config={config}") == 0
    assert "run holds this run, finished" in capsys.readouterr().out
    assert command(f"--gin_config={config}", "--gin_bindings=crop_and_flip.padding = 2") == 2
    assert "differs in augment_fn ('crop_and_flip" in capsys.readouterr().err


def test_several_configs_are_read_in_order():
    Path("more.gin").write_text("train.workdir = 'more'\ntrain.seed = 7")
    assert command("--gin_config=tiny.gin", "--gin_config=more.gin") == 0
    assert '"seed": 7' in Path("more/summary.json").read_text()


def test_configs_are_looked_up_here_then_in_the_folder_then_among_packaged_ones():
    folder = Path("configs")
    folder.mkdir()

    def width():
        command_line.configure(["digits.gin"], configs_folder="configs")
        return gin.query_parameter("resnet18.width")

    assert width() == 8
    (folder / "digits.gin").write_text("include 'other.gin'")
    (folder / "other.gin").write_text("resnet18.width = 5")
    assert width() == 5
    Path("digits.gin").write_text("resnet18.width = 3")
    assert width() == 3


@pytest.mark.slow
def test_a_folder_of_configs_may_include_packaged_ones():
    """In a separate process, where Python may take the folder for a package."""
    Path("configs").mkdir()
    Path("configs/mine.gin").write_text("include 'digits.gin'\ntrain.num_epochs = 0")
    flags = ["--gin_config=mine.gin", "--configs_folder=configs", "--workdir=run"]
    started = [sys.executable, "-m", "diffstride.examples.main", *flags]
    run = subprocess.run(started, capture_output=True, text=True, check=False)
    # This error comes only after the files have been read.
    assert re.fullmatch(r"error: num_epochs must be .* got 0\n", run.stderr), run.stderr


# Mistakes


ARGUMENTS = [
    (name, argument)
    for name, arguments in gin_registry.NAMES.items()
    for argument in arguments
    if gin_registry.KINDS[name][argument] not in (Any, dict[str, Any])
    and argument not in ("fill", "dtype")  # of transforms, which may be dictionaries
]


def test_a_value_of_a_wrong_type_names_the_argument():
    assert len(ARGUMENTS) > 200
    for name, argument in ARGUMENTS:
        with pytest.raises(ValueError, match=rf"^{name}\.{argument} must be .*, but got .*odd"):
            command_line.configure([], [f"{name}.{argument} = {{'odd': 1}}"])


@pytest.mark.parametrize(
    "binding",
    [
        "resnet.resnet18.width = %wide\nwide = 'eight'",
        "resnet.resnet18.width = @resnet.resnet56",
        "resnet.resnet18.pooling_cls = 'DifStride'",
        "a/resnet.resnet18.width = True",
        "torch.optim.SGD.lr = '0.05'",
    ],
)
def test_macros_references_and_scopes_are_checked_too(binding):
    with pytest.raises(ValueError, match=r" must be .*, but got "):
        command_line.configure([], [binding])


def test_values_that_fit_are_taken():
    bindings = [
        "resnet.resnet18.strides = '1, 1, 2, 2, 2'",
        "resnet.resnet18.pooling_cls = None",
        "train.stride_phase = [0, 0.5]",
        "train.budget = %budget\nbudget = 'strided'",
        "torch.optim.SGD.lr = 1",
        "data.load_datasets.augment_fn = @augment.flip",
        "data.load_datasets.root = %made\nmade = @make()",
    ]
    gin.external_configurable(lambda: "/data", name="make", module="test")
    command_line.configure(["digits.gin"], bindings)


def test_a_setting_of_a_file_without_its_function_is_refused():
    Path("short.gin").write_text("include 'digits.gin'\nnum_epochs = 1\n")
    expected = r"^short.gin: 'num_epochs' names no setting.*; did you mean 'train.train.num_epochs'"
    with pytest.raises(ValueError, match=expected):
        command_line.configure(["short.gin"])


def test_other_macros_of_a_file_may_stay_unused():
    Path("more.gin").write_text("include 'digits.gin'\nEPOCHS = 1\n")
    command_line.configure(["more.gin"])


def test_a_macro_that_something_refers_to_may_be_bound():
    Path("macro.gin").write_text("resnet.resnet18.strides = [1, %inner/first]\ninner/first = 1")
    bindings = ["inner/first = %second", "second = 3", "train.seed = %seed", "seed = 4"]
    command_line.configure(["macro.gin"], bindings)
    values = {argument: value for _, argument, value in gin_compat.bound_values()}
    assert values["strides"] == [1, 3]
    assert values["seed"] == 4


def test_files_that_include_each_other_give_a_short_error(capsys):
    Path("a.gin").write_text("include 'b.gin'")
    Path("b.gin").write_text("include 'a.gin'")
    assert command("--gin_config=a.gin") == 2
    printed = capsys.readouterr().err
    named = r"b\.gin" if sys.version_info >= (3, 11) else r"a\.gin"  # Gin's text or the argument
    assert re.search(rf"the Gin files .*{named}.* include each other", printed)
    assert len(printed) < 500


def test_long_errors_are_cut(capsys):
    assert command(f"--gin_bindings=train.seed = {[*range(10_000)]}") == 2
    assert len(capsys.readouterr().err) < 500


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    train_tiny("train.workdir = '~/run'")
    assert (tmp_path / "home" / "run" / "summary.json").exists()
    assert not Path("~").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gin_config=train.seed=1"], "no Gin file 'train.seed=1': each --gin_bindings takes"),
        (["--gin_config=cifar01.gin"], "no Gin file 'cifar01.gin' in .*mean 'cifar10.gin'.*digits"),
        (["--gin_bindings=trian.workdir = 'x'"], "matching 'trian'.*mean 'train.train.workdir'"),
        (["--gin_bindings=train.wrokdir = 'x'"], "parameter named 'wrokdir'.*mean 'workdir'"),
        (["--gin_bindings=budget.seed = 1"], "matching 'budget'.*mean 'train.train.seed'"),
        (["--gin_bindings=train.model = @resnet.resnet81"], "did you mean 'resnet.resnet18'"),
        (
            ["--gin_bindings=train.workdir = runs/x"],
            r"--gin_bindings='train\.workdir = runs/x': runs/x is no value",
        ),
        (
            ["--gin_bindings=train.seed = 1", "--gin_bindings=train.workdir"],
            "--gin_bindings='train.workdir': expected ':' or '=': write NAME = VALUE$",
        ),
        (
            ["--gin_bindings=train.seed = 1\ntrain.workdir = runs/x"],
            r"runs/x': train\.workdir = runs/x \(line 2\): runs/x is no value",
        ),
        (
            ["--gin_bindings=DiffStride.edge = 'stopband'"],
            "Ambiguous selector 'DiffStride'.*mean 'pooling.DiffStride.edge' or 'reference.Diff",
        ),
        (
            ["--gin_bindings=num_epochs = 2"],
            "'num_epochs' names no setting, and nothing refers to %num_epochs; did you mean "
            r"'train\.train\.num_epochs'\?$",
        ),
        (["--gin_bindings=num_epoch = 2"], r"did you mean 'train\.train\.num_epochs'\?$"),
        (["--gin_bindings=lr = 0.1"], r"did you mean 'torch\.optim\.SGD\.lr'\?$"),
        (["--gin_bindings=a/seed = 1"], r"'a/seed' names .*mean 'train\.train\.seed'\?$"),
        (["--gin_bindings=train.seed = 1\nzzz = 1"], "'zzz' names no .*; write the function in"),
        (
            ["--gin_bindings=train.seed = %count", "--gin_bindings=cuont = 1"],
            r"'cuont' names no setting.*; did you mean 'count'\?$",
        ),
        (["--gin_bindings=OneCycleLR.max_lr = 1.0"], "OneCycleLR.*'max_lr'"),
        (["--gin_bindings=import nothing_of_this_name"], "No module named 'nothing_of_this_name'"),
        (["--gin_bindings=train.callbacks = [3]"], r"list of Lightning callbacks, but got \[3\]"),
        (["--gin_bindings=resnet.resnet18.width = 0"], "width must be a whole number of at least"),
        (["--gin_bindings=train.threads = 100000"], "threads must be .* from 1 to 1024, but got 1"),
        (
            ["--gin_bindings=data.load_datasets.image_size = 9000"],
            "image_size must be at most",
        ),
        (
            ["--gin_bindings=train.schedule = @StepLR", "--gin_bindings=StepLR.step_size = 0"],
            r"the optimizer or the schedule cannot be built \(ZeroDivisionError.*check its argum",
        ),
        (["--gin_bindings=data.load_datasets.name = 'cifra10'"], "unknown data set 'cifra10'"),
        (["--gin_bindings=resnet.resnet18.strides = [1, 2]"], r"\[1, 2\]"),
        (
            ["--gin_bindings=resnet.Resnet.strides = [1, 1, 3, 2, 3]"],
            r"resnet\.Resnet\.strides is bound, but has no effect.*bind resnet\.resnet18\.strides",
        ),
        (
            ["--gin_bindings=resnet.Resnet.num_layers = 3"],
            r"resnet\.Resnet\.num_layers is bound, but has no effect, .*: remove the binding$",
        ),
        (
            [
                "--gin_bindings=resnet.Resnet.pooling_cls = @pooling.DiffStride",
                "--gin_bindings=pooling.DiffStride.strides = (3.0, 3.0)",
            ],
            r"pooling\.DiffStride\.strides is bound, but has no effect",
        ),
        (
            [
                "--gin_bindings=data.load_datasets.augment_fn = 'shift_mask'",
                "--gin_bindings=augment.shift_and_mask.share = 0.2",
            ],
            r"shift_and_mask are bound, .* 'shift_mask' is a name: bind @augment.shift_and_mask",
        ),
        (
            ["--gin_bindings=resnet.resnet18.strides = '1, 1, two'"],
            r"as \[1, 1, 2, 2, 2\] or as '1, 1, 2, 2, 2', but got '1, 1, two'",
        ),
        (
            ["--gin_bindings=resnet.resnet18.stride = [1, 2]"],
            "resnet18' doesn't have a parameter named 'stride'.*did you mean 'strides'",
        ),
        (
            ["--gin_bindings=resnet.resnet18.pooling = None"],
            "parameter named 'pooling'.*did you mean 'pooling_cls'",
        ),
        (
            ["--gin_bindings=resnet.resnet18.bottleneck = 2"],
            "parameter named 'bottleneck'.*; its parameters are strides, width, num_output_classes",
        ),
        (
            ["--gin_bindings=schedule.divisions = 3"],
            "matching 'schedule'.*; the names of this program are .*data.load_datasets",
        ),
        (
            ["--gin_bindings=resnet.Resnet.pooling_cls = pooling.DiffStride"],
            r"pooling_cls = pooling\.DiffStride': a function .* write @pooling\.DiffStride$",
        ),
        (
            ["--gin_bindings=resnet.Resnet.pooling_cls = DiffStride  # learned"],
            r"write @pooling\.DiffStride or @reference\.DiffStride$",
        ),
        (
            ["--gin_bindings=resnet.Resnet.pooling_cls = 'pooling.DiffStride'"],
            r"'pooling\.DiffStride' is text.*write @pooling\.DiffStride without quotes",
        ),
        (
            ["--gin_bindings=train.optimizer = 'SGD'"],
            r"'SGD' is text, .*function or class: write @torch\.optim\.SGD without quotes",
        ),
        (
            ["--gin_bindings=data.load_datasets.name = digits"],
            r"load_datasets\.name = digits': digits is no value: .* quotes, as 'digits'",
        ),
        (["--gin_bindings=train.workdir = /tmp/run"], "text in quotes, as '/tmp/run'"),
        (["--gin_bindings=train.channels_last = true"], "channels_last = true': write True$"),
        (
            ["--gin_bindings=resnet.resnet18.strides = [1, 1, 2"],
            r"\[1, 1, 2': a bracket or a quote is opened",
        ),
        (["--gin_bindings=resnet.Resnet.order = 'first'"], "order must be.*'first'"),
        (["--gin_bindings=train.precision = '12'"], "'12' is invalid"),
        (["--gin_bindings=train.accelerator = 'abacus'"], "abacus"),
        (
            ["--gin_bindings=train.num_epochs = 0"],
            "num_epochs must be a whole number of at least 1, but got 0",
        ),
        (["--gin_bindings=train.label_smoothing = 'a'"], "label_smoothing must be a number.*'a'"),
        (["--gin_bindings=train.threads = 0"], "threads must be a whole number .*but got 0"),
        (
            ["--gin_bindings=resnet.Resnet.output_activation = 'softmax'"],
            "applies the softmax, but output_activation is .*: set it to None",
        ),
        (
            ["--gin_bindings=train.num_epochs = %FOO"],
            r"No bindings specified for 'FOO/gin\.macro'",
        ),
        (["--configs_folder=nowhere"], "configs_folder='nowhere' does not exist"),
        (["--workdir=tiny.gin"], "cannot write to workdir 'tiny.gin' .File exists.: choose"),
        (["--workdir=/dev/null/run"], "cannot write to workdir '/dev/null/run' .Not a dir"),
    ],
)
def test_a_mistake_gives_an_error_of_one_line(capsys, arguments, message):
    arguments = ["--gin_config=tiny.gin", "--workdir=run", *arguments]
    if arguments[-1].startswith("--gin_config"):
        del arguments[0]
    try:
        code = command(*arguments)
    except SystemExit as exit:
        code = exit.code
    printed = capsys.readouterr().err
    assert code == 2
    assert re.fullmatch(rf"error: .*(?:{message}).*\n", printed), printed
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wrokdir=x"], "unrecognized arguments: --wrokdir=x: did you mean --workdir?"),
        (["--seed=one"], "argument --seed: invalid int value: 'one'"),
        (["--epochs=2"], "--epochs=2: settings are Gin bindings, as in --gin_bindings='train"),
        (["train"], "unrecognized arguments: train"),
        (
            ["--gin_bindings=train.seed = 1", "train.num_epochs = 2"],
            "arguments: train.num_epochs = 2: each --gin_bindings takes one binding",
        ),
    ],
)
def test_a_wrong_flag_ends_with_usage(capsys, arguments, message):
    with pytest.raises(SystemExit, match=r"^2$"):
        command("--gin_config=tiny.gin", *arguments)
    printed = capsys.readouterr().err
    assert printed.startswith("usage: python3 -m diffstride.examples.main")
    assert message in printed


@pytest.mark.parametrize(
    ("reason", "code"), [(KeyboardInterrupt, 130), (exceptions.SIGTERMException, 143)]
)
def test_exit_code_of_a_stopped_program_is_that_of_its_signal(monkeypatch, capsys, reason, code):
    def stop():
        raise reason

    monkeypatch.setattr(gin_registry, "train", stop)
    assert command("--gin_config=tiny.gin") == code
    assert "Traceback" not in capsys.readouterr().err


def test_traceback_is_shown_with_verbosity(capsys):
    arguments = ["--gin_config=tiny.gin", "--gin_bindings=train.num_epochs = 0"]
    assert command(*arguments, "--verbosity=1") == 2
    assert "Traceback" in capsys.readouterr().err


# The names of the published system


@pytest.mark.parametrize(
    ("binding", "kinds"),
    [
        ("", {pooling.DiffStride}),
        (
            "resnet.Resnet.pooling_cls = @pooling.FixedSpectralPooling",
            {pooling.FixedSpectralPooling},
        ),
        ("resnet.Resnet.pooling_cls = @pooling.SpatialPooling", {pooling.SpatialPooling}),
        ("resnet.Resnet.pooling_cls = @pooling.MaxPooling", {pooling.MaxPooling}),
        ("resnet.Resnet.pooling_cls = @pooling.BlurPooling", {pooling.BlurPooling}),
        ("resnet.Resnet.pooling_cls = @reference.DiffStride", {reference.DiffStride}),
        (
            "resnet.Resnet.pooling_cls = @reference.FixedSpectralPooling",
            {reference.FixedSpectralPooling},
        ),
        ("resnet.Resnet.pooling_cls = None", set()),
    ],
)
def test_pooling_is_chosen_by_name(binding, kinds):
    assert kinds_of_pooling(build_network(binding)) == kinds


@pytest.mark.parametrize("strides", ["[1, 1, 3, 2, 3]", "'1, 1, 3, 2, 3'", "'1,1,3.0,2,3'"])
def test_strides_of_the_readme(strides):
    network = build_network(f"resnet.resnet18.strides = {strides}")
    strides = [layer.stride_values() for layer in stride_layers(network).values()]
    assert strides == [(1, 1), (3, 3), (2, 2), (3, 3)]


def test_bindings_reach_the_parts_built_inside_a_network():
    network = build_network(
        "batch_norm.momentum = 0.75",
        "batch_norm.epsilon = 0.5",
        "resnet.Resnet.order = 'before'",
        "resnet.Resnet.weight_decay = 0.25",
        "pooling.DiffStride.smoothness_factor = 2.0",
        "pooling.DiffStride.lower_limit_stride = 1.0",
        "pooling.DiffStride.upper_limit_stride = 5.0",
        "pooling.DiffStride.shared_stride = True",
        "pooling.DiffStride.trainable = False",
        "pooling.DiffStride.cropping = False",
        "pooling.DiffStride.straight_through = False",
        "pooling.DiffStride.edge = 'stopband'",
    )
    norms = [each for each in network.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.25, 0.5)}
    assert network.weight_decay == 0.25
    for layer in stride_layers(network).values():
        assert (layer.smoothness_factor, layer.upper_limit_stride) == (2.0, 5.0)
        assert (layer.shared_stride, layer.cropping, layer.edge) == (True, False, "stopband")
        assert not layer.strides.requires_grad


def test_bindings_reach_the_norms_of_convnet():
    command_line.configure(["cifar10_fast.gin"])
    network = gin_registry.ConvNet(num_output_classes=10)
    norms = [each for each in network.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    assert {round(norm.momentum, 6) for norm in norms} == {0.4}
    assert all(layer.smoothness_factor == 1.0 for layer in stride_layers(network).values())


def test_bindings_reach_resnet56_and_resnet():
    command_line.configure(
        [],
        [
            "batch_norm.epsilon = 0.5",
            "resnet.Resnet.pooling_cls = @pooling.DiffStride",
            "resnet.resnet56.width = 2",
        ],
    )
    own = gin_registry.Resnet([2, 4], [1, 2], num_output_classes=3)
    for network, count in ((gin_registry.resnet56(num_output_classes=3), 4), (own, 2)):
        norm = next(each for each in network.modules() if isinstance(each, torch.nn.BatchNorm2d))
        assert norm.eps == 0.5
        assert 0 < len(stride_layers(network)) <= count


def test_threads_that_build_networks_leave_the_library_unchanged():
    """The second begins while the first builds, and would end after it."""
    builders = resnet.Resnet, resnet.batch_norm
    inside, ended = threading.Event(), threading.Event()

    def build(event, awaited):
        def pooling_cls(strides):
            inside.set()
            awaited.wait(timeout=0.1)
            return torch.nn.Identity()

        gin_registry.resnet18(width=4, num_output_classes=2, pooling_cls=pooling_cls)
        event.set()

    first = threading.Thread(target=build, args=(ended, threading.Event()))
    first.start()
    inside.wait()
    build(threading.Event(), ended)
    first.join()
    assert (resnet.Resnet, resnet.batch_norm) == builders


def test_bindings_do_not_change_the_library_itself():
    builders = resnet.Resnet, resnet.batch_norm
    command_line.configure([], ["batch_norm.epsilon = 0.5"])
    assert gin_registry.resnet18(width=4, num_output_classes=2) is not None
    assert (resnet.Resnet, resnet.batch_norm) == builders
    norms = resnet.resnet18(width=4, num_output_classes=2).modules()
    assert next(each for each in norms if isinstance(each, torch.nn.BatchNorm2d)).eps != 0.5


def test_optimisers_and_schedules_have_their_names_in_torch():
    for name in ("torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW"):
        assert "lr" in gin_registry.NAMES[name]
    for name in ("OneCycleLR", "MultiStepLR", "CosineAnnealingLR"):
        assert f"torch.optim.lr_scheduler.{name}" in gin_registry.NAMES
    assert not {"LBFGS", "SequentialLR"} & {name.rpartition(".")[2] for name in gin_registry.NAMES}
    assert "weight_decay" not in gin_registry.NAMES["torch.optim.AdamW"]
    assert "total_iters" not in gin_registry.NAMES["torch.optim.lr_scheduler.PolynomialLR"]
    assert "seed" not in gin_registry.NAMES["data.load_datasets"]
    published = {"name", "batch_size", "augment_fn", "mixup_alpha"}
    assert published <= set(gin_registry.NAMES["data.load_datasets"])


@pytest.mark.parametrize(
    "schedule", ["@OneCycleLR", "@schedules.multi_step", "@MultiStepLR", "@PolynomialLR", "None"]
)
def test_other_optimisers_and_schedules_train(schedule):
    train_tiny(
        f"train.schedule = {schedule}",
        "train.optimizer = @torch.optim.AdamW",
        "torch.optim.AdamW.lr = 0.001",
        "MultiStepLR.milestones = [1]",
        "data.load_datasets.augment_fn = 'crop_flip'",
        "data.load_datasets.mixup_alpha = 0.2",
        flags=["--workdir=run"],
    )
    config = Path("run/operative_config.gin").read_text()
    assert "AdamW.lr = 0.001" in config


# The packaged configurations


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.name)
def test_packaged_config_opens_with_command_machine_time_and_accuracy(path):
    head = path.read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    fields = dict(re.findall(r"^# (\w+): +(.+)$", head, re.MULTILINE))
    assert list(fields) == ["Command", "Machine", "Time", "Accuracy"]
    program = "table" if "table.grid.groups" in path.read_text() else "main"
    start = f"python3 -m diffstride.examples.{program} --gin_config={path.name}"
    assert fields["Command"].startswith(start)
    assert "%" in fields["Accuracy"]


# tests/test_sound.py trains those of sounds, on tones.
OF_IMAGES = [path for path in PACKAGED if "sound_fn" not in path.read_text()]


@pytest.mark.parametrize("path", OF_IMAGES, ids=lambda path: path.name)
def test_packaged_config_trains_for_one_epoch(path, capsys):
    bindings = [
        "train.num_epochs = 1",
        "data.load_datasets.holdout = 0",
        "train.precision = '32-true'",
        "resnet.resnet18.width = 8",
        "data.load_datasets.name = 'digits'",
        "data.load_datasets.batch_size = 16",
        "data.load_datasets.train_examples = 64",
        "data.load_datasets.test_examples = 20",
    ]
    flags = [f"--gin_bindings={binding}" for binding in bindings]
    assert command(f"--gin_config={path.name}", "--workdir=run", *flags) == 0
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_digits_reach_95_percent_within_90_seconds(capsys):
    start = [sys.executable, "-m", "diffstride.examples.main", "--gin_config=digits.gin"]
    done = subprocess.run(start, capture_output=True, text=True, timeout=90, check=True)
    accuracy = re.search(r"test accuracy +(\S+) % after", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 95
