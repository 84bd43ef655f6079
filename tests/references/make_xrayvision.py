"""Records what TorchXRayVision's own DenseNet121 gives, for tests where it is not installed.

    pip install torchxrayvision && python -m tests.references.make_xrayvision

writes xrayvision.npz beside this file: the films, their pooled features and their 18 logits. The
weights are not stored: `random_state` draws them again from the seed.
"""

import importlib.metadata
from pathlib import Path

import numpy as np

RECORDED = Path(__file__).with_name("xrayvision.npz")
SEED = 0
SIZE = 96
# torchxrayvision.models.DenseNet: growth_rate, block_config, num_init_features, bn_size.
GROWTH, BLOCKS, FIRST, WIDTH, CLASSES = 32, (6, 12, 24, 16), 64, 4, 18


def random_state(seed: int) -> dict[str, np.ndarray]:
    """Weights under the library's names, drawn name by name in alphabetical order.

    Means, variances, scales and offsets are drawn too: left at 0 and 1 they would hide an exchange
    of two of them. Those of the first normalisation suit pixels of -1024 to 1024.
    """
    state = {}
    for index, (name, shape) in enumerate(sorted(_shapes().items())):
        draw = np.random.default_rng([seed, index])
        if len(shape) == 4:  # He et al. 2015, arXiv:1502.01852
            array = draw.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        elif name == "classifier.weight":
            array = draw.normal(0, 1 / 32, shape)
        elif name.endswith(("running_var", "weight")):
            array = draw.uniform(0.5, 1.5, shape)
        else:
            array = draw.normal(0, 0.2, shape)
        if name.startswith("features.norm0.running"):
            array = array * (1e6 if name.endswith("var") else 1e3)
        state[name] = array.astype(np.float32)
    return state


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"features.conv0.weight": (FIRST, 1, 7, 7)}

    def norm(name: str, channels: int) -> None:
        for role in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"features.{name}.{role}"] = (channels,)

    norm("norm0", FIRST)
    channels = FIRST
    for block, count in enumerate(BLOCKS, start=1):
        for layer in range(1, count + 1):
            here = f"denseblock{block}.denselayer{layer}"
            norm(f"{here}.norm1", channels)
            shapes[f"features.{here}.conv1.weight"] = (WIDTH * GROWTH, channels, 1, 1)
            norm(f"{here}.norm2", WIDTH * GROWTH)
            shapes[f"features.{here}.conv2.weight"] = (GROWTH, WIDTH * GROWTH, 3, 3)
            channels += GROWTH
        if block < len(BLOCKS):
            norm(f"transition{block}.norm", channels)
            shapes[f"features.transition{block}.conv.weight"] = (channels // 2, channels, 1, 1)
            channels //= 2
    norm("norm5", channels)
    shapes["classifier.weight"] = (CLASSES, channels)
    shapes["classifier.bias"] = (CLASSES,)
    return shapes


def random_network(seed: int) -> object:
    """The library's network with the weights of `random_state`, for inference."""
    import torch
    import torchxrayvision

    network = torchxrayvision.models.DenseNet(weights=None)
    state = {name: torch.from_numpy(array) for name, array in random_state(seed).items()}
    network.load_state_dict(state, strict=True)
    return network.eval()


def features_and_logits(network: object, films: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of films uint8 ``(N, S, S)``, scaled by the library: float32 ``(N, 1024)``, ``(N, 18)``."""
    import torch
    from torchxrayvision.utils import normalize

    batch = torch.from_numpy(np.stack([normalize(film, 255) for film in films])[:, np.newaxis])
    with torch.inference_mode():
        features = network.features2(batch)
        return features.numpy(), network.classifier(features).numpy()


def made_up_films(count: int, size: int) -> np.ndarray:
    """Smooth films that use all of 0 to 255 and are bright at the border, uint8."""
    draw = np.random.default_rng(SEED)
    coarse = draw.uniform(0, 1, (count, 6, 6))
    films = np.kron(coarse, np.ones((size // 6, size // 6)))
    films += draw.normal(0, 0.05, films.shape)
    low, high = films.min((1, 2), keepdims=True), films.max((1, 2), keepdims=True)
    return np.round(255 * (films - low) / (high - low)).astype(np.uint8)


if __name__ == "__main__":
    films = made_up_films(2, SIZE)
    features, logits = features_and_logits(random_network(SEED), films)
    library = importlib.metadata.version("torchxrayvision")
    np.savez_compressed(
        RECORDED, films=films, seed=SEED, features=features, logits=logits, library=library
    )
    print(f"{RECORDED}: {RECORDED.stat().st_size} bytes, logits {logits.min()} to {logits.max()}")
