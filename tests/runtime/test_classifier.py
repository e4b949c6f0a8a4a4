"""Known colours give known labels, in order, from arrays and files alike, in one thread and in eight."""

from __future__ import annotations

import io
import json
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecifar.runtime import Bundle, Classifier, Prediction
from edgecifar.runtime.classifier import BATCH
from edgecifar.runtime.contract import CIFAR10
from edgecifar.runtime.errors import BundleError, InputError, PictureError, ProviderError, VariantError

LABELS = CIFAR10.labels


@pytest.fixture
def classifier(tiny) -> Classifier:
    return Classifier(tiny, provider="cpu", threads=1)


@pytest.fixture
def paths(tmp_path, colours) -> list[Path]:
    """A PNG a label, in label order, each of that label's colour."""
    found = []
    for label, colour in colours.items():
        found.append(tmp_path / f"{label}.png")
        Image.new("RGB", (32, 32), colour).save(found[-1])
    return found


@pytest.fixture
def batches(monkeypatch, classifier) -> list[int]:
    """The size of every batch that the model gets."""
    sizes = []
    scores = classifier._session.scores

    def count(images: np.ndarray) -> tuple:
        sizes.append(len(images))
        return scores(images)

    monkeypatch.setattr(classifier._session, "scores", count)
    return sizes


def labels(predictions) -> list[str]:
    return [prediction.label for prediction in predictions]


class TestMaking:
    @pytest.mark.parametrize("kind", [str, Path, Bundle.open])
    def test_from_a_folder_or_a_bundle(self, tiny, kind, images):
        classifier = Classifier(kind(tiny))
        assert classifier.bundle.folder == tiny
        assert classifier.variant.name == "fp32"
        assert labels(classifier.predict(images)) == list(LABELS)

    def test_what_it_says_of_itself(self, tiny):
        classifier = Classifier(tiny, "edge", "cpu", 2)
        assert (classifier.variant.name, classifier.provider, classifier.threads) == ("edge", "cpu", 2)

    def test_variants_differ(self, tiny, images):
        fp32, edge = (Classifier(tiny, name, "cpu").predict(images) for name in ("fp32", "edge"))
        assert labels(fp32) == labels(edge) == list(LABELS)
        # The edge variant is twice as hot: its odds are the square roots.
        for sure, unsure in zip(fp32, edge, strict=True):
            odds = sure.probability / sure.top[1][1]
            assert unsure.probability / unsure.top[1][1] == pytest.approx(odds**0.5, rel=1e-4)

    def test_it_cannot_be_sent_to_another_process(self, tiny):
        with pytest.raises(ProviderError, match="make a Classifier in each process"):
            pickle.dumps(Classifier(tiny))

    def test_refusals(self, tiny, tmp_path):
        with pytest.raises(BundleError, match=r"is not a bundle \(manifest\.json is missing\)"):
            Classifier(tmp_path)
        with pytest.raises(VariantError, match="has no variant called int4: choose one of fp32, edge"):
            Classifier(tiny, "int4")
        with pytest.raises(ProviderError, match="There is no provider called gpu"):
            Classifier(tiny, provider="gpu")

    def test_a_damaged_model_is_never_run(self, tiny_bundle):
        path = tiny_bundle / "model.onnx"
        path.write_bytes(path.read_bytes().replace(b"tiny", b"tinY"))
        with pytest.raises(BundleError, match=r"model\.onnx is not what SHA256SUMS names"):
            Classifier(tiny_bundle)
        assert Classifier(tiny_bundle, "edge").variant.name == "edge"  # that one is intact


