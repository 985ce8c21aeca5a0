"""Faults until they are survived: killed trainings and grids, flipped bits, images, full disks.

python -m benchmarks.soak
"""

import argparse
import csv
import io
import logging
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import ROOT, Report, finish, new_report, parser_of, start
from benchmarks.tables import table
from diffstride import DiffStride
from diffstride.resnet import Resnet
from diffstride.training import checkpoints, run
from diffstride.training.class_folders import DataError
from diffstride.training.data import load_datasets
from diffstride.training.image_decoding import FORMATS, _decode
from experiments import table as grid_command
from experiments.markdown import write_table
from experiments.results import read_rows

PAGE = ROOT / "docs" / "reliability.md"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
QUICK = {"repeats": 1, "flips": 300, "images": 300}
EPOCHS = 4
ATTEMPTS = 100  # of a training or grid, after which it counts as lost
FULL, OTHER = 28, 29  # exit codes: an error that names its file, and any other one
GRID = """
train.train.num_epochs = 2
train.train.accelerator = 'cpu'
train.train.threads = 1
torch.optim.SGD.lr = 0.01
resnet.resnet18.width = 4
data.load_datasets.batch_size = 64
data.load_datasets.train_examples = 320
data.load_datasets.test_examples = 100
table.grid.config = 'soak'
table.grid.groups = [
    {'dataset': 'digits', 'strides': [1, 1, 2, 2, 1], 'pooling': ['strided', 'diffstride'],
     'seeds': [0]},
]
"""


# Processes


def train_small(workdir: Path) -> None:
    """A training of a second, with momentum, a schedule and learned strides."""
    run.train(
        workdir,
        model=partial(Resnet, [4, 8], [2, 2], pooling_cls=DiffStride),
        datasets=partial(load_datasets, batch_size=64, train_examples=640, test_examples=100),
        num_epochs=EPOCHS,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        schedule=torch.optim.lr_scheduler.OneCycleLR,
        accelerator="cpu",
        threads=1,
    )


def train_grid(folder: Path) -> None:
    """A grid of two trainings."""
    config = folder.parent / "soak.gin"
    config.write_text(GRID)
    folders = [f"--runs={folder / 'runs'}", f"--results={folder / 'results'}"]
    sys.exit(grid_command.main([f"--gin_config={config}", *folders]))


