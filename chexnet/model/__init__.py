"""DenseNet-121 with one sigmoid a class, and where its weights come from."""

from chexnet.model.network import (
    build_chexnet, load_chexnet, load_torchxrayvision, map_size, with_location_output,
    with_outputs_for_export,
)  # fmt: skip
from chexnet.model.schedule import warmup_schedule
from chexnet.model.weights import weights_in_reach

__all__ = [
    "build_chexnet", "load_chexnet", "load_torchxrayvision", "map_size", "warmup_schedule",
    "weights_in_reach", "with_location_output", "with_outputs_for_export",
]  # fmt: skip