class TestArrays:
    def test_known_colours(self, classifier, images, expected):
        predictions = classifier.predict(images)
        assert labels(predictions) == list(LABELS)
        assert [prediction.source for prediction in predictions] == [str(index) for index in range(10)]
        for prediction, logits in zip(predictions, expected, strict=True):
            powers = np.exp((logits - logits.max()) / 2)
            assert prediction.probability == pytest.approx(powers.max() / powers.sum(), rel=1e-5)
            assert prediction.top[0] == (prediction.label, prediction.probability)
            assert [probability for _, probability in prediction.top] == pytest.approx(
                np.sort(powers / powers.sum())[::-1][:3], rel=1e-4
            )

    def test_near_colours(self, classifier, images):
        near = np.clip(images.astype(int) + np.array([20, -20, 10]), 0, 255).astype(np.uint8)
        assert labels(classifier.predict(near)) == list(LABELS)

    def test_order_is_kept(self, classifier, images):
        order = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 20))  # 200: more than three batches
        predictions = classifier.predict(images[order])
        assert labels(predictions) == [LABELS[index] for index in order]
        assert [prediction.source for prediction in predictions] == [str(index) for index in range(200)]

    @pytest.mark.parametrize(
        ("count", "sizes"),
        [(1, [1]), (BATCH, [BATCH]), (BATCH + 1, [BATCH, 1]), (3 * BATCH - 1, [BATCH, BATCH, BATCH - 1])],
    )
    def test_in_batches(self, classifier, images, batches, count, sizes):
        assert len(classifier.predict(images[np.arange(count) % 10])) == count
        assert batches == sizes

    def test_none(self, classifier):
        empty = np.empty((0, 32, 32, 3), np.uint8)
        assert classifier.predict(empty) == []
        assert classifier.probabilities(empty).shape == (0, 10)
        assert classifier.predict([]) == []

    def test_probabilities(self, classifier, images):
        probabilities = classifier.probabilities(images)
        assert (probabilities.dtype, probabilities.shape) == (np.float32, (10, 10))
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
        tops = [prediction.probability for prediction in classifier.predict(images)]
        assert probabilities.max(1).tolist() == tops

    @pytest.mark.parametrize(
        ("array", "got"),
        [
            (np.zeros((100, 32, 32, 3)), "float64 [100, 32, 32, 3]"),
            (np.zeros((100, 3, 32, 32), np.uint8), "uint8 [100, 3, 32, 32]"),
            (np.array(7, np.uint8), "uint8 []"),
            (np.zeros(0, np.uint8), "uint8 [0]"),
        ],
        ids=str,
    )
    def test_other_arrays(self, classifier, array, got):
        for call in (classifier.predict, classifier.probabilities):
            with pytest.raises(InputError) as caught:
                call(array)
            assert f", not {got}: " in str(caught.value)


class TestTopK:
    @pytest.mark.parametrize("top_k", range(1, 11))
    def test_how_many(self, classifier, images, paths, top_k):
        for prediction in classifier.predict(images, top_k) + classifier.predict(paths, top_k=top_k):
            values = [probability for _, probability in prediction.top]
            assert len(values) == top_k
            assert values == sorted(values, reverse=True)
            assert len({label for label, _ in prediction.top}) == top_k

    def test_all_of_them(self, classifier, images):
        (prediction,) = classifier.predict(images[:1], top_k=10)
        assert dict(prediction.top) == dict(zip(LABELS, classifier.probabilities(images[:1])[0].tolist(), strict=True))

    def test_equal_probabilities_in_label_order(self, classifier):
        picture = np.full((1, 32, 32, 3), (0, 255, 0), np.uint8)
        picture[:, ::2] = (0, 255, 255)  # the mean is (0, 255, 127.5): halfway from frog to bird
        (prediction,) = classifier.predict(picture, 2)
        assert [label for label, _ in prediction.top] == ["bird", "frog"]
        assert prediction.top[0][1] == prediction.top[1][1]

    @pytest.mark.parametrize("top_k", [0, -1])
    def test_too_few(self, classifier, images, paths, top_k):
        for given in (images, paths, images[:0], []):
            with pytest.raises(InputError, match="choose 1 or more"):
                classifier.predict(given, top_k)

    def test_never_more_than_there_are(self, classifier, images):
        (prediction,) = classifier.predict(images[:1], top_k=11)
        assert len(prediction.top) == 10


