"""What the sweep tries on one network, and how it names what happened."""

import copy
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import diffstride
from benchmarks.machine import ROOT
from benchmarks.network_checks import counted, move_strides, outputs_of, step
from diffstride import CostBudget, MultiplyAdds, convert, freeze, stride_layers
from diffstride.cost.budget_scaling import UnreachableBudgetError

OUTCOMES = ("passed", "refused", "partly", "wrong", "error", "timeout")
NOT_COUNTED = ("no stride", "not built")
LIBRARY = Path(diffstride.__file__).parent
BUILDING = ("build", "run")  # steps before conversion
MOVED = "strides moved"
HIGHEST = (2.4, 1.8, 1.3)  # of the moved strides; smaller where maps would be empty
TOLERANCE = 1e-4  # of frozen outputs, relative to the largest
COUNTS = 1e-6  # of multiply-adds, relative
SHARE = 0.8  # of the cost before conversion, as a budget
LITTLE_LESS = 0.995  # of the present cost, where other budgets cannot be met
STEPS = 3  # of training within a budget
LEARNING_RATE = 0.05
NO_STRIDE = "has no stride to convert"
PATCHES_ALONE = "has no stride that could learn, with patchify=True or without"
PATCHIFYING = "its patches do not overlap"
SINGLE_VALUES = ("Expected more than 1 value", "Expected more than 1 spatial")

Inputs = tuple[Any, ...]
Row = dict[str, Any]


class Network(NamedTuple):
    """A network to try, and inputs of growing size, the first of which that runs is used."""

    model: nn.Module
    inputs: Sequence[Inputs]


@dataclass
class Trial:
    """What has been tried of one network so far; ``tell`` is called with each step's name."""

    tell: Callable[[str], None] = lambda step: None
    step: str = "build"
    facts: Row = field(default_factory=dict)
    refusals: list[tuple[str, str]] = field(default_factory=list)

    def at(self, step: str) -> None:
        """Begin a step."""
        self.step = step
        self.tell(step)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record the seconds that a part takes."""
        start = time.perf_counter()
        yield
        self.facts[f"{name}_seconds"] = round(time.perf_counter() - start, 3)

    @contextmanager
    def refusable(self, step: str) -> Iterator[None]:
        """A step that may be refused in words, after which the others are still tried."""
        self.at(step)
        try:
            yield
        except Exception as error:
            if not (is_refusal(error) or any(text in str(error) for text in SINGLE_VALUES)):
                raise
            self.refusals.append((step, one_line(error)))

    def outcome(self) -> Row:
        """The outcome if nothing failed."""
        if not self.refusals:
            return {"outcome": "passed"}
        first, reason = self.refusals[0]
        return {"outcome": "partly", "step": first, "reason": reason}


def attempt(build: Callable[[], Network], tell: Callable[[str], None]) -> Row:
    """Try all steps on a network; returns what happened, and numbers."""
    trial = Trial(tell)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _try_all(trial, build)
    except Exception as error:
        return trial.facts | failure(trial.step, error)
    return trial.facts | trial.outcome()


def failure(step: str, error: Exception) -> Row:
    """The outcome of a network that failed in a step."""
    row = {"outcome": "error", "step": step, "reason": f"{type(error).__name__}: {one_line(error)}"}
    if step in BUILDING:
        return row | {"outcome": "not built"}
    if step == "convert" and is_refusal(error):
        return row | {"outcome": _class_of_refusal(str(error)), "reason": one_line(error)}
    if isinstance(error, AssertionError) and _last_file(error).parent == Path(__file__).parent:
        return row | {"outcome": "wrong", "reason": one_line(error)}
    if is_refusal(error):
        return row | {"outcome": "partly", "reason": one_line(error)}
    return row | {"outcome": "wrong" if step == MOVED else "error", "frame": last_frame(error)}


def is_refusal(error: Exception) -> bool:
    """Whether the library refused in words: it raised a ValueError of its own."""
    return isinstance(error, ValueError) and _last_file(error).is_relative_to(LIBRARY)


def _class_of_refusal(message: str) -> str:
    """No stride, if there is none or only such as are left out by default; else refused."""
    found = message.partition(NO_STRIDE)
    reasons = found[2].split("; ")[1:]
    only_left_out = found[1] and all(PATCHIFYING in reason for reason in reasons)
    if only_left_out or PATCHES_ALONE in message:
        return "no stride"
    return "refused"


def one_line(error: Exception) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split())


def last_frame(error: Exception) -> str:
    """Where an error was raised: file, line and function."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    path = _last_file(error)
    for root in (ROOT, *(parent for parent in path.parents if parent.name == "site-packages")):
        if path.is_relative_to(root):
            path = path.relative_to(root)
    return f"{path}:{frame.lineno} in {frame.name}"


