"""The command ``chexnet``: films to JPGs, scores, runs to files. Not for clinical use."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["main"]

_CONVERT = """examples:
  chexnet convert /archive/films data/own/jpg
  chexnet convert /media/cd data/cd/jpg --ids path --workers 8

Writes one JPG a film and a table, films.csv, one row a file. A command that was stopped goes on
when it is given again."""

_PREDICT = """examples:
  chexnet predict output/rsna film.dcm --out results
  chexnet predict output/rsna films/ more/film.png --out results
  chexnet predict torchxrayvision:densenet121-res224-rsna films/ --out results
  chexnet predict output/rsna films/ --out results --shard 3/16
  chexnet predict output/rsna films/ --out results --runtime openvino
  chexnet predict model.onnx films/ --out results

Writes results/predictions.csv, one row a file, and the overlays of film and class activation map.
A command that was stopped goes on when it is given again."""


_EXPORT = """examples:
  chexnet export output/rsna model.onnx
  chexnet export output/rsna model.xml --films data/rsna/jpg
  chexnet export output/rsna saved --format tf_saved_model

Writes the network for another runtime, with score and map as outputs, and beside it a JSON file
with what a program needs. Score and map are compared with those of Keras; where one differs by more
than 1e-4, nothing is written."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: of the command line; ``None`` takes those of the process.

    Returns:
        the exit status: 0; 1 if a film failed; 2 if nothing could be done.

    Example:
        >>> from chexnet.cli import main
        >>> main(["convert", "data/phantom/study/stage_2_train_images", "data/again", "--quiet"])
        40 films: 40 copied, 0 encoded, 0 failed; table: data/again/films.csv
        0
    """
    parser = argparse.ArgumentParser(prog="chexnet", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    convert = _add_command(commands, "convert", _convert, "films to 8-bit JPGs", _CONVERT)
    convert.add_argument("source", type=Path, help="folder of DICOM, PNG or JPG files")
    convert.add_argument("target", type=Path, help="folder for the JPGs")
    convert.add_argument("--ids", choices=("name", "path", "uid"), default="name",
                         help="what names a film: its file name (default), its path below the "
                         "folder, or its SOP Instance UID")  # fmt: skip
    convert.add_argument("--quality", type=int, default=95, help="of a JPG, 1 to 100 (default 95)")

    predict = _add_predict(commands)
    export = _add_command(commands, "export", _export, "a run for other runtimes", _EXPORT)
    export.add_argument("model", help="a run folder")
    export.add_argument("target", type=Path, help="a file that ends with .onnx, .xml (OpenVINO) or "
                        ".tflite (LiteRT), or a folder for a SavedModel")  # fmt: skip
    export.add_argument("--format", help="onnx, openvino, litert or tf_saved_model; default: by "
                        "the name of the target")  # fmt: skip
    export.add_argument("--films", type=Path, help="folder of the study's JPGs, to check the file "
                        "on validation films; default: data/<study>/jpg")  # fmt: skip

    compare = _add_command(commands, "compare", _compare, "two runs on the same test films")
    compare.add_argument("a", help="a run folder")
    compare.add_argument("b", help="another")
    compare.add_argument("--class-name", help="default: the first class")
    compare.add_argument("--figure", type=Path, help="also write the ROC curves to this file")

    for command in (convert, predict):
        command.add_argument("--workers", type=int, help="default: one for each core")
        command.add_argument("--quiet", action="store_true", help="no progress bar")
    given = parser.parse_args(arguments)
    try:
        return given.run(given)
    except (OSError, ValueError, ImportError) as error:
        print(f"chexnet: {error}", file=sys.stderr)
        return 2


def _add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    words: str,
    examples: str | None = None,
) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(name, help=words, epilog=examples, formatter_class=raw)
    command.set_defaults(run=run)
    return command


def _add_predict(commands: Any) -> argparse.ArgumentParser:
    predict = _add_command(commands, "predict", _predict, "scores and maps of films", _PREDICT)
    predict.add_argument("model", help="a run folder, a file that chexnet export wrote, a .keras "
                         "file, or torchxrayvision:<name>")  # fmt: skip
    predict.add_argument("films", nargs="+", type=Path, help="DICOM, PNG or JPG files, or folders")
    predict.add_argument("--out", required=True, type=Path, help="folder for the results")
    predict.add_argument("--shard", default="1/1", metavar="K/N",
                         help="only every N-th film from the K-th on; each shard writes a table "
                         "of its own")  # fmt: skip
    predict.add_argument("--no-overlays", action="store_true", help="write the table only")
    predict.add_argument("--dicom", action="store_true", help="also write DICOM objects: overlay, "
                         "structured report, presentation state")  # fmt: skip
    predict.add_argument("--runtime", choices=("keras", "onnx", "openvino", "litert"),
                         default="keras", help="of a run; openvino takes the fastest precision "
                         "whose scores on validation are within 0.02")  # fmt: skip
    predict.add_argument("--batch-size", type=int, default=16, help="films at once (default 16)")
    return predict


def _convert(given: argparse.Namespace) -> int:
    from chexnet.dicom import convert_folder

    films = convert_folder(
        given.source, given.target, ids=given.ids, quality=given.quality, workers=given.workers,
        progress=not given.quiet,
    )  # fmt: skip
    counts = {status: (films["status"] == status).sum() for status in ("copied", "encoded")}
    return _finish(films, counts, given.target / "films.csv")


def _predict(given: argparse.Namespace) -> int:
    from chexnet.predict import Predictor, predict_folder, table_name

    predictor = Predictor(given.model, runtime=given.runtime)
    films = predict_folder(
        predictor, given.films, given.out, shard=given.shard, overlays=not given.no_overlays,
        dicom=given.dicom,
        batch_size=given.batch_size, workers=given.workers, progress=not given.quiet,
    )  # fmt: skip
    table = given.out / table_name(given.shard)
    counts = {"scored": (films["status"] == "scored").sum()}
    if len(films) <= 10:
        shown = films.filter(regex="^file$|^score|^calibrated|^positive|^warnings$")
        print(shown.to_string(index=False, na_rep="-", float_format="%.3f"))
    missing = films[:0]
    if given.dicom:
        missing = films[films["dicom"] != "written"].dropna(subset="dicom")
        counts["with DICOM results"] = counts["scored"] - len(missing)
        _print_reasons(missing, "dicom")
    return _finish(films, counts, table) or int(len(missing) > 0)


def _export(given: argparse.Namespace) -> int:
    from chexnet.export import export_model

    path = export_model(given.model, given.target, format=given.format, films=given.films)
    checked = json.loads(path.with_name(f"{path.name}.json").read_text())["checked"]
    errors = ", ".join(f"{name} {error:.1e}" for name, error in checked["greatest_error"].items())
    print(f"{path}: greatest error on {checked['films']}: {errors}")
    return 0


def _compare(given: argparse.Namespace) -> int:
    from chexnet.evaluation import compare_runs
    from chexnet.figures import compare_figure
    from chexnet.runs import Run

    a, b = Run(given.a), Run(given.b)
    print(compare_runs(a, b, class_name=given.class_name).to_string(index=False))
    if given.figure:
        compare_figure(a, b, class_name=given.class_name).savefig(given.figure, dpi=150)
    return 0


def _finish(films: pd.DataFrame, counts: dict[str, int], table: Path) -> int:
    failed = films[films["status"] == "failed"]
    _print_reasons(failed, "reason")
    listed = ", ".join(f"{count} {status}" for status, count in counts.items())
    print(f"{len(films)} films: {listed}, {len(failed)} failed; table: {table}")
    return 1 if len(failed) else 0


def _print_reasons(films: pd.DataFrame, column: str) -> None:
    for file, reason in films.head(20)[["file", column]].to_numpy():
        print(f"{file}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
