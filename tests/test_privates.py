"""Private names of torch, Gin and Lightning: the installed releases have all that we use."""

import ast
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

SOURCES = Path(__file__).parents[1] / "src" / "diffstride"
CONV = nn.Conv2d(1, 1, 1, padding_mode="circular")


def constant_mark() -> bool:
    def function() -> None: ...

    return torch.compiler.assume_constant_result(function)._dynamo_marked_constant


def compiled_original() -> bool:
    return torch.compile(CONV, backend="eager")._orig_mod is CONV


# How each private name is reached, which raises an error if it is gone. False is an error, too.
TORCH: dict[str, Callable[[], Any]] = {
    "_BatchNorm": lambda: nn.modules.batchnorm._BatchNorm,
    "_C": lambda: torch._C,
    "_CircularPadNd": lambda: nn.modules.padding._CircularPadNd,
    "_ConvNd": lambda: nn.modules.conv._ConvNd,
    "_ConvTransposeNd": lambda: nn.modules.conv._ConvTransposeNd,
    "_DisableFuncTorch": lambda: torch._C._DisableFuncTorch,
    "_InstanceNorm": lambda: nn.modules.instancenorm._InstanceNorm,
    "_ReflectionPadNd": lambda: nn.modules.padding._ReflectionPadNd,
    "_are_functorch_transforms_active": (
        lambda: torch._C._are_functorch_transforms_active() is False
    ),
    "_autograd": lambda: torch._C._autograd,
    "_detect_is_causal_mask": lambda: nn.modules.transformer._detect_is_causal_mask,
    "_get_append_fn": lambda: ModuleTracker._get_append_fn,
    "_get_mod_name": lambda: ModuleTracker._get_mod_name,
    "_get_pop_fn": lambda: ModuleTracker._get_pop_fn,
    "_cdata": lambda: torch.empty(1).untyped_storage()._cdata,
    "_count_flops": lambda: FlopCounterMode._count_flops,
    "_cudnn_rnn": lambda: torch.ops.aten._cudnn_rnn,
    "_current_level": lambda: forward_ad._current_level == -1,
    "_dynamo_marked_constant": constant_mark,
    "_forward_hooks": lambda: CONV._forward_hooks == {},
    "_forward_hooks_with_kwargs": lambda: CONV._forward_hooks_with_kwargs == {},
    "_forward_pre_hooks": lambda: CONV._forward_pre_hooks == {},
    "_forward_pre_hooks_with_kwargs": lambda: CONV._forward_pre_hooks_with_kwargs == {},
    "_functorch": lambda: (
        torch._C._functorch.is_functorch_wrapped_tensor,
        torch._C._functorch.is_gradtrackingtensor,
        torch._C._functorch.get_unwrapped,
    ),
    "_get_tracing_state": lambda: torch._C._get_tracing_state() is None,
    "_len_torch_function_stack": lambda: torch._C._len_torch_function_stack() == 0,
    "_make_wrapper_subclass": lambda: torch.Tensor._make_wrapper_subclass,
    "_optimizer_state_dict_post_hooks": lambda: (
        torch.optim.SGD([torch.ones(1)])._optimizer_state_dict_post_hooks == {}
    ),
    "_orig_mod": compiled_original,
    "_qualified_op_name": lambda: torch.ops.aten.add._qualified_op_name == "aten::add",
    "_reversed_padding_repeated_twice": lambda: CONV._reversed_padding_repeated_twice,
    "_set_tracing_state": lambda: torch._C._set_tracing_state,
    "_trilinear": lambda: torch.ops.aten._trilinear.default,
    "_top_saved_tensors_default_hooks": (
        lambda: torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    ),
}
GIN: dict[str, Callable[[], Any]] = {
    "_CONFIG": lambda: gin_config()._CONFIG == {},
    "_LOCATION_PREFIXES": lambda: gin_config()._LOCATION_PREFIXES,
    "_OPERATIVE_CONFIG": lambda: gin_config()._OPERATIVE_CONFIG == {},
    "_REGISTRY": lambda: gin_config()._REGISTRY["gin.macro"].wrapper,
}
LIGHTNING: dict[str, Callable[[], Any]] = {
    "_device": lambda: pl("callbacks").WeightAveraging()._device is None,
    "_signal_connector": lambda: connector().received_sigterm is False,
    "_sigterm_notifier_fn": lambda: connector()._sigterm_notifier_fn,
}
# Written as text: each alone may be absent, and the module then does without.
OPTIONAL = ("_scaled_dot_product_", "_is_mkldnn_", "_supported")
PARTS = {
    "torch": SimpleNamespace(file="_torch_compat.py", distribution="torch", names=TORCH),
    "gin": SimpleNamespace(file="training/gin_compat.py", distribution="gin-config", names=GIN),
    "lightning": SimpleNamespace(
        file="training/lightning_compat.py", distribution="lightning", names=LIGHTNING
    ),
}


def gin_config() -> Any:
    gin = pytest.importorskip("gin", reason="needs Gin, of the extra train")
    gin.clear_config()
    return gin.config


def pl(module: str = "") -> Any:
    pytest.importorskip("lightning", reason="needs Lightning, of the extra lightning")
    return importlib.import_module(f"lightning.pytorch.{module}".rstrip("."))


def connector() -> Any:
    return pl().Trainer(logger=False, enable_checkpointing=False)._signal_connector


def imported(tree: ast.Module) -> Iterator[str]:
    """Private names that are imported, or come from private modules, with their module."""
    for node in ast.walk(tree):
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            path = f"{node.module}.{alias.name}"
            if "._" in path:
                yield path


def reached(tree: ast.Module) -> Iterator[str]:
    """Private attributes, also those that are written as text."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                if name.startswith("_") and name.isidentifier() and not name.startswith("__"):
                    yield name


def own(tree: ast.Module) -> set[str]:
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in tree.body if isinstance(node, kinds)}


def tree_of(part: str) -> ast.Module:
    return ast.parse((SOURCES / PARTS[part].file).read_text())


def gone(part: str, name: str, error: Any) -> str:
    distribution = PARTS[part].distribution
    return (
        f"{distribution} {version(distribution)} no longer has {name} as "
        f"src/diffstride/{PARTS[part].file} uses it ({error}): change that file, or bound the "
        "release in pyproject.toml"
    )


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part in PARTS for name in PARTS[part].names]
)
def test_private_names_are_there(part: str, name: str) -> None:
    try:
        found = PARTS[part].names[name]()
    except (AttributeError, ImportError, KeyError, TypeError) as error:
        pytest.fail(gone(part, name, error))
    assert found is not False, gone(part, name, "it has another value")


@pytest.mark.parametrize("part", PARTS)
def test_private_imports_are_there(part: str) -> None:
    for path in imported(tree_of(part)):
        package = path.partition(".")[0]
        pytest.importorskip(package, reason=f"needs {package}")
        try:
            pkgutil.resolve_name(path)
        except (AttributeError, ImportError) as error:
            pytest.fail(gone(part, path, error))


@pytest.mark.parametrize("part", PARTS)
def test_every_private_name_in_use_is_tested(part: str) -> None:
    tree = tree_of(part)
    used = {name for name in reached(tree) if not name.startswith(OPTIONAL)}
    assert used - own(tree) == set(PARTS[part].names)


def test_a_name_that_is_gone_is_told() -> None:
    said = gone("torch", "_cdata", "no attribute")
    assert said.startswith(f"torch {torch.__version__.partition('+')[0]}")
    assert "no longer has _cdata as src/diffstride/_torch_compat.py uses it" in said