def _last_file(error: Exception) -> Path:
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename)


def _try_all(trial: Trial, build: Callable[[], Network]) -> None:
    """All steps of a trial, in order."""
    trial.at("build")
    torch.manual_seed(0)
    network = build()
    trial.at("run")
    model, inputs = network.model, fitting_inputs(network)
    training = model.training
    shapes = [out.shape for out in outputs_of(evaluated(model, inputs))]
    trial.at("convert")
    converted = _converted(trial, model.train(training), inputs)
    mode = converted.training
    before = converted.conversion.multiply_adds[""]
    trial.facts |= facts_of(converted)
    trial.at("output shapes")
    found = [out.shape for out in outputs_of(evaluated(converted, inputs))]
    assert found == shapes, f"outputs of shapes {found}, not {shapes}"
    trial.at("gradients")
    step(converted.train(training), *inputs)
    start = copy.deepcopy(converted.state_dict())
    cost, costed = _cost(trial, converted, inputs, mode)
    _try_moved(trial, converted, inputs, cost, costed)
    converted.load_state_dict(start)
    if cost is not None:
        for budget in (before, SHARE * before):
            with trial.refusable("budget"):
                _try_budget(trial, converted, inputs, budget, (mode, training))
    trial.at("freeze")
    frozen = freeze(converted.eval(), inputs)
    check_equal(evaluated(frozen, inputs), evaluated(converted, inputs))
    trial.at("export")
    check_export(frozen, model.eval(), inputs)


def fitting_inputs(network: Network) -> Inputs:
    """The first inputs with which the network trains, or else runs; it is left in that mode.

    Raises:
        Exception: that of the last inputs, if it does with none.
    """
    failed: Exception = ValueError("the network has no inputs")
    for inputs in network.inputs:
        for training in (True, False):
            try:
                evaluated(network.model, inputs)
                step(network.model.train(training), *inputs)
            except Exception as error:
                failed = error
                continue
            gradients = [p.grad for p in network.model.parameters() if p.grad is not None]
            if not all(gradient.isfinite().all() for gradient in gradients):
                failed = ValueError("the gradients of the network are not finite")
                continue
            network.model.zero_grad()
            return inputs
    raise failed


def evaluated(model: nn.Module, inputs: Inputs) -> Any:
    """What a network returns in evaluation, with the same random numbers in each call."""
    torch.manual_seed(0)
    with torch.no_grad():
        return model.eval()(*inputs)


def _converted(trial: Trial, model: nn.Module, inputs: Inputs) -> Any:
    """The converted network; in evaluation if that is refused in training.

    With ``patchify`` where nothing else strides.
    """
    try:
        with trial.timed("convert"):
            return convert(model, inputs)
    except ValueError as error:
        if NO_STRIDE in str(error) and PATCHIFYING in str(error):
            with suppress(ValueError), trial.timed("convert"):  # the error above says more
                converted = convert(model, inputs, patchify=True)
                trial.facts["patchify"] = True
                return converted
        elif model.training:
            with suppress(ValueError), trial.timed("convert"):
                return convert(model.eval(), inputs)
        raise


def facts_of(converted: Any) -> Row:
    """The mode and the numbers of a conversion."""
    found = converted.conversion
    return {
        "mode": "training" if converted.training else "evaluation",
        "modules": len(found.strides),
        "layers": len(stride_layers(converted)),
        "left_out": found.left_out,
        "multiply_adds_before": found.multiply_adds[""],
    }


