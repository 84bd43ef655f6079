import keras
import pytest

from chexnet.training import WeightedCrossentropy, override_recipe, recipe, train
from tests.training.test_loop import new_run, sequences, tiny_network


def test_what_is_given_replaces_the_recipe_and_the_rest_stays():
    given = {"training": {"box_weight": 0}, "augmentation": {"scale": 0.1, "flip": 0}}
    before, changed = recipe(None), override_recipe(recipe(None), given)
    assert changed["training"] == before["training"] | {"box_weight": 0}
    assert changed["augmentation"] == before["augmentation"] | {"scale": 0.1, "flip": 0}
    assert changed["model"] == before["model"]
    assert override_recipe(before, {}) == before == recipe(None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train": {}}, "unknown part 'train'; expected model, augmentation, training"),
        ({"training": {"lr": 1}}, "'training' is {'lr': 1}; expected a dict .*learning_rate, "),
        ({"training": {"callbacks": []}}, "expected a dict with some of epochs, head_epochs"),
        ({"model": {"weights": None}}, "with some of map_stride, dropout, batchnorm_momentum"),
        ({"augmentation": 0.1}, "'augmentation' is 0.1; expected a dict with some of flip, "),
        ({"augmentation": {"image_size": 2}}, "expected a dict with some of flip"),
    ],
)
def test_an_unknown_name_is_an_error_that_says_what_is_allowed(overrides, message):
    with pytest.raises(ValueError, match=message):
        override_recipe(recipe(None), overrides)


def test_a_loss_is_given_by_name_or_config(study, tmp_path):
    ours = keras.losses.serialize(WeightedCrossentropy([3.0]))
    for loss in ("binary_focal_crossentropy", ours):
        given = {"training": {"loss": loss, "epochs": 1, "box_weight": 0}}
        settings = override_recipe(recipe(None), given)["training"]
        run = new_run(study, tmp_path / "run")
        train(tiny_network(), *sequences(study), run, **settings)
        recorded = run.read_json("training.json")["settings"]["loss"]
        assert recorded == keras.losses.serialize(keras.losses.get(loss))
