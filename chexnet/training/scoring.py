"""The scores and maps of a trained network, put into its run."""

from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import ops
from tqdm.auto import tqdm

from chexnet.cam import class_activation_map
from chexnet.files import read_image
from chexnet.generator import AugmentedImageSequence, ImageStore
from chexnet.runs import Run


def record_scores(
    run: Run,
    model: keras.Model,
    store: ImageStore,
    film_folder: str | Path,
    *,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Scores validation and test, and stores what notebooks 04 and 05 need.

    Writes ``predictions.csv``, ``maps.npz`` and ``films/`` of the run.

    Args:
        run: made with `Run.create`; its ``images`` say which film is in which split.
        model: the trained network.
        store: holds the films of both splits.
        film_folder: where the films lie as ``<image_id>.jpg``, for pictures of the test films.
        batch_size: films at a time.

    Returns:
        ``image_id, split, class_name, y_true, y_score``, one row a film and class.
    """
    images = run.images
    scored = images[images["split"].isin(["val", "test"])].reset_index(drop=True)
    names = run.class_names
    sequence = AugmentedImageSequence(
        store, scored, class_names=names, batch_size=batch_size, shuffle=False, seed=0, workers=1
    )
    scores, maps = class_activation_map(model, sequence, class_index=None)
    predictions = pd.concat(
        [
            pd.DataFrame(
                {
                    "image_id": scored["image_id"],
                    "split": scored["split"],
                    "class_name": name,
                    "y_true": scored[name].astype(int),
                    "y_score": scores[:, index].astype(float),
                }
            )
            for index, name in enumerate(names)
        ],
        ignore_index=True,
    )
    run.write_arrays(
        "maps.npz",
        image_id=scored["image_id"].to_numpy(dtype=str),
        maps=maps.astype(np.float32),
        bias=ops.convert_to_numpy(model.get_layer("predictions").bias),
        class_names=np.array(names),
    )
    test = scored.loc[scored["split"] == "test", "image_id"]
    for image_id in tqdm(test, desc="films to draw on", unit=" films", delay=2):
        run.write_film(image_id, read_image(Path(film_folder) / f"{image_id}.jpg"))
    run.write_table("predictions.csv", predictions)  # last: where it stands, the rest is there too
    return predictions
