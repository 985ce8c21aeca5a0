"""Load converted and frozen networks of Hugging Face transformers."""

import os
from typing import Any, TypeVar

import torch

from diffstride.conversion import rebuild

Model = TypeVar("Model", bound=Any)

KEY = "diffstride"  # of the configuration


def from_pretrained(cls: type[Model], path: str | os.PathLike[str], **options: Any) -> Model:
    """Load a converted or frozen network that ``save_pretrained`` or `Trainer` has saved.

    `convert` and `freeze` write the `recipe` of a network into its configuration, so
    ``config.json`` has it. ``cls.from_pretrained`` would build the network without pooling layers,
    and report their strides as unexpected keys.

    Args:
        cls: the class of the network, such as ``transformers.ResNetForImageClassification``.
        path: a folder, or a name on the Hub.
        options: as for ``cls.from_pretrained``.

    Returns:
        The network, converted or frozen as the saved one, in evaluation mode.

    Raises:
        TypeError: if ``cls`` chooses a class by the configuration, as ``AutoModel`` does.
        ValueError: if the configuration has no recipe; as of `rebuild`.
    """
    from transformers import PreTrainedModel

    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise TypeError(
            f"cls must be the class of the saved network, a PreTrainedModel such as "
            f"ResNetForImageClassification, but got {getattr(cls, '__name__', repr(cls))}"
        )

    base: Any = cls

    class Rebuilt(base):
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            recipe = _recipe_of(config, path)
            with torch.device("cpu"):  # `convert` takes no network on the meta device
                self.__dict__ = rebuild(base(config, *args, **kwargs), recipe).__dict__
            self.to("meta")  # as from_pretrained expects: it gives the tensors of the file
            for module in self.modules():  # and initialises those that the file has not
                vars(module).pop("_is_hf_initialized", None)

    # transformers renames keys of checkpoints for its own classes only, which it knows by module.
    Rebuilt.__name__, Rebuilt.__module__ = cls.__name__, cls.__module__
    loaded: Any = Rebuilt.from_pretrained(path, **options)
    model = loaded[0] if options.get("output_loading_info") else loaded
    model.__class__ = cls
    return loaded


def _recipe_of(config: Any, path: Any) -> Any:
    recipe = getattr(config, KEY, None)
    if recipe is None:
        raise ValueError(
            f"the configuration in {str(path)!r} has no recipe: if only a part of the network was "
            "converted, set model.config.diffstride = diffstride.recipe(model) before saving; a "
            "network that was not converted is loaded by its class"
        )
    return recipe
