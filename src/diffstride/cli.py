"""The command ``diffstride``: trainings by Gin configurations, and reports of conversions.

Torch, Gin and Lightning are imported by the commands that need them, so that help comes at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from diffstride import __version__
from diffstride._commands import CONFIGS, STOPPED, USAGE_ERROR, advise_settings
from diffstride._wording import counted

EXAMPLES = """examples:
  diffstride train cifar10_small.gin --workdir=runs/small
  diffstride report torchvision/resnet18 --size 224

diffstride COMMAND --help lists the options of a command.
"""
TRAIN_EXAMPLES = """examples:
  diffstride train digits.gin --workdir=runs/digits
  diffstride train cifar10.gin --gin_bindings="train.workdir = 'runs/resnet18'"
  diffstride train cifar10_small.gin mine.gin --gin_bindings="train.budget = 'strided'" --seed=1
"""
PUBLISHED_EXAMPLES = """examples:
  python3 -m diffstride.examples.main --gin_config=digits.gin
  python3 -m diffstride.examples.main --gin_config=cifar10_small.gin --workdir=runs/small
"""
REPORT_EXAMPLES = """examples:
  diffstride report torchvision/resnet18
  diffstride report timm/regnety_002 --size 128
  diffstride report timm/resnet18d --channels 1 --order after
  diffstride report torchvision/r3d_18 --size 16 112 112
"""


PUBLISHED = "python3 -m diffstride.examples.main"  # the command of the published system
FLAGS: dict[str, dict[str, Any]] = {
    "gin_bindings": {
        **{"action": "append", "default": [], "metavar": "BINDING"},
        "help": "one more line of configuration; may be repeated",
    },
    "workdir": {"metavar": "FOLDER", "help": "run folder; overrides train.workdir"},
    "seed": {"type": int, "metavar": "NUMBER", "help": "random seed; overrides train.seed"},
    "configs_folder": {"metavar": "FOLDER", "help": "folder with Gin files of your own"},
    "verbosity": {
        **{"type": int, "default": 0, "metavar": "NUMBER"},
        "help": "1 shows the traceback of an error",
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: those of the command line; by default those of this process.

    Returns:
        The exit code. ``--help`` and wrong arguments end the process instead.

    >>> main(["report", "torchvision/resnet19"])
    2
    """
    return _run(_parser(), arguments)


def published_main(arguments: Sequence[str] | None = None) -> int:
    """As `main`, for ``python3 -m diffstride.examples.main``, which trains."""
    return _run(_published_parser(), arguments)


def _run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    given, rest = parser.parse_known_args(arguments)
    if rest:
        advice = advise_settings(rest, [*FLAGS]) if given.run is _train else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{advice}")
    try:
        code = given.run(given)
        sys.stdout.flush()  # here, where a closed pipe can be handled
        return code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # the reader, such as head, wants no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        return 0
    except ModuleNotFoundError as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return USAGE_ERROR


