"""Fills MODEL_CARD.md from an evaluated run.

    python -m studies.model_card output/rsna

Its sources are kept in docs/model_card.json: the run's settings, films, versions and metrics, no
image and no id. A test checks that the card matches that file.
"""

import argparse
import json
import re
from pathlib import Path

from chexnet.files import write_atomic
from chexnet.runs import Run
from studies.results_table import evaluated, results_table

ROOT = Path(__file__).parents[1]
CARD, SOURCE = ROOT / "MODEL_CARD.md", ROOT / "docs" / "model_card.json"
_PART = re.compile(r"(<!-- from the run: begin -->\n).*?(\n<!-- from the run: end -->)", re.DOTALL)


def facts_of(run: Run) -> dict:
    """The sources of the card."""
    config = run.config
    kept = ("settings", "films", "versions", "git_commit", "data_fingerprint")
    images = run.images
    splits = None  # not known without patient ids
    if "patient_id" in images and images["patient_id"].notna().all():
        splits = int((images.groupby("patient_id")["split"].nunique() > 1).sum())
    facts = {key: config[key] for key in kept}
    return facts | {"patients_in_two_splits": splits, "metrics": evaluated(run)}


def run_part(facts: dict) -> str:
    """The part of the card that is about one run, as Markdown."""
    settings, films, metrics = facts["settings"], facts["films"], facts["metrics"]
    name = settings["class_names"][0]
    found = metrics["classes"][name]
    test, point = found["test"], found["operating_points"]["youden"]
    weights = settings["weights"]
    start = "random weights" if weights is None else f"weights {Path(str(weights)).name!r}"
    rows = "; ".join(
        f"{group['by']} {group['group']} {group['auroc']['value']:.2f} of {group['n']} films"
        if group["auroc"]
        else f"{group['by']} {group['group']} – ({group['reason']})"
        for group in found["subgroups"]
    )
    shared = facts["patients_in_two_splits"]
    patients = (
        "patients are not known"
        if shared is None
        else f"{shared or 'no'} patient{'s' * (shared > 1)} in two splits"
    )
    commit = str(facts["git_commit"])[:12]
    if "fold" in settings:  # of studies.cross_validation
        source = f"Fold {settings['fold']} of {settings['folds']} of a cross-validation"
    else:
        source = f"Study `{settings['study']}`"
    return "\n".join(
        [
            f"{source}, {sum(films.values()):,} films: {films['train']:,} for "
            f"training, {films['val']:,} for validation, {films['test']:,} for testing "
            f"({test['prevalence']:.0%} with the finding), {patients}. "
            f"{settings['image_size']} pixels, from {start}, "
            f"{settings['training']['epochs']} epochs. Decision threshold "
            f"{point['threshold']:.3g} (Youden index on validation films). Commit `{commit}`.",
            "",
            results_table(metrics, name),
            "",
            f"AUROC by subgroup: {rows}.",
        ]
    )


def filled(card: str, facts: dict) -> str:
    """The card with the part about the run replaced.

    Raises:
        ValueError: the card has no place for it.
    """
    if len(_PART.findall(card)) != 1:
        raise ValueError(f"{CARD}: needs one line 'from the run: begin' and one 'end' after it")
    return _PART.sub(lambda found: found[1] + run_part(facts) + found[2], card)


def main() -> None:
    """Writes the card and its sources."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", type=Path, help="run folder, evaluated by notebook 04")
    run = Run(parser.parse_args().run)
    facts = facts_of(run)
    card = filled(CARD.read_text(), facts)
    write_atomic(SOURCE, (json.dumps(facts, indent=1, allow_nan=False) + "\n").encode())
    write_atomic(CARD, card.encode())
    print(f"{CARD.name} and {SOURCE.relative_to(ROOT)} written from {run.folder}")


if __name__ == "__main__":
    main()