class TestPaths:
    def test_agree_with_arrays(self, classifier, images, paths):
        from_arrays, from_paths = classifier.predict(images), classifier.predict(paths)
        assert [prediction.source for prediction in from_paths] == [str(path) for path in paths]
        for one, other in zip(from_arrays, from_paths, strict=True):
            assert (one.label, one.probability, one.top) == (other.label, other.probability, other.top)

    @pytest.mark.parametrize("kind", [str, Path])
    def test_one_path(self, classifier, paths, kind):
        (prediction,) = classifier.predict(kind(paths[3]))
        assert prediction == Prediction("cat", prediction.probability, prediction.top, str(paths[3]))

    def test_an_iterator(self, classifier, paths):
        assert labels(classifier.predict(iter(paths))) == list(LABELS)

    def test_fit(self, classifier, tmp_path, colours, caplog):
        wide = Image.new("RGB", (96, 32), colours["ship"])
        wide.paste(Image.new("RGB", (32, 32), colours["car"]), (32, 0))
        wide.save(tmp_path / "wide.png")
        assert labels(classifier.predict(tmp_path / "wide.png")) == ["car"]
        assert labels(classifier.predict(tmp_path / "wide.png", fit="crop")) == ["car"]
        assert caplog.messages == []
        (squashed,) = classifier.predict(tmp_path / "wide.png", fit="squash")
        assert squashed.label == "ship"
        classifier.predict(tmp_path / "wide.png", fit="squash")
        (warning,) = caplog.messages  # once
        assert "'squash'" in warning
        assert "'crop'" in warning

    def test_a_fit_that_there_is_not(self, classifier, paths):
        """It is no fault of a picture."""
        with pytest.raises(InputError, match="centre"):
            next(classifier.stream(paths, fit="centre"))
        with pytest.raises(InputError, match="There is no fit 'centre'"):
            classifier.predict(np.zeros((2, 32, 32, 3), np.uint8), fit="centre")

    def test_a_bad_one_is_raised(self, classifier, paths, tmp_path):
        (tmp_path / "bad.png").write_text("no picture")
        with pytest.raises(PictureError, match=r"Could not read .*bad\.png: "):
            classifier.predict([*paths[:2], tmp_path / "bad.png", *paths[2:]])


class TestStream:
    def test_bad_ones_among_good_ones(self, classifier, paths, tmp_path):
        (tmp_path / "bad.png").write_text("no picture")
        bad, missing = tmp_path / "bad.png", tmp_path / "missing.png"
        results = list(classifier.stream([bad, paths[0], missing, *paths[1:], bad]))
        assert [type(result) for result in results] == [
            PictureError,
            Prediction,
            PictureError,
            *[Prediction] * 9,
            PictureError,
        ]
        assert str(results[0]).startswith(f"Could not read {bad}: ")
        assert str(results[2]).startswith(f"Could not read {missing}: there is no such file")
        assert labels(result for result in results if isinstance(result, Prediction)) == list(LABELS)

    def test_only_bad_ones(self, classifier, tmp_path, batches):
        results = list(classifier.stream([tmp_path / str(index) for index in range(BATCH + 1)]))
        assert [str(result).split(":")[0] for result in results] == [
            f"Could not read {tmp_path / str(index)}" for index in range(BATCH + 1)
        ]
        assert batches == []

    def test_in_batches_and_in_order(self, classifier, paths, tmp_path, batches):
        order = np.random.default_rng(1).integers(0, 11, 3 * BATCH + 5).tolist()
        chosen = [[*paths, tmp_path / "missing"][index] for index in order]
        results = list(classifier.stream(chosen))
        given = [[*LABELS, None][index] for index in order]
        assert [result.label if isinstance(result, Prediction) else None for result in results] == given
        assert len(batches) == 4
        assert sum(batches) == len(order) - order.count(10)

    def test_memory_stays_bounded(self, classifier, paths):
        """No more than a batch is read ahead of what was taken."""
        read = 0

        def endless():
            nonlocal read
            while True:
                read += 1
                yield paths[read % 10]

        stream = classifier.stream(endless())
        for index in range(BATCH + 1):
            assert next(stream).label == LABELS[(index + 1) % 10]
            assert read == (BATCH if index < BATCH else 2 * BATCH)

    def test_nothing(self, classifier):
        assert list(classifier.stream([])) == []

    def test_standard_input(self, classifier, paths, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(paths[6].read_bytes())))
        (result,) = classifier.stream(["-"])
        assert (result.label, result.source) == ("frog", "-")


def test_eight_threads_give_the_answers_of_one(classifier, images, paths):
    wanted = classifier.predict(images), classifier.predict(paths)
    answers: list[list] = [[] for _ in range(8)]
    start = threading.Barrier(8)

    def work(index: int) -> None:
        start.wait()
        for _ in range(5):
            answers[index].append((classifier.predict(images), classifier.predict(paths)))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [[wanted] * 5] * 8


