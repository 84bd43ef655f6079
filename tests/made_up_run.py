"""A run folder without a model: made-up films, scores and maps, in the layout of the contract."""

import cv2
import numpy as np
import pandas as pd

from chexnet.runs import Run


def write_run(folder, *, films=400, classes=("Pneumonia",), signal=1.5, seed=0, **changes):
    """Writes a run whose scores and maps know the truth by ``signal``; 0 knows nothing.

    Half of the positives' boxes lie left, half right; their map is bright where the box is.
    """
    rng = np.random.default_rng(seed)
    patient = rng.integers(films // 2, size=films)
    splits = rng.choice(["train", "val", "test"], p=[0.5, 0.2, 0.3], size=films // 2)
    y = (rng.random(films) < 0.35).astype(int)
    images = pd.DataFrame(
        {
            "image_id": [f"{number:05d}" for number in range(films)],
            "patient_id": [f"{number:08d}" for number in patient],
            "Pneumonia": y,
            "detailed_class": np.where(
                y == 1,
                "Lung Opacity",
                rng.choice(["Normal", "No Lung Opacity / Not Normal"], size=films),
            ),
            "view": np.where(rng.random(films) < 0.35 + 0.4 * y, "AP", "PA"),
            "sex": rng.choice(["F", "M"], size=films),
            "age": rng.integers(1, 95, size=films),
            "rows": 1024,
            "columns": 512,
            "split": splits[patient],
        }
    )
    for name in classes[1:]:
        images[name] = (rng.random(films) < 0.3).astype(int)
    images = images.assign(**changes)
    left = rng.random(films) < 0.5
    boxes = pd.DataFrame(
        {
            "image_id": images["image_id"],
            "x": np.where(left, 20.0, 256.0) + rng.integers(-20, 20, size=films),
            "y": 384.0 + rng.integers(-50, 50, size=films),
            "width": 128.0,
            "height": 256.0,
        }
    )[y == 1]
    run = Run.create(folder, settings={"class_names": list(classes)}, images=images, boxes=boxes)
    scored = images[images["split"] != "train"]
    parts = []
    for name in classes:
        logit = signal * (2 * scored[name] - 1) + rng.normal(size=len(scored))
        part = scored[["image_id", "split"]].assign(class_name=name, y_true=scored[name])
        parts.append(part.assign(y_score=1 / (1 + np.exp(-2 * logit))))
    # 8 rows and 4 columns of cells of 128 x 128 pixels: a box covers 1 x 2 of them.
    maps = rng.normal(size=(films, len(classes), 8, 4)).astype(np.float32)
    maps[np.arange(films), :, 3, np.where(left, 0, 2)] += 4 * signal * y[:, np.newaxis]
    maps[np.arange(films), :, 4, np.where(left, 0, 2)] += 4 * signal * y[:, np.newaxis]
    ids, maps = scored["image_id"], maps[scored.index]
    bias = np.zeros(len(classes), np.float32)
    run.write_scores(pd.concat(parts), ids, {"CAM": maps}, bias=bias)
    return run


def change_scores(run, *, predictions=None, image_ids=None, maps=None):
    """Writes the scores of a run again, with other predictions (and labels) or other maps."""
    stored_ids, stored_maps = run.maps()
    if predictions is not None:
        images = run.images.set_index("image_id")
        for name, films in predictions.groupby("class_name"):
            labels = films.set_index("image_id")["y_true"].astype(float)
            images[name] = labels.reindex(images.index).where(
                images.index.isin(labels.index), images[name]
            )
        run.write_table("images.csv", images.reset_index())
    run.write_scores(
        run.read_table("predictions.csv") if predictions is None else predictions,
        stored_ids if image_ids is None else image_ids,
        {"CAM": stored_maps if maps is None else maps},
        bias=np.zeros(stored_maps.shape[1], np.float32),
    )


def write_films(run, seed=0):
    """Adds smooth gray test films of the stated size, white in the upper left corner only."""
    rng = np.random.default_rng(seed)
    for film in run.images.query("split == 'test'").itertuples():
        coarse = rng.integers(60, 120, (film.rows // 64, film.columns // 64), dtype=np.uint8)
        pixels = cv2.resize(coarse, (film.columns, film.rows))
        pixels[: film.rows // 4, : film.columns // 4] = 255
        run.write_film(film.image_id, pixels)
    return run


def small_network(class_names=("Pneumonia",), *, precision="float32"):
    """Few layers of 8 channels, with the names and the normalization of the large network."""
    # Imported here: most tests need no Keras, and it takes seconds.
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    wide = {"padding": "same", "dtype": precision}
    film = keras.Input((32, 32, 1), name="film")
    x = layers.Rescaling(1 / 255, name="rescaling")(film)
    x = layers.Concatenate(name="grey_to_rgb")([x] * 3)
    x = layers.Normalization(mean=(0.5, 0.4, 0.3), variance=(0.04, 0.05, 0.06), name="norm")(x)
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="conv", **wide)(x)
    x = layers.AveragePooling2D(2, name="pool2_pool", dtype=precision)(x)
    x = layers.AveragePooling2D(2, name="pool3_pool", dtype=precision)(x)
    x = layers.Identity(name="pool4_pool", dtype=precision)(x)
    x = layers.Conv2D(8, 3, name="last_conv", **wide)(x)
    x = layers.BatchNormalization(name="bn", dtype=precision)(x)
    x = layers.ReLU(name="relu", dtype=precision)(x)
    pooled = layers.GlobalAveragePooling2D(name="avg_pool", dtype="float32")(x)
    head = layers.Dense(len(class_names), "sigmoid", name="predictions", dtype="float32")
    model = keras.Model(film, head(pooled), name="small")
    head.bias.assign(np.linspace(-0.5, 0.25, len(class_names)))
    return model


def write_model(run):
    """Adds a small network with random weights, and made-up features of the training films."""
    small_network(run.class_names).save(run.folder / "model.keras")
    distances = np.linspace(1, 1000, 20, dtype=np.float32)
    features = {"mean": np.zeros(8, np.float32), "precision": np.eye(8, dtype=np.float32)}
    regression = {"kernel": np.zeros((256, 5), np.float32), "bias": np.eye(5)[0]}
    run.write_arrays("features.npz", **features, **regression, val_distances=distances)
    run.write_json("preparation.json", {"image_size": 32, "clip_limit": 2.0, "tiles": 8})
    return run


def write_history(run):
    """Adds five epochs, of which the third was saved last."""
    epoch = np.arange(1, 6)
    history = {
        "epoch": epoch,
        "loss": 1 / epoch,
        "val_loss": 1.1 / epoch,
        "val_auroc": [0.6, 0.95, 0.9, 0.8, 0.85],
        "saved": [1, 1, 1, 0, 0],  # the second was early, and lucky
        "learning_rate": [1e-4, 1e-3, 1e-3, 5e-4, 0],
    }
    run.write_table("history.csv", pd.DataFrame(history))
    return run
