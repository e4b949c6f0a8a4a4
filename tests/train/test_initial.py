"""A run that begins with another's weights."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecifar.export.provenance import Provenance
from edgecifar.runtime.contract import Contract
from edgecifar.runtime.errors import RunError
from edgecifar.train import initial, loop
from edgecifar.train.loop import TrainingOptions
from edgecifar.train.run import Run


@pytest.fixture(scope="module")
def others(tiny):
    """The tiny data set under three other labels."""
    labels = {"train_labels": tiny.train_labels % 3, "test_labels": tiny.test_labels % 3}
    return replace(tiny, contract=Contract(("a", "b", "c"), 32), name="others", digest="b" * 64, **labels)


@pytest.fixture
def still(recipe):
    """A recipe that changes no weight."""
    return replace(recipe, epochs=1, lr=0.0, weight_decay=0.0)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The parameters, without batch norm's statistics, which change at a rate of zero too."""
    return dict(Run(folder).net().named_parameters())


def test_other_classes_get_a_new_last_layer(whole, still, others, tmp_path, no_plots):
    loop.train(still, others, tmp_path / "run", TrainingOptions(begin_with=Run(whole)))
    before, after = weights(whole), weights(tmp_path / "run")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"7.weight", "7.bias"}
    assert after["7.weight"].shape[0] == 3


def test_the_same_classes_keep_the_last_layer(whole, still, tiny, tmp_path, no_plots):
    loop.train(still, tiny, tmp_path / "run", TrainingOptions(begin_with=Run(whole)))
    before, after = weights(whole), weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_classes_in_another_order_do_not(whole, still, tiny, tmp_path, no_plots):
    turned = replace(tiny, contract=Contract(tiny.contract.labels[::-1], 32), digest="c" * 64)
    loop.train(still, turned, tmp_path / "run", TrainingOptions(begin_with=Run(whole)))
    assert not torch.equal(weights(whole)["7.bias"], weights(tmp_path / "run")["7.bias"])


def test_it_is_recorded_and_exported_without_the_folder(whole, recipe, others, tmp_path, no_plots):
    loop.train(recipe, others, tmp_path / "run", TrainingOptions(begin_with=Run(whole)))
    record = Run(tmp_path / "run").record
    assert record.begun_from["weights_sha256"] == Run(whole).record.weights_sha256
    assert record.begun_from["last_layer"] is False
    exported = Provenance.of(record).as_json()["begun_from"]
    assert exported["weights_sha256"] == Run(whole).record.weights_sha256
    assert str(whole) not in json.dumps(exported)


@pytest.mark.parametrize(
    ("before", "now", "held_out", "refused"),
    [
        ((0.1, 0.05), (0.1, 0.2), 0.1, True),  # three quarters of what is tested on now were trained on
        ((0.2, 0.1), (0.1, 0.1), 0.1, False),
        ((0.2, 0.1), (0.1, 0.1), 0.0, True),  # that run was trained on what it had held out, too
        ((0.15, 0.15), (0.2, 0.1), 0.1, False),  # in floats 0.2 + 0.1 is the larger
        (None, (0.1, 0.2), 0.1, False),  # its split was given
    ],
)
def test_pictures_that_the_new_run_is_judged_on_must_not_have_been_trained_on(
    whole, recipe, tiny, tmp_path, caplog, before, now, held_out, refused
):
    def origin(shares):
        return {"layout": "folders", "options": dict(zip(("val", "test"), shares or (), strict=bool(shares)))}

    earlier = Run(Path(shutil.copytree(whole, tmp_path / "earlier")))
    values = json.loads((earlier.folder / "run.json").read_text())
    values["dataset"] |= {"name": "mine", "sha256": "d" * 64, "origin": origin(before)}
    values["recipe"]["held_out"] = held_out
    (earlier.folder / "run.json").write_text(json.dumps(values))
    own = replace(tiny, name="mine", digest="e" * 64, origin=origin(now))
    recipe = replace(recipe, held_out=0.1)
    if refused:
        with pytest.raises(RunError, match="would be judged on"):
            initial.describe(earlier, recipe, own)
    else:
        with caplog.at_level(logging.WARNING, "edgecifar"):  # others may have come, or copies
            initial.describe(earlier, recipe, own)
        assert "may be among" in caplog.text
        caplog.clear()
        with caplog.at_level(logging.WARNING, "edgecifar"):  # the very same pictures
            initial.describe(earlier, recipe, replace(own, digest="d" * 64))
        assert not caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "edgecifar"):  # another folder may hold the same pictures
        initial.describe(earlier, recipe, replace(own, name="others"))
    assert "may be among those that the new run is judged on" in caplog.text


