"""What is needed beside the network to use its scores, as JSON."""

import base64
import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from chexnet import __version__
from chexnet.cam import shared_scale
from chexnet.evaluation import calibrated_scores, cam_threshold, chosen_threshold
from chexnet.runs import Run

NOTE = "Research use only. Not for clinical use."


@dataclass(frozen=True)
class Facts:
    """What is needed beside the network to score a film.

    Attributes:
        class_names: the classes of the head, in order.
        preparation: keyword arguments of `chexnet.generator.prepare_film`.
        thresholds: by class, the decision threshold (Youden index on validation), or None.
        temperatures: by class, of the calibration on validation, or None.
        map_scales: by class, logits of the last color of an overlay, or None. As in the results
            figure and the explorer, it is the `chexnet.cam.shared_scale` of the test films.
        map_thresholds: by class, logits above which a map marks a region (largest mean IoU on
            validation; without boxes half of the scale), or None.
        training_films: ``views``, lowest and highest ``width_by_height``, and ``orientation``, the
            regression of `chexnet.evaluation.fit_familiarity`; None if not known.
        run: its ``name``, the SHA-256 of its ``model`` and of its ``data``; None without a run.

    Example:
        >>> from chexnet.export import describe_run
        >>> from chexnet.runs import Run
        >>> facts = describe_run(Run("output/demo"))
        >>> facts.preparation
        {'image_size': 32, 'clip_limit': 2.0, 'tiles': 8}
    """

    class_names: list[str]
    preparation: dict[str, Any]
    thresholds: dict[str, float | None] = field(default_factory=dict)
    temperatures: dict[str, float | None] = field(default_factory=dict)
    map_scales: dict[str, float | None] = field(default_factory=dict)
    map_thresholds: dict[str, float | None] = field(default_factory=dict)
    training_films: dict[str, Any] | None = None
    run: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Each number that is missing is None, by class."""
        for numbers in (self.thresholds, self.temperatures, self.map_scales, self.map_thresholds):
            for name in self.class_names:
                numbers.setdefault(name, None)

    @property
    def orientation(self) -> dict[str, np.ndarray] | None:
        """``kernel (256, 5)`` and ``bias (5,)`` of `chexnet.evaluation.orientation`, or None."""
        if self.training_films is None:
            return None
        coded = base64.b64decode(self.training_films["orientation"])
        numbers = np.frombuffer(coded, "<f4").reshape(-1, 5)
        return {"kernel": numbers[:-1], "bias": numbers[-1]}

    def as_dict(self) -> dict[str, Any]:
        """JSON values, with the version of this package and the note on clinical use."""
        return {"note": NOTE, "chexnet": __version__, **asdict(self)}


def facts_from_json(text: str, source: object) -> Facts:
    """Reads what `Facts.as_dict` gave; a ValueError names ``source`` if it is something else."""
    try:
        content = json.loads(text)
        return Facts(**{name: content[name] for name in Facts.__dataclass_fields__})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: expected the facts that chexnet export writes") from error


def describe_run(run: Run) -> Facts:
    """What is needed beside the network of a run to score a film as its films were scored.

    Raises:
        FileNotFoundError: the run is not finished.

    Example:
        >>> from chexnet.export import describe_run
        >>> from chexnet.runs import Run
        >>> describe_run(Run("output/demo")).class_names
        ['Pneumonia']
    """
    names, scales = run.class_names, _map_scales(run)
    return Facts(
        class_names=names,
        preparation=run.read_json("preparation.json"),
        thresholds={name: _threshold(run, name) for name in names},
        temperatures={name: _temperature(run, name) for name in names},
        map_scales=dict(scales),
        map_thresholds={name: _map_threshold(run, name, scales[name] / 2) for name in names},
        training_films=_training_films(run),
        run={
            "name": run.folder.resolve().name,
            "model": run.fingerprint("model.keras"),
            "data": run.config["data_fingerprint"],
        },
    )


def _threshold(run: Run, name: str) -> float | None:
    with contextlib.suppress(ValueError):  # validation has films of one label only
        return chosen_threshold(run, class_name=name)[0]
    return None


def _temperature(run: Run, name: str) -> float | None:
    with contextlib.suppress(ValueError):  # likewise
        return float(calibrated_scores(run, class_name=name)["temperature"].iloc[0])
    return None


def _map_scales(run: Run) -> dict[str, float]:
    ids, maps = run.maps()
    test = run.predictions.query("split == 'test'").dropna(subset="y_true")
    scales = {}
    for index, name in enumerate(run.class_names):
        films = test.loc[test["class_name"] == name, "image_id"]
        scales[name] = shared_scale(maps[np.isin(ids, films.to_numpy(str)), index])
    return scales


def _map_threshold(run: Run, name: str, default: float) -> float:
    chosen = cam_threshold(run, name)
    return default if chosen is None else chosen


def _training_films(run: Run) -> dict[str, Any]:
    films = run.images.query("split == 'train'")
    views: Sequence[str] = films["view"].dropna().unique() if "view" in films else ()
    ratios = films["columns"] / films["rows"] if {"rows", "columns"} <= set(films) else []
    stored = run.read_arrays("features.npz")
    regression = np.vstack([stored["kernel"], stored["bias"]]).astype("<f4")
    return {
        "views": sorted(views),
        "width_by_height": [float(min(ratios)), float(max(ratios))] if len(ratios) else None,
        "orientation": base64.b64encode(regression.tobytes()).decode(),
    }
