"""Many pictures: each has exactly one row, whatever happens on the way; what Ray's workers do to a batch."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecifar.runtime import Classifier, bulk
from edgecifar.runtime.bulk import Classify, Count, Options, PackedBundle, classify_into, finished, results
from edgecifar.runtime.errors import BundleError, InputError, OutputError, PictureError


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> list[str]:
    """200 pictures of as many colours, two of which cannot be read."""
    folder = tmp_path_factory.mktemp("album")
    paths = [folder / f"{number:04}.png" for number in range(200)]
    for number, path in enumerate(paths):
        Image.new("RGB", (32, 32), (number, 255 - number, 7 * number % 256)).save(path)
    paths[20].write_bytes(b"")
    paths[150].unlink()
    return [str(path) for path in paths]


@pytest.fixture
def classifier(tiny) -> Classifier:
    return Classifier(tiny, threads=1)


@pytest.fixture
def three(three_classes, three_colours, tmp_path) -> tuple[Classifier, list[str]]:
    """A classifier with familiarity, and four pictures: one a colour that it knows, and one unlike them all."""
    colours = [*three_colours.values(), (255, 255, 255)]
    for number, colour in enumerate(colours):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{number}.png")
    return Classifier(three_classes, threads=1), [str(tmp_path / f"{number}.png") for number in range(4)]


def test_several_jobs_give_the_results_of_one(classifier, album):
    one = list(results(classifier, iter(album), Options(jobs=1)))
    several = list(results(classifier, iter(album), Options(jobs=2)))
    assert [name for name, _ in several] == album
    assert [i for i, (_, result) in enumerate(several) if isinstance(result, PictureError)] == [20, 150]
    for (name, a), (other, b) in zip(one, several, strict=True):
        assert name == other
        if isinstance(a, PictureError) or isinstance(b, PictureError):
            assert str(a) == str(b)
        else:
            assert (a.label, a.source) == (b.label, b.source)
            assert a.probability == pytest.approx(b.probability, abs=1e-6)


def test_results_take_sources_as_they_are_needed(classifier, album):
    taken = itertools.count()
    endless = (album[next(taken) % 10] for _ in itertools.repeat(0))
    stream = results(classifier, endless, Options(jobs=2))
    names = [name for name, _ in itertools.islice(stream, 500)]
    stream.close()
    assert names == [album[number % 10] for number in range(500)]
    assert next(taken) < 2_000


def test_several_jobs_take_paths_only(classifier, album):
    with pytest.raises(InputError, match="one job"):
        list(classifier.stream([*album[:5], b"bytes"], jobs=2))


class TestUnknown:
    def test_a_picture_unlike_the_training_pictures_says_so(self, three):
        known = [result.known for _, result in results(*three, Options(1))]
        assert known == [True, True, True, False]

    def test_it_may_be_left_out(self, three):
        assert [name for name, _ in results(*three, Options(1, unknown="skip"))] == three[1][:3]

    def test_it_may_be_an_error(self, three):
        *_, (name, result) = results(*three, Options(1, unknown="error"))
        assert name == three[1][3]
        assert isinstance(result, PictureError)
        assert "unlike the training pictures" in str(result)

    @pytest.mark.parametrize("wrong", [{"unknown": "Keep"}, {"fit": "centre"}, {"top_k": 0}])
    def test_what_there_is_not_is_refused_at_once(self, wrong):
        with pytest.raises(InputError):
            Options(**wrong)

    def test_an_output_leaves_none_out(self, three, tmp_path):
        with pytest.raises(OutputError, match="row"):
            classify_into(tmp_path / "rows.jsonl", *three, Options(1, unknown="skip"))

    def test_a_model_that_cannot_tell_leaves_none_out(self, classifier, album):
        found = results(classifier, album[:5], Options(unknown="skip"))
        assert [result.known for _, result in found] == [None] * 5


def test_into_a_file_and_again(classifier, album, tmp_path):
    out = tmp_path / "rows.jsonl"
    told: list[Count] = []
    count = classify_into(out, classifier, album[:150], Options(), progress=lambda c: told.append(Count(**vars(c))))
    assert count == Count(done=150, errors=1, earlier=0)
    assert [c.done for c in told] == [64, 128, 150]
    count = classify_into(out, classifier, album, Options(), resume=True)
    assert count == Count(done=50, errors=1, earlier=150)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["source"] for row in rows] == album
    assert rows[0]["label"] == classifier.predict(album[0])[0].label


def test_paths_are_names(classifier, album, tmp_path):
    """Those of pathlib had a second row each time that an output was gone on with, and none for an error."""
    out, paths = tmp_path / "rows.jsonl", [Path(name) for name in album[:40]]
    classify_into(str(out), classifier, [*paths[:20], Path("not there")], Options(jobs=1))
    count = classify_into(str(out), classifier, paths, Options(jobs=1), resume=True)
    assert (count.done, count.earlier) == (20, 20)
    assert [json.loads(line)["source"] for line in out.read_text().splitlines()] == [
        *album[:20],
        "not there",
        *album[20:40],
    ]


@pytest.mark.parametrize("kind", [str, Path])
def test_one_path(classifier, album, tmp_path, kind):
    """Each letter of it was taken for a picture."""
    out = tmp_path / "rows.jsonl"
    assert classify_into(out, classifier, kind(album[1]), Options(jobs=1)) == Count(done=1)
    assert json.loads(out.read_text())["source"] == album[1]


@pytest.mark.parametrize("change", ["bundle", "variant", "fit", "top_k"])
def test_another_model_or_fit_does_not_go_on(tiny, three_classes, classifier, album, tmp_path, change):
    out = tmp_path / "rows.csv"
    classify_into(out, classifier, album[:3], Options())
    options = {"fit": Options(fit="pad"), "top_k": Options(top_k=1)}.get(change, Options())
    other = {"bundle": (three_classes, None), "variant": (tiny, "edge")}.get(change, (tiny, None))
    with pytest.raises(OutputError, match=change):
        classify_into(out, Classifier(*other), album, options, resume=True)


RUN = (
    "import sys; from edgecifar.runtime import outputs; outputs.PART_ROWS = 200\n"
    "from edgecifar.cli.main import main; main()"
)
"""The command, but with small parts of Parquet."""


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A folder of 3,000 pictures."""
    folder = tmp_path_factory.mktemp("many")
    Image.new("RGB", (32, 32), (200, 30, 30)).save(folder / "0000.png", compress_level=1)
    for number in range(1, 3_000):
        os.link(folder / "0000.png", folder / f"{number:04}.png")
    return folder


