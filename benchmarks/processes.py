"""Training on 1, 2 and 4 processes of one host: the same strides and losses, and what it costs.

Each process takes its share of one batch, and gloo averages the gradients. ``DDP`` is
`DistributedDataParallel`. ``FSDP`` is ``fully_shard`` with the strides kept out of it, and
``all_reduce`` averages their gradients.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.overrides import TorchFunctionMode

from benchmarks.common import Report, finish, new_report, parser_of, start, strides_of
from benchmarks.tables import split_table
from diffstride import CostBudget, DiffStride, parameter_groups, project_strides, stride_layers
from diffstride.resnet import resnet18

BATCH, SIZE, CLASSES = 16, 16, 10
# Of weights and strides; without the statistics of a batch resnet18 diverges at larger ones.
LEARNING_RATES = {"small": (0.05, 5.0), "resnet18, width 8": (0.002, 0.02)}


class Case(NamedTuple):
    """A training: its network, what holds the strides after a step, and how processes share it."""

    network: str
    after_step: str
    strategy: str


CASES = (
    Case("small", "project", "DDP"),
    Case("small", "budget", "DDP"),
    Case("resnet18, width 8", "project", "DDP"),
    Case("resnet18, width 8", "budget", "DDP"),
    Case("small", "project", "FSDP"),
)
QUICK = {"processes": [1, 2], "steps": 8, "cases": [CASES[0], CASES[1], CASES[4]]}
LABELS = Case._fields


def build(name: str) -> nn.Module:
    """A network whose result does not depend on who else is in the batch.

    Batch norm is in evaluation mode: on a CPU processes cannot share its statistics.
    """
    torch.manual_seed(0)
    if name == "small":
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            DiffStride(2.0),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            DiffStride(1.5),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        )
    network = resnet18(width=8, num_output_classes=CLASSES, pooling_cls=DiffStride).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return network


def fsdp_missing() -> str | None:
    """Why FSDP cannot be tried with this torch, or None."""
    if torch.__version__.startswith("2.8."):
        return "fully_shard of torch 2.8 adds gradients up over gloo instead of averaging them"
    return None


class HostReads(TorchFunctionMode):
    """Counts how often a program reads the values of strides, as it would on an accelerator.

    It may read the strides of a layer, or those of several layers in one tensor.
    """

    READING = (Tensor.tolist, Tensor.item, Tensor.to, Tensor.cpu, Tensor.isfinite)

    def __init__(self, strides: Sequence[Tensor]) -> None:
        super().__init__()
        self.addresses = {each.data_ptr() for each in strides}
        self.joined: Tensor | None = None
        self.count = 0

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **kwargs or {})
        if func is torch.cat and any(each.data_ptr() in self.addresses for each in args[0]):
            self.joined = result
        elif func in self.READING and result is not args[0]:  # `to` the same device reads nothing
            self.count += args[0] is self.joined or args[0].data_ptr() in self.addresses
        return result


@contextmanager
def as_on_an_accelerator() -> Iterator[None]:
    """Let the layers read their strides when these have changed, and not at every call."""
    rule = DiffStride._is_on_cpu
    DiffStride._is_on_cpu = lambda self: False
    try:
        yield
    finally:
        DiffStride._is_on_cpu = rule


class Exchange:
    """How many bytes of gradients a process hands to gloo, in total and of strides."""

    def __init__(self, strides: Sequence[Tensor]) -> None:
        self.strides = {id(each) for each in strides}
        self.total = self.of_strides = 0

    def reset(self) -> None:
        self.total = self.of_strides = 0

    # DDP refuses a hook with another annotation of its result, and takes none.
    def hook(self, group: Any, bucket: distributed.GradBucket):  # pyright: ignore
        """A communication hook of DDP, which averages the gradients as DDP does by itself."""
        self.total += bucket.buffer().nbytes
        for parameter in bucket.parameters():
            self.of_strides += parameter.nbytes * (id(parameter) in self.strides)
        return allreduce_hook(group, bucket)

    def average(self, gradients: Sequence[Tensor], processes: int) -> None:
        """Average gradients that no wrapper takes care of."""
        for gradient in gradients:
            self.of_strides += gradient.nbytes
            distributed.all_reduce(gradient)
            gradient /= processes


def share(network: nn.Module, strategy: str, processes: int, exchange: Exchange) -> nn.Module:
    """The network as one of several processes trains it."""
    if processes == 1:
        return network
    if strategy == "DDP":
        wrapped = nn.parallel.DistributedDataParallel(network)
        wrapped.register_comm_hook(None, exchange.hook)
        return wrapped
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (processes,))
    return fully_shard(network, mesh=mesh, ignored_params={*strides_of(network)})  # type: ignore


def train(case: Case, steps: int, rank: int, processes: int) -> dict[str, Any]:
    """Train on this process's share of the batches; losses are the means over all processes."""
    network = build(case.network)
    strides: Any = strides_of(network)
    budget = None
    if case.after_step == "budget":
        budget = CostBudget(network, torch.zeros(1, 3, SIZE, SIZE), 0.9)
    exchange = Exchange(strides)
    model = share(network, case.strategy, processes, exchange)
    rate, stride_rate = LEARNING_RATES[case.network]
    groups = parameter_groups(network, weight_decay=0.0, stride_learning_rate=stride_rate)
    optimiser = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    losses, history, reads = [], [], HostReads(strides)
    for step in range(steps):
        images, labels = batch(step)
        exchange.reset()
        reads.count = 0
        with as_on_an_accelerator(), reads:
            optimiser.zero_grad()
            logits = model(images[rank::processes])
            loss = F.cross_entropy(logits, labels[rank::processes])
            loss.backward()
            if case.strategy == "FSDP" and processes > 1:
                exchange.average([each.grad for each in strides], processes)
            optimiser.step()
            project_strides(network) if budget is None else budget.project_()
        losses.append(mean_over_processes(loss.detach(), processes))
        history.append([value for each in strides for value in each.tolist()])
    return {
        "losses": losses,
        "strides": history,
        "layers": len(stride_layers(network)),
        "host_reads": reads.count,
        "bytes_of_strides": exchange.of_strides,
        "bytes_of_gradients": exchange.total,
    }


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The same images and labels in every process."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    return images, torch.randint(CLASSES, (BATCH,), generator=generator)


