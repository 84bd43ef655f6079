import json

import pytest

from chexnet.evaluation import evaluate, evaluate_maps
from chexnet.runs import Run
from studies.model_card import CARD, SOURCE, facts_of, filled, run_part
from studies.results_table import results_table
from tests.made_up_run import write_run


def test_the_committed_card_says_what_the_committed_numbers_say():
    card = CARD.read_text()
    assert filled(card, json.loads(SOURCE.read_text())) == card


def test_the_committed_numbers_hold_no_image_id_and_no_patient():
    text = SOURCE.read_text()
    assert "image_id" not in text
    assert "patient_id" not in text


def test_the_card_is_filled_from_a_run(tmp_path):
    run = write_run(tmp_path / "run", films=200)
    config = run.config
    config["settings"] |= {"study": "made-up", "image_size": 64, "weights": None}
    config["settings"]["training"] = {"epochs": 3}
    run.write_json("config.json", config)
    run = Run(run.folder)  # the open one would take the new config.json for another run
    metrics = evaluate(run, n_bootstrap=20)
    evaluate_maps(run, n_bootstrap=20)
    part = run_part(facts_of(run))
    test = metrics["classes"]["Pneumonia"]["test"]
    assert f"{test['auroc']['value']:.2f} (" in part
    assert f"{test['n']} test films, {test['n_positive']} positive" in part
    assert results_table(run.metrics, "Pneumonia") in part
    assert "Study `made-up`, 200 films" in part
    card = filled(
        "a\n<!-- from the run: begin -->\nWHAT STOOD HERE\n<!-- from the run: end -->\nb",
        facts_of(run),
    )
    assert "WHAT STOOD HERE" not in card
    assert card.startswith("a\n") and card.endswith("\nb")


def test_a_fold_says_that_it_is_one():
    facts = json.loads(SOURCE.read_text())
    facts["settings"] |= {"fold": 2, "folds": 5}
    assert run_part(facts).startswith("Fold 2 of 5 of a cross-validation, ")


def test_a_card_without_a_place_for_the_run_is_refused():
    with pytest.raises(ValueError, match="needs one line"):
        filled("no place", json.loads(SOURCE.read_text()))
