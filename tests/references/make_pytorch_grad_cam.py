"""Records what `pytorch-grad-cam` makes of a small network, as the oracle of `chexnet.cam`.

It needs torch and torchvision, which the project itself does not, so it runs in an environment of
its own, and only to record anew::

    python3.11 -m venv /tmp/pgc
    /tmp/pgc/bin/pip install torch torchvision grad-cam
    /tmp/pgc/bin/python tests/references/make_pytorch_grad_cam.py

It writes ``pytorch_grad_cam.npz`` beside itself: the weights in Keras' layout, films, logits, and
for each method, layer and class two maps: ``raw``, the weighted sum over channels
(``get_cam_image``), and ``shown``, what the library gives to its users: the raw map after ReLU,
stretched to [0, 1] film by film and resized to the film.
"""

import importlib.metadata
from pathlib import Path

import numpy as np
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

METHODS = {
    "gradcam": GradCAM,
    "gradcam++": GradCAMPlusPlus,
    "layercam": LayerCAM,
    "hirescam": HiResCAM,
}
FILMS, SIZE, CLASSES = 3, 24, 2


class SmallNetwork(nn.Module):
    """Convolution, ReLU, pooling, convolution, normalisation, ReLU, global mean, linear head."""

    def __init__(self) -> None:
        """Random weights, away from what a fresh network has: normalisation and biases too."""
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.below = nn.ReLU()
        self.pool = nn.AvgPool2d(2)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, eps=1e-3)
        self.relu = nn.ReLU()
        self.head = nn.Linear(8, CLASSES)
        with torch.no_grad():
            for values in (*self.norm.parameters(), self.norm.running_mean):
                values.normal_()
            self.norm.running_var.uniform_(0.5, 2)
            # Grad-CAM++ adds 1e-6 to a divisor of the order of the gradient squared, which
            # equation 19 does not have. With a steep head the gradients are of the order of 1 and
            # it does not show.
            self.head.weight.normal_(0, 100)

    def forward(self, films: torch.Tensor) -> torch.Tensor:
        """Films ``(N, 1, S, S)`` to logits ``(N, C)``."""
        below = self.pool(self.below(self.first(films)))
        features = self.relu(self.norm(self.second(below)))
        return self.head(features.mean((2, 3)))


def main() -> None:
    """Writes the file and prints what is in it."""
    torch.manual_seed(0)
    network = SmallNetwork().eval()
    films = torch.rand(FILMS, 1, SIZE, SIZE)

    def of_keras(name: str) -> np.ndarray:
        values = network.state_dict()[name].numpy()
        # (out, in, rows, columns) to (rows, columns, in, out), and (out, in) to (in, out).
        return {4: lambda v: v.transpose(2, 3, 1, 0), 2: np.transpose}.get(values.ndim, np.array)(
            values
        )

    recorded = {
        f"weight/{name}": of_keras(name)
        for name in network.state_dict()
        if name != "norm.num_batches_tracked"
    }
    recorded["films"] = films.numpy().transpose(0, 2, 3, 1)
    recorded["logits"] = network(films).detach().numpy()
    for layer in ("below", "relu"):
        for method, kind in METHODS.items():
            for index in range(CLASSES):
                raw = []

                class Recording(kind):
                    """The method, which leaves its raw map behind on the way."""

                    def get_cam_image(self, *args: object, **options: object) -> np.ndarray:
                        """The library's own, kept."""
                        raw.append(super().get_cam_image(*args, **options))  # noqa: B023
                        return raw[-1].copy()  # noqa: B023

                with Recording(model=network, target_layers=[getattr(network, layer)]) as cam:
                    shown = cam(films, targets=[ClassifierOutputTarget(index)] * FILMS)
                recorded[f"raw/{method}/{layer}/{index}"] = raw[0].astype(np.float32)
                recorded[f"shown/{method}/{layer}/{index}"] = shown.astype(np.float32)
    for name in ("grad-cam", "torch", "torchvision"):
        recorded[f"version/{name}"] = np.array(importlib.metadata.version(name))
    path = Path(__file__).with_name("pytorch_grad_cam.npz")
    np.savez_compressed(path, **recorded)
    print(path, path.stat().st_size, "bytes")
    for name, values in recorded.items():
        print(name, values.shape or values)


if __name__ == "__main__":
    main()
