"""The classes are apart, the choice is the seed's, the gain is of pairs; the script trains, and goes on."""

from __future__ import annotations

import json

import few_pictures
import narrow_net  # noqa: F401  the net "narrow"
import numpy as np
import pytest

from edgecifar.runtime import EdgecifarError
from edgecifar.train import adapting, data, plots


def test_classes_of_their_own_and_a_choice_for_each_seed():
    whole = data.synthetic(200, 40)
    last = list(range(5, 10))
    few = few_pictures.of_classes(whole, last, each=3, seed=1)
    assert few.contract.labels == whole.contract.labels[5:]
    assert np.bincount(few.train_labels).tolist() == [3] * 5
    for images, labels, all_images, all_labels in (
        (few.train_images, few.train_labels, whole.train_images, whole.train_labels),
        (few.test_images, few.test_labels, whole.test_images, whole.test_labels),
    ):
        known = {image.tobytes(): int(label) for image, label in zip(all_images, all_labels, strict=True)}
        assert all(known[image.tobytes()] == label + 5 for image, label in zip(images, labels, strict=True))
    assert len(few.test_labels) == np.isin(whole.test_labels, last).sum()
    again, other = (few_pictures.of_classes(whole, last, each=3, seed=seed) for seed in (1, 2))
    assert np.array_equal(few.train_images, again.train_images)
    assert not np.array_equal(few.train_images, other.train_images)
    assert few.is_own


def test_the_gain_is_of_pairs():
    found = [
        {"each": 20, "seed": seed, "begun_from": begun_from, "accuracy": accuracy}
        for seed, begun_from, accuracy in ((0, False, 40), (0, True, 52), (1, False, 44), (1, True, 58), (2, False, 1))
    ]
    (row,) = few_pictures.summarise(found)
    assert row["n"] == 2
    assert row["gain"]["mean"] == pytest.approx(13)
    assert row["from_nothing"]["mean"] == pytest.approx(42)
    assert "| 20 | 2 | 42.0 ± 2.8 | 55.0 ± 4.2 | 13.0 ± 1.4 |" in few_pictures.table([row])


@pytest.mark.slow
def test_the_script(tmp_path, monkeypatch, capsys, check_document):
    for name in ("confusion", "curves"):
        monkeypatch.setattr(plots, name, lambda _, path: path.write_bytes(b"drawn"))
    monkeypatch.setattr(adapting, "MIN_STEPS", 2)
    monkeypatch.setattr(data, "synthetic", lambda make=data.synthetic: make(300, 40))
    arguments = ["--each", "8", "--seeds", "1", "--net", "narrow", "--epochs", "1", "--data", "synthetic"]
    arguments += ["--out", str(tmp_path / "runs"), "--save", str(tmp_path / "kept.json")]
    few_pictures.main(arguments)
    document = check_document(capsys.readouterr().out.splitlines()[-1], entries=False)
    assert {trial["begun_from"] for trial in document["trials"]} == {True, False}
    assert document["rows"][0]["n"] == 1
    monkeypatch.setattr(few_pictures, "adapt", None)  # nothing is trained again
    few_pictures.main(arguments)
    assert json.loads((tmp_path / "kept.json").read_text())["trials"] == document["trials"]
    arguments[arguments.index("--epochs") + 1] = "2"
    with pytest.raises(EdgecifarError, match="epochs 1, not 2"):
        few_pictures.main(arguments)
