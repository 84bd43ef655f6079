"""Which films of a run get a warning: its own, and the same films turned, inverted, or noise.

python -m studies.warnings output/rsna --films data/rsna/jpg
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from chexnet.files import read_image
from chexnet.predict import Predictor


def flagged(predictor: Predictor, films: Iterable[np.ndarray]) -> str:
    """How many films get a warning, as text."""
    found = [bool(predictor(np.ascontiguousarray(film)).warnings) for film in films]
    return f"{sum(found)} of {len(found)}"


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--films", type=Path, required=True, help="folder of the run's JPGs")
    given = parser.parse_args()
    predictor = Predictor(given.run)
    split = predictor.run.images.set_index("image_id")["split"]
    val, test = (
        [read_image(given.films / f"{image_id}.jpg") for image_id in split.index[split == name]]
        for name in ("val", "test")
    )
    noise = np.random.default_rng(0).integers(0, 256, (16, 1024, 1024), dtype=np.uint8)
    print("| films | flagged |\n|---|---|")
    print(f"| validation and test | {flagged(predictor, val + test)} |")
    print(f"| test films, inverted | {flagged(predictor, (255 - film for film in test))} |")
    for turns, degrees in ((1, 90), (2, 180), (3, 270)):
        turned = (np.rot90(film, turns) for film in test)
        print(f"| test films, turned by {degrees} degrees | {flagged(predictor, turned)} |")
    print(f"| noise | {flagged(predictor, noise)} |")


if __name__ == "__main__":
    main()
