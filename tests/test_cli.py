"""The command diffstride: help, trainings, reports, errors."""

import json
import pkgutil
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import diffstride
from diffstride import MultiplyAdds, _named_networks, cli, convert, report

PYPROJECT = (Path(__file__).parents[1] / "pyproject.toml").read_text()


def run(*arguments):
    command = [sys.executable, "-m", "diffstride", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def ended(*arguments):
    """The exit code of arguments that end the process."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return stop.value.code


class Patches(nn.Module):
    """A network with a convolution that is converted and one that is left out."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.patches = nn.Conv2d(8, 8, 2, stride=2)

    def forward(self, x):
        return self.patches(self.down(x))


class Enlarging(Patches):
    """Its cost is unknown, since maps are enlarged by a fraction."""

    def forward(self, x):
        x = self.down(x)
        return self.patches(nn.functional.interpolate(x, scale_factor=1.4))


@pytest.fixture
def own_networks(monkeypatch):
    """Names of small networks, ``own/Patches``, ``own/Enlarging`` and ``own/Volume``."""
    volume = partial(nn.Sequential, nn.Conv3d(8, 8, 3, stride=2))
    kinds = {"Patches": Patches, "Enlarging": Enlarging, "Volume": volume}
    monkeypatch.setitem(_named_networks.BUILDERS, "own", lambda name, channels: kinds[name]())


# Help and version


@pytest.mark.parametrize("command", [[], ["train"], ["report"]])
def test_help_shows_examples_that_are_accepted(command, capsys):
    assert ended(*command, "--help") == 0
    text = capsys.readouterr().out
    examples = re.findall(r"^  diffstride (train|report) (.+)$", text, re.MULTILINE)
    assert len(examples) >= 2
    for name, rest in examples:
        words = [word.strip('"') for word in re.findall(r'[^" ]+"[^"]+"|[^ ]+', rest)]
        assert cli._parser().parse_args([name, *words]).run in (cli._train, cli._report)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["report", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    program = "import sys; from diffstride.cli import main\n"
    program += f"try: main({arguments})\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "usage: diffstride" in done.stdout
    loaded = set(done.stderr.split())
    assert "diffstride.cli" in loaded
    assert not loaded & {"torch", "numpy", "gin", "absl", "lightning", "torchvision", "timm"}


def test_help_lists_the_packaged_configurations(capsys):
    assert ended("train", "--help") == 0
    names = sorted(path.name for path in cli.CONFIGS.glob("*.gin"))
    assert len(names) >= 5
    listed = capsys.readouterr().out.partition("packaged configurations:")[2]
    assert [line.split()[0] for line in listed.splitlines() if line] == names


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_the_published_command_comes_before_heavy_imports(flag):
    command = [sys.executable, "-X", "importtime", "-m", "diffstride.examples.main", flag]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == cli._published_parser().format_help()
    assert all(f"--{name} " in done.stdout for name in ("gin_config", *cli.FLAGS))
    assert "digits.gin" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "diffstride.cli" in loaded
    assert not loaded & {"torch", "numpy", "gin", "absl", "lightning"}


@pytest.mark.parametrize(
    ("network", "sizes", "message"),
    [
        (
            "own/Volume",
            ["64", "64"],
            "3 spatial axes, but --size makes 2 of them: give 3 sizes",
        ),
        ("own/Volume", ["64"], "3 spatial axes, but --size makes 2 of them"),
        ("own/Patches", ["8", "64", "64"], "2 spatial axes, but --size makes 3 of them: give 2"),
    ],
)
def test_sizes_of_another_number_of_axes_are_refused(own_networks, capsys, network, sizes, message):
    assert cli.main(["report", network, "--size", *sizes]) == cli.USAGE_ERROR
    assert f"error: {network} takes images with {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bindings", [["train.seed=1", "train.threads=1"], ["train.seed", "=", "1"]]
)
def test_words_after_a_binding_are_refused_with_how_to_give_several(bindings, capsys):
    assert ended("train", "digits.gin", "--gin_bindings", *bindings) == cli.USAGE_ERROR
    rest, _, advice = (
        capsys.readouterr().err.partition("unrecognized arguments: ")[2].partition(":")
    )
    assert rest == " ".join(bindings[1:])
    assert "each --gin_bindings takes one binding, in quotes if" in advice
    assert ended("train", "digits.gin", "--epochs=2") == cli.USAGE_ERROR
    assert "as in --gin_bindings='train.num_epochs = 2'" in capsys.readouterr().err
    assert ended("train", "digits.gin", "--workdri=x") == cli.USAGE_ERROR
    assert "did you mean --workdir?" in capsys.readouterr().err
    assert ended("report", "torchvision/resnet18", "timm/resnet18d") == cli.USAGE_ERROR
    assert "gin_bindings" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_reader_that_wants_no_more_is_no_error():
    command = f"{sys.executable} -m diffstride report torchvision/resnet18 --size 64 | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_ctrl_c_ends_a_report_with_one_line(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_named_networks, "build_network", interrupted)
    assert cli.main(["report", "torchvision/resnet18"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_version(capsys):
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"diffstride {diffstride.__version__}\n")
    assert ended("--version") == 0
    assert capsys.readouterr().out == done.stdout


def test_the_installed_command_is_this_one():
    entry = re.search(r'^\[project.scripts\]\ndiffstride = "(.+)"$', PYPROJECT, re.MULTILINE)
    assert entry is not None
    assert pkgutil.resolve_name(entry[1]) is cli.main


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train"], ["report"], ["report", "a", "b"]])
def test_wrong_arguments_end_with_usage(arguments, capsys):
    assert ended(*arguments) == cli.USAGE_ERROR
    assert "usage: diffstride" in capsys.readouterr().err


# Training


@pytest.mark.slow
def test_train_trains_like_the_published_command(tmp_path):
    pytest.importorskip("gin", reason="needs the extra train")
    folder = tmp_path / "run"
    small = "train.train.num_epochs = 1\ndata.load_datasets.train_examples = 64"
    flags = [f"--gin_bindings={small}", f"--workdir={folder}", "--seed=3"]
    done = run("train", "digits.gin", *flags)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 1
    again = [sys.executable, "-m", "diffstride.examples.main", "--gin_config=digits.gin", *flags]
    said = subprocess.run(again, capture_output=True, text=True, timeout=120, check=True).stdout
    assert f"{folder} holds this run, finished" in said


def test_train_passes_flags_on(monkeypatch):
    command_line = pytest.importorskip("diffstride.training.command_line")
    passed = []
    monkeypatch.setattr(command_line, "train", lambda *args, **flags: passed.append((args, flags)))
    cli.main(["train", "a.gin", "b.gin", "--gin_bindings", "c = 'd e'", "--gin_bindings=f = 1"])
    cli.main(["train", "--workdir=w", "--seed", "-1", "--configs_folder=c", "a", "--verbosity=1"])
    usual = {"workdir": None, "seed": None, "configs_folder": None, "verbosity": 0}
    assert passed == [
        ((["a.gin", "b.gin"],), usual | {"gin_bindings": ["c = 'd e'", "f = 1"]}),
        (
            (["a"],),
            {"gin_bindings": [], "workdir": "w", "seed": -1, "configs_folder": "c", "verbosity": 1},
        ),
    ]


def test_train_ends_with_the_errors_of_the_published_command(capsys):
    pytest.importorskip("diffstride.training", reason="needs the extra train")
    assert cli.main(["train", "digit.gin"]) == cli.USAGE_ERROR
    assert "did you mean 'digits.gin'?" in capsys.readouterr().err


# Reports


def test_report_of_a_network_of_torchvision():
    models = pytest.importorskip("torchvision.models")
    done = run("report", "torchvision/resnet18", "--size", "64")
    assert done.returncode == 0, done.stderr
    image = torch.zeros(1, 3, 64, 64)
    before, model = MultiplyAdds(models.resnet18(), image), convert(models.resnet18(), image)
    now = MultiplyAdds(model, image).value()
    head, table = done.stdout.split("\n\n")
    assert head.splitlines() == [
        "torchvision/resnet18, an image of 3 x 64 x 64",
        f"  as it is   {before.value():>15,} MACs (multiply-adds)",
        f"  converted  {now:>15,} MACs, {now / before.value():.2f} times",
    ]
    assert table == f"{report(model)}\n"


@pytest.mark.slow
def test_report_of_a_network_of_timm_with_options(capsys):
    timm = pytest.importorskip("timm")
    options = ["--size", "48", "64", "--channels", "1", "--order", "after"]
    assert cli.main(["report", "timm/resnet18d", *options]) == 0
    model = convert(
        timm.create_model("resnet18d", in_chans=1), torch.zeros(1, 1, 48, 64), order="after"
    )
    printed = capsys.readouterr().out
    assert printed.startswith("timm/resnet18d, an image of 1 x 48 x 64\n")
    assert printed.endswith(f"\n\n{report(model)}\n")


def test_report_says_what_is_left_out_and_why(own_networks, capsys):
    assert cli.main(["report", "own/Patches", "--size", "32", "--channels", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "left out:"
    assert re.match(r"  patches: patchifying convolution: its patches do not overlap", lines[-1])


def test_report_converts_patches_if_asked_to(own_networks, capsys):
    arguments = ["report", "own/Patches", "--size", "32", "--channels", "8", "--patchify"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "left out:" not in printed
    assert re.search(r"^patches\W.*-> 8 x 8", printed, re.MULTILINE), printed


def test_report_of_an_unknown_cost(own_networks, capsys):
    assert cli.main(["report", "own/Enlarging", "--channels=8", "--order=after", "--size=32"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^  converted +unknown, see below the table$", printed, re.MULTILINE)
    assert re.search(r"^MACs are not known: the cost of patches", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["resnet18"], "'resnet18' names no network: give LIBRARY/NAME, such as torchvision/"),
        (["keras/resnet18"], "'keras/resnet18' names no network"),
        (["timm/"], "'timm/' names no network"),
        (["own/Patches", "--channels=3"], "(Conv2d) cannot run on its input"),
        (["timm/hf-hub:timm/resnet18"], "timm has no network 'hf-hub:timm/resnet18'"),
        (["timm/resnet18e"], "timm has no network 'resnet18e'; did you mean 'resnet18'?"),
        (["torchvision/resnet19"], "no network 'resnet19'; did you mean 'resnet18'?"),
        (["torchvision/resnet18", "--channels=1"], "takes images of 3 channels, not 1"),
        (["torchvision/vit_b_16", "--size=64"], "Wrong image height! Expected 224 but got 64!"),
    ],
)
def test_errors_of_reports(arguments, error, own_networks, capsys):
    if (library := arguments[0].partition("/")[0]) in ("timm", "torchvision"):
        pytest.importorskip(library)
    assert cli.main(["report", *arguments]) == cli.USAGE_ERROR
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert error in said


def test_a_library_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert cli.main(["report", "timm/resnet18d"]) == cli.USAGE_ERROR
    said = "timm/resnet18d needs timm, which is not installed: pip install timm"
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize("size", ["0", "-1", "2.5", "large"])
def test_sizes_are_whole_numbers(size, capsys):
    assert ended("report", "torchvision/resnet18", f"--size={size}") == cli.USAGE_ERROR
    assert f"{size!r} is no whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["googlenet", "fcn_resnet50", "fasterrcnn_resnet50_fpn"])
def test_networks_are_built_without_weights_and_warnings(name):
    pytest.importorskip("torchvision")
    assert isinstance(_named_networks.build_network(f"torchvision/{name}"), nn.Module)