def _parser() -> argparse.ArgumentParser:
    summary = "Downsampling with learnable strides for PyTorch."
    parser = argparse.ArgumentParser("diffstride", **_texts(summary, EXAMPLES))
    parser.add_argument("--version", action="version", version=f"diffstride {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    _add_train(commands)
    _add_report(commands)
    return parser


def _texts(summary: str, examples: str) -> dict[str, Any]:
    """Options of a parser that shows its examples as they are written."""
    kept = argparse.RawDescriptionHelpFormatter
    return {
        "description": summary,
        "epilog": examples,
        "formatter_class": kept,
        "allow_abbrev": False,
    }


def _add_train(commands: Any) -> None:
    summary = "Train a network by Gin configurations."
    train = commands.add_parser(
        "train", help=summary, **_texts(summary, TRAIN_EXAMPLES + _configs())
    )
    train.set_defaults(run=_train)
    looked_up = "in the working folder, in --configs_folder and among the packaged files"
    train.add_argument(
        "gin_config", nargs="+", metavar="CONFIG", help=f"Gin file, looked up {looked_up}"
    )
    _add_flags(train)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    for name, options in FLAGS.items():
        parser.add_argument(f"--{name}", **options)


def _configs() -> str:
    """The packaged configurations, each with the first line of its file."""
    files = sorted(CONFIGS.glob("*.gin"))
    first = {file.name: file.read_text("utf-8").partition("\n")[0].strip("# ") for file in files}
    return "\npackaged configurations:\n" + "".join(f"  {n:<18}{t}\n" for n, t in first.items())


def _published_parser() -> argparse.ArgumentParser:
    summary = "Train a network by Gin configurations."
    parser = argparse.ArgumentParser(PUBLISHED, **_texts(summary, PUBLISHED_EXAMPLES + _configs()))
    parser.set_defaults(run=_train)
    text = "Gin file (default: digits.gin); may be repeated"
    parser.add_argument("--gin_config", action="append", metavar="CONFIG", help=text)
    _add_flags(parser)
    return parser


def _train(given: argparse.Namespace) -> int:
    from diffstride.training.command_line import train

    values = {name: getattr(given, name) for name in FLAGS}
    return train(given.gin_config or ["digits.gin"], **values)


def _add_report(commands: Any) -> None:
    summary = "Convert a network with random weights, and report strides, map sizes and cost."
    report = commands.add_parser("report", help=summary, **_texts(summary, REPORT_EXAMPLES))
    report.set_defaults(run=_report)
    report.add_argument(
        "network", metavar="NETWORK", help="torchvision/NAME or timm/NAME; nothing is downloaded"
    )
    report.add_argument(
        "--size",
        nargs="+",
        type=_positive,
        default=[224],
        metavar="SAMPLES",
        help="of the images: one number, or height and width, or frames, height and width "
        "(default: 224)",
    )
    report.add_argument(
        "--channels", type=_positive, default=3, metavar="NUMBER", help="of the images (default: 3)"
    )
    report.add_argument(
        "--order",
        choices=("auto", "before", "after"),
        default="auto",
        help="where modules are pooled, as for diffstride.convert (default: auto)",
    )
    report.add_argument(
        "--patchify",
        action="store_true",
        help="convert convolutions whose patches do not overlap, too",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _report(given: argparse.Namespace) -> int:
    try:
        _print_report(given)
    except (ValueError, RuntimeError) as error:  # the libraries refuse
        return _fail(error)
    return 0


def _print_report(given: argparse.Namespace) -> None:
    import torch

    from diffstride import convert, report
    from diffstride._named_networks import build_network

    sizes = given.size * 2 if len(given.size) == 1 else given.size
    model = build_network(given.network, given.channels)
    _check_axes(given.network, model, sizes)
    image = torch.zeros(1, given.channels, *sizes)
    converted = convert(model, image, order=given.order, patchify=given.patchify)
    print(f"{given.network}, an image of {' x '.join(map(str, (given.channels, *sizes)))}")
    found = report(converted)
    print("\n".join(_costs(found)), end="\n\n")
    print(found)


def _check_axes(name: str, model: Any, sizes: Sequence[int]) -> None:
    """Refuse sizes for another number of axes than the convolutions of a network have."""
    from diffstride._torch_compat import Conv

    axes = {len(each.kernel_size) for each in model.modules() if isinstance(each, Conv)}
    if axes and len(sizes) not in axes:
        most = max(axes)
        example = " ".join(["16", "112", "112"][-most:])
        raise ValueError(
            f"{name} takes images with {counted(most, 'spatial axis', 'spatial axes')}, but "
            f"--size makes {len(sizes)} of them: give {counted(most, 'size')}, as in "
            f"--size {example}"
        )


def _costs(found: Any) -> tuple[str, str]:
    """Lines with the cost of a converted network before conversion and now, by its report."""
    before, now = found.multiply_adds_before, found.multiply_adds
    after = f"{'unknown':>15}, see below the table"
    if now is not None:
        after = f"{now:>15,} MACs, {now / before:.2f} times"
    return f"  as it is   {before:>15,} MACs (multiply-adds)", f"  converted  {after}"
