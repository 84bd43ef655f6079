"""What a person sees of a training: in a terminal, and after the stop button of a notebook."""

import os
from pathlib import Path

import pandas as pd
import pytest
from jupyter_client.manager import start_new_kernel

from chexnet.training import progress, train
from chexnet.training.progress import Progress, TrainingStopped
from tests.training.test_loop import new_run, sequences, tiny_network
from tests.training.test_resume import trained_in

ROOT = Path(__file__).parents[2]


def test_a_table_of_epochs_grows_below_the_line_about_the_graph(study, tmp_path, capsys):
    _, history = trained_in(study, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    header = "epoch    loss  val AUROC  learning rate  seconds  kept"
    heads = [at for at, line in enumerate(lines) if line == header]
    assert heads == [1, 5]  # the head alone for two epochs, then all layers for four
    assert lines[0].startswith("Training, head only: graph built in ")
    assert lines[4].startswith("Training, all layers: graph built in ")
    rows = [line.split() for line in lines[2:4] + lines[6:]]
    for row, epoch in zip(rows, history.itertuples(), strict=True):
        assert row[:4] == [
            str(epoch.epoch), f"{epoch.loss:.3f}", f"{epoch.val_auroc:.3f}",
            f"{epoch.learning_rate:.1e}",
        ]  # fmt: skip
        assert row[5:] == ["yes"] * epoch.saved


def test_the_clock_starts_at_the_first_batch(monkeypatch):
    now = [1000.0]
    shown = Progress("all", 100)
    bar = shown._bar
    assert bar.desc.startswith("building the graph")
    bar._time = lambda: now[0]
    bar.start_t = bar.last_print_t = now[0]
    now[0] += 60  # the graph
    shown.add(10)
    now[0] += 10
    shown.add(10)
    facts = bar.format_dict
    assert (facts["elapsed"], facts["n"], facts["initial"]) == (10, 20, 10)
    assert bar.desc.startswith("training, all layers")
    shown.close()


@pytest.mark.parametrize(
    ("epoch", "kept"), [(0, "no epoch is"), (1, "epoch 1 is"), (3, "epochs 1 to 3 are")]
)
def test_a_stopped_training_says_what_is_kept(study, tmp_path, interrupted, epoch, kept):
    interrupted(epoch, 1)
    with pytest.raises(TrainingStopped, match=rf"^Stopped in epoch {epoch + 1}; {kept} kept\. "):
        trained_in(study, tmp_path / "run", resume=True)


def test_stopped_in_the_first_epoch(
    study, tmp_path, interrupted
):  # fmt: skip
    """Stopped in the first epoch, the same network starts again from the start."""
    network = tiny_network()
    whole = train(tiny_network(), *sequences(study), new_run(study, tmp_path / "whole"), epochs=2)
    interrupted(0, 2)
    run = new_run(study, tmp_path / "run")
    with pytest.raises(TrainingStopped, match=r"Run the cell again to start again\.$"):
        train(network, *sequences(study), run, epochs=2, resume=True)
    again = train(network, *sequences(study), run, epochs=2, resume=True)
    pd.testing.assert_frame_equal(
        again.drop(columns="seconds"), whole.drop(columns="seconds"), rtol=1e-6
    )


def test_epochs_before_a_stop_are_shown_again(study, tmp_path, interrupted, capsys):
    interrupted(3, 0)
    with pytest.raises(TrainingStopped):
        trained_in(study, tmp_path / "run")
    before = capsys.readouterr().out.splitlines()
    trained_in(study, tmp_path / "run", resume=True)
    after = capsys.readouterr().out.splitlines()
    assert after[0] == "Going on after epoch 3:"
    assert after[1] == progress._HEADER
    assert after[2:5] == [line for line in before if line.lstrip()[0].isdigit()]
    assert after[5].startswith("Training, all layers: graph built in ")


CELL = """
from pathlib import Path
from tests.training.test_loop import make_study
from tests.training.test_resume import trained_in
folder = Path({folder!r})
(folder / "films").mkdir(exist_ok=True)
trained_in(make_study(folder / "films"), folder / "run", resume=True, epochs={epochs})
"""


def test_stop_button(tmp_path):
    """The stop button of a notebook leaves one line and the cell goes on."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    manager, client = start_new_kernel(kernel_name="python3", env=environment, cwd=str(ROOT))
    code = CELL.format(folder=str(tmp_path), epochs=400)
    seen = []

    def stop_after_the_third_row(message):
        seen.append(message)
        text = "".join(m["content"]["text"] for m in seen if m["msg_type"] == "stream")
        # Epoch 3 may not be saved yet, so that two epochs are kept or three.
        if "\n    3  " in text and not any(m["msg_type"] == "stopping" for m in seen):
            seen.append({"msg_type": "stopping"})
            manager.interrupt_kernel()

    try:
        reply = client.execute_interactive(code, timeout=240, output_hook=stop_after_the_third_row)
        assert reply["content"]["status"] == "error"
        (error,) = [m["content"] for m in seen if m["msg_type"] == "error"]
        (line,) = error["traceback"]
        assert line.startswith("Stopped in epoch ")
        assert line.endswith("are kept. Run the cell again to go on.")
        seen.clear()
        client.execute(code)  # goes on: the first thing that it says
        while not any("Going on after epoch" in str(m["content"]) for m in seen):
            seen.append(client.get_iopub_msg(timeout=120))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