class TestKinds:
    """What a picture may be."""

    @pytest.fixture
    def kinds(self, paths, colours) -> dict[str, object]:
        """The red picture in every kind."""
        red = paths[1]
        return {
            "path": red,
            "text": str(red),
            "bytes": red.read_bytes(),
            "stream": io.BytesIO(red.read_bytes()),
            "image": Image.new("RGB", (40, 50), colours["car"]),
            "palette": Image.new("RGB", (40, 50), colours["car"]).convert("P"),
            "array": np.full((7, 300, 3), colours["car"], np.uint8),
            "batch's": np.full((32, 32, 3), colours["car"], np.uint8),
        }

    @pytest.mark.parametrize("kind", ["path", "text", "bytes", "stream", "image", "palette", "array", "batch's"])
    def test_one(self, classifier, kinds, kind):
        (prediction,) = classifier.predict(kinds[kind])
        assert prediction.label == "car"
        assert prediction.source == (str(kinds["path"]) if kind in ("path", "text") else "0")

    def test_mixed(self, classifier, kinds, paths):
        predictions = classifier.predict([paths[0], *kinds.values()])
        assert labels(predictions) == ["plane"] + ["car"] * len(kinds)
        assert [prediction.source for prediction in predictions[3:]] == [str(i) for i in range(3, 9)]

    def test_an_open_file(self, classifier, paths):
        with paths[6].open("rb") as file:
            assert labels(classifier.predict(file)) == ["frog"]

    @pytest.mark.parametrize("bad", [b"no picture", np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), io.BytesIO()])
    def test_a_bad_one_is_named_by_its_place(self, classifier, paths, bad):
        good, failure = classifier.stream([paths[0], bad])
        assert good.label == "plane"
        assert isinstance(failure, PictureError)
        assert "picture 1" in str(failure)

    @pytest.mark.parametrize("thing", [5, None, 2.5, {}, object()], ids=lambda thing: type(thing).__name__)
    def test_what_is_no_picture(self, classifier, thing):
        with pytest.raises(InputError, match="is no picture"):
            list(classifier.stream([thing]))

    def test_no_pictures_at_all(self, classifier):
        with pytest.raises(InputError, match="is no picture"):
            classifier.predict(5)


def test_a_prediction_as_json(classifier, images):
    (prediction,) = classifier.predict(images[3:4], top_k=2)
    document = json.loads(json.dumps(prediction.as_json()))
    assert document == {
        "source": "0",
        "label": "cat",
        "probability": prediction.probability,
        "top": [{"label": label, "probability": probability} for label, probability in prediction.top],
        "known": None,
        "familiarity": None,
    }


def test_what_they_are_in_a_line(classifier):
    for thing in (classifier, classifier.bundle):
        assert "\n" not in repr(thing)
        assert "fp32" in repr(thing)
        assert "tiny_bundle" in repr(thing)


class TestOtherClasses:
    """A bundle of three classes with unicode labels, another size, another fit, and a familiarity score."""

    @pytest.fixture
    def classifier(self, three_classes) -> Classifier:
        return Classifier(three_classes, provider="cpu", threads=1)

    def test_pictures(self, classifier, three_colours):
        pictures = [np.full((50, 50, 3), colour, np.uint8) for colour in three_colours.values()]
        predictions = classifier.predict(pictures, top_k=10)
        assert labels(predictions) == list(three_colours) == list(classifier.contract.labels)
        assert {len(prediction.top) for prediction in predictions} == {3}
        assert [prediction.known for prediction in predictions] == [True] * 3

    def test_an_unknown_one(self, classifier):
        (prediction,) = classifier.predict(np.full((50, 50, 3), 255, np.uint8))
        assert prediction.known is False
        assert prediction.familiarity == -(55**2 + 2 * 235**2)
        assert prediction.as_json()["known"] is False

    def test_without_a_threshold_nobody_knows(self, three_classes):
        bundle = Bundle.open(three_classes)
        variants = tuple(replace(variant, familiarity=None) for variant in bundle.manifest.variants)
        classifier = Classifier(replace(bundle, manifest=replace(bundle.manifest, variants=variants)), provider="cpu")
        (prediction,) = classifier.predict(np.full((50, 50, 3), 255, np.uint8))
        assert prediction.known is None
        assert prediction.familiarity < 0

    def test_a_batch(self, classifier):
        assert classifier.probabilities(np.zeros((2, 40, 40, 3), np.uint8)).shape == (2, 3)
        with pytest.raises(InputError, match=r"uint8 \[N, 40, 40, 3\]"):
            classifier.predict(np.zeros((2, 32, 32, 3), np.uint8))

    def test_the_fit_is_the_bundles(self, classifier, three_colours):
        wide = np.full((20, 60, 3), three_colours["röd"], np.uint8)
        padded, cropped = classifier.predict(wide)[0], classifier.predict(wide, fit="crop")[0]
        assert cropped.familiarity == 0
        assert padded.familiarity < cropped.familiarity  # the bars are grey
