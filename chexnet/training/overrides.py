"""Settings of a user in place of those that the recipe recommends."""

import inspect
from collections.abc import Callable, Mapping

from chexnet.generator import default_augmenter
from chexnet.model import build_chexnet
from chexnet.training.loop import train

# The function that each part of a recipe is for, and its arguments that are set elsewhere.
_PARTS: dict[str, tuple[Callable, set[str]]] = {
    "model": (build_chexnet, {"class_names", "weights"}),
    "augmentation": (default_augmenter, set()),
    "training": (train, {"callbacks", "resume"}),
}


def override_recipe(settings: Mapping[str, dict], overrides: Mapping[str, dict]) -> dict:
    """The settings of `recipe` with some replaced or added.

    Args:
        settings: from `recipe`.
        overrides: under ``"model"``, ``"augmentation"`` and ``"training"``, keyword arguments of
            `chexnet.model.build_chexnet`, `chexnet.generator.default_augmenter` and `train`, as
            JSON values. A loss or optimizer is a name of Keras or its config.

    Raises:
        ValueError: an unknown part or argument; those allowed are named.

    Example:
        >>> from chexnet.training import override_recipe, recipe
        >>> overrides = {"training": {"learning_rate": 3e-4, "box_weight": 0}}
        >>> overrides |= {"augmentation": {"scale": 0.1}}
        >>> override_recipe(recipe(None), overrides)["training"]["learning_rate"]
        0.0003
    """
    changed = {part: dict(values) for part, values in settings.items()}
    for part, values in overrides.items():
        if part not in _PARTS:
            raise ValueError(f"overrides: unknown part {part!r}; expected {', '.join(_PARTS)}")
        function, elsewhere = _PARTS[part]
        arguments = inspect.signature(function).parameters.values()
        names = [one.name for one in arguments if one.kind is one.KEYWORD_ONLY]
        names = [name for name in names if name not in elsewhere]
        if not isinstance(values, Mapping) or not set(values) <= set(names):
            raise ValueError(
                f"overrides: {part!r} is {values!r}; expected a dict with some of "
                f"{', '.join(names)}"
            )
        changed[part] |= values
    return changed