def mean_over_processes(loss: Tensor, processes: int) -> float:
    loss = loss.clone()
    if processes > 1:
        distributed.all_reduce(loss)
    return float(loss) / processes


def worker(
    rank: int, processes: int, cases: Sequence[Case], steps: int, folder: str, threads: int
) -> None:
    """One of several processes: trains all cases, and writes what it found."""
    torch.set_num_threads(threads)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes
    )
    found = [train(case, steps, rank, processes) for case in cases]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    distributed.barrier()
    # Without the end of the interpreter, where gloo's threads sometimes abort a process ("terminate
    # called without an active exception"), after destroy_process_group() as well.
    os._exit(0)


def train_on(processes: int, cases: Sequence[Case], steps: int) -> list[list[dict[str, Any]]]:
    """What each process found, by rank; a list with one entry for each case."""
    if processes == 1:
        return [[train(case, steps, 0, 1) for case in cases]]
    with tempfile.TemporaryDirectory() as folder:
        arguments = (processes, cases, steps, folder, torch.get_num_threads())
        torch.multiprocessing.spawn(worker, arguments, nprocs=processes)  # type: ignore
        files = [Path(folder, f"{rank}.json") for rank in range(processes)]
        return [json.loads(file.read_text()) for file in files]


def measure(processes: Sequence[int], cases: Sequence[Case], steps: int) -> list[dict[str, Any]]:
    """One row for each number of processes and case, compared with one process."""
    alone = train_on(1, cases, steps)[0]
    rows = []
    for count in processes:
        ranks = [alone] if count == 1 else train_on(count, cases, steps)
        for index, case in enumerate(cases):
            rows.append(
                {
                    **case._asdict(),
                    "processes": count,
                    **compare([rank[index] for rank in ranks], alone[index]),
                }
            )
    return rows


def compare(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> dict[str, Any]:
    """A row: what the first process found, its difference to one process, and over processes."""
    first = ranks[0]
    return {
        "loss_difference": largest_difference([first["losses"]], [alone["losses"]]),
        "stride_difference": largest_difference(first["strides"], alone["strides"]),
        "stride_spread": max(largest_difference(r["strides"], first["strides"]) for r in ranks),
        "stride_movement": largest_difference(first["strides"][-1:], first["strides"][:1]),
        **{name: first[name] for name in ("layers", "host_reads", "bytes_of_strides")},
        "bytes_of_gradients": first["bytes_of_gradients"] or None,
        "losses": first["losses"],
        "strides": first["strides"][-1],
    }


def largest_difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """The largest absolute difference of two tables of numbers.

    >>> largest_difference([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.5]])
    0.5
    """
    return float((torch.tensor(ours).double() - torch.tensor(theirs).double()).abs().max())


HEADER = (
    "network",
    "after a step",
    "strategy",
    "processes",
    "loss, difference to one process",
    "strides, difference to one process",
    "strides, spread over processes",
    "strides, movement",
    "bytes of strides a step",
    "bytes of all gradients a step",
    "layers",
    "host reads a step",
)


def tables(report: Report) -> str:
    """The table of a report, in Markdown."""
    lines = [_line(row) for row in report["rows"]]
    steps = f"{report['steps']} steps, a batch of {BATCH} in all, float32:"
    skipped = [f"Not measured: {each}." for each in report["skipped"]]
    return "\n\n".join([steps, split_table(HEADER, lines, keys=len(LABELS) + 1), *skipped])


def _line(row: dict[str, Any]) -> list[str]:
    differences = ("loss_difference", "stride_difference", "stride_spread", "stride_movement")
    counts = ("bytes_of_strides", "bytes_of_gradients", "layers", "host_reads")
    return [
        *(row[label] for label in (*LABELS, "processes")),
        *(f"{row[name]:.1g}" for name in differences),
        *("–" if row[name] is None else row[name] for name in counts),
    ]


def run(options: argparse.Namespace) -> Report:
    """Train all cases on all numbers of processes."""
    missing = fsdp_missing()
    cases = [case for case in options.cases if case.strategy != "FSDP" or missing is None]
    skipped = [] if missing is None else [f"FSDP: {missing}"]
    report = new_report(options, steps=options.steps, rows=[], skipped=skipped)
    report["rows"] = measure(options.processes, cases, options.steps)
    return report


def main(arguments: Sequence[str] | None = None) -> Report:
    parser = parser_of("processes", __doc__, repeats=1)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=20, help="steps of each training")
    parser.set_defaults(cases=list(CASES))
    options = start(parser, arguments, QUICK)
    return finish(options, run(options), tables)


if __name__ == "__main__":
    main()