def run_in_process(
    work: Callable[[Path], None], folder: Path, stop: tuple[int, float] | None = None
) -> int:
    """Work in a process of its own, which a signal may stop after some seconds; its exit code.

    What the process prints goes to a file beside the folder.
    """
    sys.stdout.flush()
    process = os.fork()
    if not process:
        try:  # an interrupt at any moment must not get out into what the parent does
            printed = os.open(printed_by(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os._exit(_exit_code(work, folder))
        finally:
            os._exit(128 + signal.SIGINT)
    if stop is not None:
        time.sleep(stop[1])
        os.kill(process, stop[0])
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def printed_by(folder: Path) -> Path:
    """The file with what the last process that worked in a folder has printed."""
    return folder.with_suffix(".txt")


def _exit_code(work: Callable[[Path], None], folder: Path) -> int:
    try:
        work(folder)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as error:
        return int(error.code or 0)
    except OSError as error:
        traceback.print_exc()
        return FULL if str(folder) in str(error) else OTHER
    except Exception:
        traceback.print_exc()
        return OTHER
    return 0


# Killed trainings and grids


def soak_killed(
    work: Callable[[Path], None], compare: Callable[[Path, Path], bool], repeats: int, seed: int
) -> dict[str, int]:
    """Stop ``work`` at random moments by random signals until it has finished; count the outcomes.

    An attempt that is stopped has the exit code of its signal, or it has just finished.
    """
    draw = random.Random(seed)
    counts = Counter({"finished": 0, "different": 0, "lost": 0, "wrong_exit_codes": 0})
    with tempfile.TemporaryDirectory() as top:
        whole = Path(top, "whole")
        run_in_process(work, Path(top, "first"))  # slower, as it fills the caches
        began = time.perf_counter()
        if run_in_process(work, whole):
            raise RuntimeError("the unbroken run has failed")
        duration = time.perf_counter() - began
        for number in range(repeats):
            folder, code = Path(top, f"broken{number}"), 1
            for _ in range(ATTEMPTS):
                number_of_signal = draw.choice(SIGNALS)
                stop = (number_of_signal, draw.uniform(0.05, 0.9) * duration)
                code = run_in_process(work, folder, stop)
                if code == 0:
                    break
                counts[signal.Signals(number_of_signal).name] += 1
                if code not in (-number_of_signal, 128 + number_of_signal):
                    counts["wrong_exit_codes"] += 1
                    print(f"exit code {code} after {number_of_signal}:", file=sys.stderr)
                    print(printed_by(folder).read_text(), file=sys.stderr, flush=True)
            counts["finished" if code == 0 else "lost"] += 1
            counts["different"] += code == 0 and not compare(folder, whole)
    return dict(counts)


def last_checkpoint(folder: Path) -> Path:
    """The last checkpoint of a run folder."""
    return folder / checkpoints.CHECKPOINTS / checkpoints.LAST


def same_training(folder: Path, other: Path) -> bool:
    """Whether two run folders have the same last checkpoint and log, apart from times."""
    first, second = (checkpoints.load(last_checkpoint(each)) for each in (folder, other))
    for each in (first, second):
        each["run"].pop("seconds")
    return same(first, second) and _log(folder) == _log(other)


def _log(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same_grid(folder: Path, other: Path) -> bool:
    """Whether two grids have the same rows, apart from times."""
    rows, others = (read_rows(each / "results") for each in (folder, other))
    return [row | {"seconds": 0} for row in rows] == [row | {"seconds": 0} for row in others]


def same(one: Any, other: Any) -> bool:
    """Whether two contents of checkpoints are equal, tensors bit for bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# Flipped bits


def soak_flips(flips: int, seed: int) -> dict[str, int]:
    """Flip one bit of a checkpoint, at as many places spread over the file; count the outcomes."""
    draw = random.Random(seed)
    counts = Counter({"refused": 0, "unchanged": 0, "wrong": 0})
    with tempfile.TemporaryDirectory() as top:
        run_in_process(train_small, Path(top, "run"))
        path = last_checkpoint(Path(top, "run"))
        whole, expected = path.read_bytes(), checkpoints.load(path)
        counts["bytes"] = len(whole)
        for number in range(min(flips, len(whole))):
            changed = bytearray(whole)
            changed[number * len(whole) // min(flips, len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            try:
                found = checkpoints.load(path)
            except ValueError:
                counts["refused"] += 1
            else:
                counts["unchanged" if same(found, expected) else "wrong"] += 1
    return dict(counts)


# Images


def soak_images(images: int, seed: int) -> dict[str, Any]:
    """Decode images whose bytes were changed, cut or repeated; count the outcomes."""
    draw = random.Random(seed)
    counts: Counter[str] = Counter({"decoded": 0, "refused": 0, "escaped": 0})
    originals, slowest = _originals(seed), 0.0
    for number in range(images):
        content = _change(originals[number % len(originals)], draw)
        began = time.perf_counter()
        try:
            pixels = _decode({"bytes": content, "path": None}, f"row {number} of the soak")
            counts["decoded" if pixels.dtype == torch.uint8 else "escaped"] += 1
        except DataError:
            counts["refused"] += 1
        except Exception:
            counts["escaped"] += 1
        slowest = max(slowest, time.perf_counter() - began)
    return {**counts, "slowest_seconds": round(slowest, 3)}


def _originals(seed: int) -> list[bytes]:
    """A picture of 24 x 24 pixels in each format, most with EXIF data."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[274], exif[306] = 6, "2026:01:01 00:00:00"  # orientation and date
    found = []
    for form in FORMATS:
        file = io.BytesIO()
        picture.save(file, form, **({"exif": exif} if form in ("WEBP", "PNG", "JPEG") else {}))
        found.append(file.getvalue())
    return found


def _change(original: bytes, draw: random.Random) -> bytes:
    content = bytearray(original)
    for _ in range(draw.choice((1, 2, 4, 16))):
        content[draw.randrange(len(content))] = draw.randrange(256)
    if draw.random() < 0.2:
        place = draw.randrange(len(content) - 4)  # a large number, as of a width or a length
        content[place : place + 4] = struct.pack(">I", draw.randrange(2**32))
    if draw.random() < 0.2:
        del content[draw.randrange(len(content)) :]
    return bytes(content)


# Full disks


def soak_full_disk(repeats: int, seed: int) -> dict[str, int]:
    """Limit the size of files in a training, then train on without the limit.

    A file that reaches the limit is as one on a full disk: writing to it raises an `OSError`.
    """
    draw = random.Random(seed)
    counts = Counter({"told": 0, "untold": 0, "finished": 0, "different": 0, "lost": 0})
    with tempfile.TemporaryDirectory() as top:
        whole = Path(top, "whole")
        run_in_process(train_small, whole)
        largest = max(each.stat().st_size for each in whole.rglob("*") if each.is_file())
        for number in range(repeats):
            folder = Path(top, f"full{number}")
            code = run_in_process(partial(_train_limited, draw.randrange(largest)), folder)
            counts["told"] += code == FULL
            counts["untold"] += code not in (0, FULL)
            code = run_in_process(train_small, folder)
            counts["finished" if code == 0 else "lost"] += 1
            counts["different"] += code == 0 and not same_training(folder, whole)
    return dict(counts)


def _train_limited(limit: int, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    train_small(folder)


# The command


def measure(options: argparse.Namespace) -> Report:
    """All parts of the soak."""
    repeats, seed = options.repeats, options.seed
    began = time.perf_counter()
    parts = {
        "trainings": soak_killed(train_small, same_training, repeats, seed),
        "grids": soak_killed(train_grid, same_grid, max(1, repeats // 4), seed),
        "full_disk": soak_full_disk(repeats, seed),
        "flips": soak_flips(options.flips, seed),
        "images": soak_images(options.images, seed),
    }
    return new_report(options, seconds=round(time.perf_counter() - began), **parts)


def tables(report: Report) -> str:
    """What was tried and how it ended, in Markdown."""
    training, grid, disk = report["trainings"], report["grids"], report["full_disk"]
    flips, images = report["flips"], report["images"]
    lines = [
        [f"{name} that were killed", *_killed(part)]
        for name, part in (("trainings", training), ("grids of two trainings", grid))
    ]
    lines.append(
        [
            "trainings with a limit on the size of files, as on a full disk",
            f"{disk['told'] + disk['untold']} failed, then were resumed without the limit",
            f"{disk['told']} errors named the file; {_ends(disk)}",
        ]
    )
    lines.append(
        [
            f"one flipped bit in a checkpoint of {flips['bytes']:,} bytes",
            f"{flips['refused'] + flips['unchanged'] + flips['wrong']:,} flips",
            f"{flips['refused']:,} refused, {flips['unchanged']:,} without effect on the content, "
            f"{flips['wrong']} wrong",
        ]
    )
    lines.append(
        [
            f"changed images, {', '.join(FORMATS)}",
            f"{images['decoded'] + images['refused'] + images['escaped']:,} images",
            f"{images['decoded']:,} decoded, {images['refused']:,} refused by name, "
            f"{images['escaped']} other errors; the slowest took {images['slowest_seconds']} s",
        ]
    )
    return table(["what", "how often", "how it ended"], lines)


def _killed(part: dict[str, int]) -> tuple[str, str]:
    signals = ", ".join(f"{part.get(each.name, 0)} {each.name}" for each in SIGNALS)
    wrong = f"{part['wrong_exit_codes']} wrong exit codes"
    return signals, f"{_ends(part)}; {wrong}"


def _ends(part: dict[str, int]) -> str:
    equal = part["finished"] - part["different"]
    return f"{equal} of {part['finished'] + part['lost']} ended bit for bit as the unbroken one"


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the soak, print its figures, and write them to the result file and the page."""
    warnings.filterwarnings("ignore", module="PIL")  # of changed images
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    parser = parser_of("soak", __doc__, repeats=20)
    parser.add_argument("--flips", type=int, default=20_000, help="bits to flip, one at a time")
    parser.add_argument("--images", type=int, default=20_000, help="images to change and decode")
    options = start(parser, arguments, QUICK)
    torch.set_num_threads(1)  # before the first fork
    report = finish(options, measure(options), tables)
    if not options.quick:
        write_table(PAGE, "soak", tables(report))
    return report


if __name__ == "__main__":
    main()