def size(out: Path) -> int:
    """Return the bytes of what is finished: a part that is being written is renamed at any moment."""
    parts = out.glob("part-*.parquet") if out.is_dir() else [out]
    return sum(path.stat().st_size for path in parts)


@pytest.mark.parametrize(
    ("form", "kills"),
    [
        ("rows.jsonl", 2),
        *(pytest.param(form, 6, marks=pytest.mark.slow) for form in ("rows.jsonl", "rows.csv", "rows")),
    ],
)
def test_killed_at_random_every_picture_has_one_row(many, tiny, tmp_path, form, kills):
    if form == "rows":
        pytest.importorskip("pyarrow")
    out = tmp_path / form
    command = [sys.executable, "-c", RUN, "predict", many, "--bundle", tiny, "--out", out, "--resume", "--top-k", "1"]
    moments = [0, *np.random.default_rng(0).uniform(0, 0.3, kills - 1)]  # the first before any machine is done
    killed = 0
    for moment in moments:
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        before = size(out) if out.exists() else 0
        while process.poll() is None and (not out.exists() or size(out) == before):
            time.sleep(0.005)  # until it writes
        time.sleep(moment)
        process.kill()
        killed += process.wait() != 0
        assert process.stderr is not None
        process.stderr.close()
    assert killed > 0
    last = subprocess.run(command, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    if out.is_dir():
        import pyarrow.parquet as parquet

        names = parquet.read_table(out)["source"].to_pylist()
    else:
        separator = '{"source": "' if form.endswith("jsonl") else ""
        lines = out.read_text().splitlines()[form.endswith("csv") :]
        names = [line.removeprefix(separator).replace('"', ",").partition(",")[0] for line in lines]
    assert sorted(names) == sorted(str(path) for path in many.iterdir())


class TestPacked:
    def test_it_travels_and_gives_the_same_answers(self, tiny, classifier, album):
        packed = pickle.loads(pickle.dumps(PackedBundle.of(tiny)))  # noqa: S301 - our own
        assert len(packed.files) == 3
        there = packed.classifier(threads=1)
        assert there.variant == classifier.variant
        assert there.predict(album[:5]) == classifier.predict(album[:5])

    def test_a_variant_is_packed_alone(self, tiny):
        packed = PackedBundle.of(tiny, "edge")
        assert packed.variant == "edge"
        assert packed.classifier().variant.name == "edge"

    def test_all_of_the_bundle_is_verified_first(self, tiny_bundle):
        (tiny_bundle / "README.md").write_text("another")
        with pytest.raises(BundleError, match=r"README\.md"):
            PackedBundle.of(tiny_bundle)

    def test_what_was_changed_on_the_way_is_refused(self, tiny):
        packed = PackedBundle.of(tiny)
        name = next(name for name in packed.files if name.endswith(".onnx"))
        packed.files[name] = packed.files[name][:-1] + b"\0"
        with pytest.raises(BundleError, match="copy the bundle again"):
            packed.classifier()


class TestClassify:
    @pytest.fixture(autouse=True)
    def _arrow(self):
        pytest.importorskip("pyarrow")

    def test_bytes_and_paths_give_the_results_of_predict(self, tiny, classifier, album):
        import pyarrow

        classify = Classify(PackedBundle.of(tiny), threads=1, top_k=2)
        contents = [Path(path).read_bytes() if Path(path).exists() else None for path in album]
        by_bytes = classify(pyarrow.table({"path": album, "bytes": contents, "more": range(200)}))
        by_path = classify(pyarrow.table({"path": album}))
        by_uri = classify(pyarrow.table({"path": [f"file://{path}" for path in album]}))
        assert by_bytes.column_names == [
            *("path", "more", "error", "label", "probability", "top", "known", "familiarity"),
        ]
        expected = [result for _, result in results(classifier, album, Options(2, jobs=1))]
        labels = [None if isinstance(result, PictureError) else result.label for result in expected]
        for found in (by_bytes, by_path, by_uri):
            assert found["label"].to_pylist() == labels
            errors = found["error"].to_pylist()
            assert [i for i, error in enumerate(errors) if error] == [20, 150]
            assert "0020.png" in errors[20]
            assert "is empty" in errors[20]
        assert "no such file" in by_path["error"].to_pylist()[150]
        assert len(by_bytes["top"].to_pylist()[0]) == 2
        assert by_bytes["more"].to_pylist() == list(range(200))

    def test_familiarity_goes_along(self, three, three_classes):
        import pyarrow

        found = Classify(PackedBundle.of(three_classes))(pyarrow.table({"path": three[1]}))
        assert found["known"].to_pylist() == [True, True, True, False]
        assert all(isinstance(score, float) for score in found["familiarity"].to_pylist())

    def test_an_empty_batch(self, tiny):
        import pyarrow

        found = Classify(PackedBundle.of(tiny))(pyarrow.table({"path": pyarrow.array([], pyarrow.string())}))
        assert len(found) == 0
        assert "label" in found.column_names

    @pytest.mark.parametrize("choice", [{"top_k": 0}, {"fit": "stretched"}])
    def test_a_choice_that_is_none_is_refused_before_there_is_a_batch(self, tiny, choice):
        with pytest.raises(InputError):
            Classify(PackedBundle.of(tiny), **choice)

    def test_a_batch_without_pictures_is_refused(self, tiny):
        import pyarrow

        with pytest.raises(InputError, match="image"):
            Classify(PackedBundle.of(tiny))(pyarrow.table({"image": [b""]}))

    def test_a_column_that_a_prediction_has_too_is_refused(self, tiny):
        import pyarrow

        with pytest.raises(InputError, match=r"\(label\): rename"):
            Classify(PackedBundle.of(tiny))(pyarrow.table({"path": ["a"], "label": ["cat"]}))

    def test_options_of_a_uri_reach_its_file_system(self, monkeypatch):
        from pyarrow import fs

        asked, local = [], fs.LocalFileSystem()
        monkeypatch.setattr(bulk, "_filesystem", lambda uri: asked.append(uri) or local)
        assert bulk._where("s3://bucket/a/b.png?region=here&scheme=http") == (local, "bucket/a/b.png")
        assert bulk._where("s3://bucket/a/b.png") == (local, "bucket/a/b.png")
        assert bulk._where("s3://bucket?region=here") == (local, "bucket")
        assert asked == ["s3://bucket?region=here&scheme=http", "s3://bucket", "s3://bucket?region=here"]


class TestFinished:
    @pytest.fixture
    def rows(self, tmp_path) -> Path:
        pyarrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet as parquet

        (tmp_path / "deep").mkdir()
        table = pyarrow.table({"path": ["a", "b"], "error": pyarrow.array([None, "bad"], pyarrow.string())})
        parquet.write_table(table, tmp_path / "deep" / "1.parquet")
        parquet.write_table(table.slice(0, 1).set_column(0, "path", [["c"]]), tmp_path / "2.parquet")
        return tmp_path

    def test_paths_that_have_a_row(self, rows):
        assert finished(rows) == finished(f"file://{rows}") == {"a", "b", "c"}
        assert finished(rows, retry_errors=True) == {"a", "c"}
        assert finished(rows / "none") == set()

    def test_a_folder_may_be_called_as_a_file(self, rows):
        """It has no size, and ended in a TypeError."""
        (rows / "deep").rename(rows / "deep.parquet")
        assert finished(rows) == {"a", "b", "c"}

    def test_a_file_cut_short_is_set_aside(self, rows, caplog):
        whole = (rows / "2.parquet").read_bytes()
        (rows / "2.parquet").write_bytes(whole[: len(whole) // 2])
        assert finished(rows) == {"a", "b"}
        assert "2.parquet" in caplog.text
        assert [path.name for path in rows.iterdir() if path.is_file()] == ["_torn-2.parquet"]
        assert finished(rows) == {"a", "b"}

    def test_what_is_whole_stays_where_it_is(self, rows, monkeypatch):
        import pyarrow
        import pyarrow.parquet as parquet

        other = rows / "3.parquet"
        parquet.write_table(pyarrow.table({"source": ["a"], "error": ["bad"]}), other)
        with pytest.raises(OutputError, match=r"3\.parquet"):
            finished(rows)
        other.unlink()

        def unreachable(*_, **__):
            raise OSError("slow down")

        monkeypatch.setattr(parquet, "read_table", unreachable)
        with pytest.raises(OutputError, match="slow down"):
            finished(rows)
        assert sorted(path.name for path in rows.rglob("*.parquet")) == ["1.parquet", "2.parquet"]