def test_no_run_begins_with_anything_unless_asked(whole):
    assert "begun_from" not in json.loads((whole / "run.json").read_text())
    assert "begun_from" not in Provenance.of(Run(whole).record).as_json()


@pytest.mark.parametrize("when", [("progress", 1), ("epoch", 2)])
def test_a_resumed_run_ends_with_the_same_weights(whole, recipe, others, tmp_path, no_plots, stopper, when):
    begin = Run(whole)
    loop.train(recipe, others, tmp_path / "straight", TrainingOptions(begin_with=begin))
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, others, tmp_path / "cut", TrainingOptions(begin_with=begin, listener=stopper(*when)))
    loop.resume(Run(tmp_path / "cut"), others)
    straight, cut = (Run(tmp_path / name).record for name in ("straight", "cut"))
    assert cut.weights_sha256 == straight.weights_sha256
    assert cut.begun_from == straight.begun_from


def test_what_it_began_with_is_needed_until_the_first_epoch_is_complete(
    whole, recipe, others, tmp_path, no_plots, stopper
):
    shutil.copytree(whole, tmp_path / "first")
    options = TrainingOptions(begin_with=Run(tmp_path / "first"), listener=stopper("progress", 1))
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, others, tmp_path / "run", options)
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(RunError, match=r"first, which .*run began with, is not there any more: put it back"):
        loop.resume(Run(tmp_path / "run"), others)


def test_weights_that_were_trained_anew_are_noticed(whole, others, tiny, recipe, tmp_path, no_plots):
    loop.train(recipe, tiny, tmp_path / "first", TrainingOptions(seed=1))
    begun_from = {"folder": str(tmp_path / "first"), "weights_sha256": Run(whole).record.weights_sha256}
    with pytest.raises(RunError, match="other weights"):
        initial.recorded(begun_from, tmp_path / "run")
    with pytest.raises(RunError, match="does not say"):
        initial.recorded({}, tmp_path / "run")


def test_another_architecture_is_refused_before_there_is_a_folder(whole, recipe, others, tmp_path):
    with pytest.raises(RunError, match="same net"):
        loop.train(replace(recipe, net="net"), others, tmp_path / "run", TrainingOptions(begin_with=Run(whole)))
    assert not (tmp_path / "run").exists()


def test_a_run_that_saw_what_is_held_out_is_refused(whole, recipe, tiny, tmp_path):
    more = replace(recipe, held_out=0.5)
    with pytest.raises(RunError, match="seen images"):
        loop.train(more, tiny, tmp_path / "run", TrainingOptions(begin_with=Run(whole)))
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_is_refused(recipe, tiny, others, tmp_path, no_plots, stopper):
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tiny, tmp_path / "first", TrainingOptions(listener=stopper("epoch", 1)))
    with pytest.raises(RunError, match="not finished"):
        loop.train(recipe, others, tmp_path / "run", TrainingOptions(begin_with=Run(tmp_path / "first")))


def test_damaged_weights_leave_no_folder(whole, recipe, others, tmp_path):
    shutil.copytree(whole, tmp_path / "first")
    (tmp_path / "first" / "weights.safetensors").write_bytes(b"no")
    with pytest.raises(RunError, match="damaged"):
        loop.train(recipe, others, tmp_path / "run", TrainingOptions(begin_with=Run(tmp_path / "first")))
    assert not (tmp_path / "run").exists()


def test_batch_norms_statistics_are_taken_over(whole, recipe, others):
    from edgecifar.train.nets import make_net

    net = make_net("small", others.contract)
    initial.load(net, Run(whole), others.contract)
    np.testing.assert_array_equal(net[1].running_mean, Run(whole).net()[1].running_mean)