def _cost(
    trial: Trial, converted: nn.Module, inputs: Inputs, mode: bool
) -> tuple[MultiplyAdds | None, bool]:
    """The cost of a network, timed, or None if it is refused; and whether it is that of training.

    It is that of evaluation, or if that is refused, of the mode in which it was converted: in
    evaluation a detector keeps the positions of its last pass.
    """
    if mode:
        with suppress(ValueError), trial.timed("multiply_adds"):
            return MultiplyAdds(converted.eval(), inputs), False
    with trial.refusable("MultiplyAdds"), trial.timed("multiply_adds"):
        return MultiplyAdds(converted.train(mode), inputs), mode
    return None, False


def _try_budget(
    trial: Trial,
    model: nn.Module,
    inputs: Inputs,
    multiply_adds: float,
    modes: tuple[bool, bool],
) -> None:
    """Train within a budget, or if no strides can meet it, within `LITTLE_LESS` than it costs."""
    try:
        train_within(model, inputs, multiply_adds, modes)
    except UnreachableBudgetError:
        least = LITTLE_LESS * MultiplyAdds(model.train(modes[0]), inputs).value()
        trial.facts["unreachable"] = [*trial.facts.get("unreachable", []), multiply_adds]
        train_within(model, inputs, least, modes)


def _try_moved(
    trial: Trial, converted: nn.Module, inputs: Inputs, cost: MultiplyAdds | None, costed: bool
) -> None:
    """Move the strides at random, run, and compare the cost with the count of torch."""
    trial.at(MOVED)
    if cost is None:
        move_strides(converted, high=HIGHEST[-1])
        evaluated(converted, inputs)
        return
    for high in HIGHEST:
        move_strides(converted, high=high)
        with suppress(ValueError):  # a map would be empty
            cost.value()
            break
    expected = cost.value()
    evaluated(converted, inputs)
    trial.at("cost")
    actual = counted(converted.train(costed), *inputs)
    if not _close(expected, actual):  # axes pooled in halves in float32 are counted half
        double = copy.deepcopy(converted).double()
        actual = counted(double, *tree_map_only(Tensor, _as_double, inputs))
    assert _close(expected, actual), f"{expected:,} multiply-adds, but torch counts {actual:,.0f}"


def _as_double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _close(expected: float, actual: float) -> bool:
    return abs(expected - actual) <= COUNTS * actual


def train_within(
    model: nn.Module, inputs: Inputs, multiply_adds: float, modes: tuple[bool, bool]
) -> None:
    """Train for a few steps within a budget, and check that it holds.

    ``modes`` says whether the network is in training for the analysis, and for the steps.
    """
    budget = CostBudget(model.train(modes[0]), inputs, multiply_adds)
    model.train(modes[1])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE)
    for _ in range(STEPS):
        step(model, *inputs)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        budget.project_()
        cost = budget.cost.value()
        assert cost <= multiply_adds, f"{cost:,} multiply-adds, above a budget of {multiply_adds:,}"


def check_equal(actual: Any, expected: Any) -> None:
    """Check that two outputs are equal up to rounding."""
    pairs = list(zip(outputs_of(actual), outputs_of(expected), strict=True))
    for a, b in pairs:
        assert a.shape == b.shape, f"frozen outputs of shape {tuple(a.shape)}, not {tuple(b.shape)}"
        if a.is_floating_point():
            scale = b.abs().max().item() if b.numel() else 0.0
            same = torch.allclose(a, b, rtol=0.0, atol=TOLERANCE * scale, equal_nan=True)
            assert same, f"frozen outputs differ by {(a - b).abs().max():.3g} of {scale:.3g}"


def check_export(frozen: nn.Module, plain: nn.Module, inputs: Inputs) -> None:
    """Export the frozen network; if that fails, so must the network before conversion."""
    try:
        torch.export.export(frozen, inputs)
    except Exception:
        if exports(plain, inputs):
            raise


def exports(model: nn.Module, inputs: Inputs) -> bool:
    """Whether `torch.export` takes a network."""
    try:
        torch.export.export(model, inputs)
    except Exception:
        return False
    return True
