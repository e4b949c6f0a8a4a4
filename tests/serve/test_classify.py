"""`POST /classify`: what `predict --json` prints, for pictures that were uploaded."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest


def test_a_form_is_answered_as_predict_answers(client, tiny, images, labels, png, tmp_path, edgecifar):
    paths = [tmp_path / f"{label}.png" for label in labels[:4]]
    for path, image in zip(paths, images, strict=False):
        path.write_bytes(png(image))
    files = [("image", (path.name, path.read_bytes())) for path in paths]
    answer = client.post("/classify?model=tiny-edge&top_k=2", files=files)
    assert answer.status_code == 200
    printed = json.loads(
        edgecifar(
            "predict", *paths, "--json", "--top-k", 2, "--bundle", tiny, "--variant", "edge", "--threads", 1
        ).stdout
    )
    for entry in printed["predictions"]:
        entry["source"] = entry["source"].rpartition("/")[2]
    assert answer.json() == {**printed, "bundle": "tiny"}
    assert [entry["label"] for entry in answer.json()["predictions"]] == labels[:4]


def test_a_raw_body(client, images, labels, png):
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):
        answer = client.post("/classify", content=png(images[6]), headers={"content-type": kind}).json()
        assert [entry["label"] for entry in answer["predictions"]] == ["frog"]
        assert len(answer["predictions"][0]["top"]) == 3


def test_a_bad_picture_spoils_nobodys(client, images, png):
    files = [("a", ("good.png", png(images[0]))), ("b", ("bad.png", b"nothing")), ("c", ("also.png", png(images[1])))]
    answer = client.post("/classify", files=files)
    assert answer.status_code == 200
    good, bad, also = answer.json()["predictions"]
    assert (good["label"], also["label"]) == ("plane", "car")
    assert set(bad) == {"source", "error"}
    assert "bad.png" in bad["error"]


def test_nothing_but_bad_pictures_is_a_bad_request(client, png, images):
    answer = client.post("/classify", content=png(images[0])[:60])
    assert answer.status_code == 400
    assert "error" in answer.json()["predictions"][0]


@pytest.mark.parametrize(
    ("query", "word"), [("top_k=0", "top_k"), ("top_k=a", "top_k"), ("fit=round", "fit"), ("x=1", "query"),
                        ("top_k=1&top_k=2", "once"), ("&".join(f"a{n}=1" for n in range(11)), "query"),
                        ("top_k=10000", "9999")]
)  # fmt: skip
def test_a_query_that_is_not_one(client, png, images, query, word):
    answer = client.post(f"/classify?{query}", content=png(images[0]))
    assert answer.status_code == 400
    assert word in answer.json()["error"]


def test_the_query_is_not_taken_from_the_host(client, png, images):
    answer = client.post("/classify?top_k=1", content=png(images[0]), headers={"host": "a?top_k=2#"})
    assert len(answer.json()["predictions"][0]["top"]) == 1


def test_the_deadline_covers_the_decoding(open_client, png, images, monkeypatch):
    from edgecifar.runtime import pictures
    from edgecifar.serve import Settings

    gate, began = threading.Event(), []
    load = pictures.load_picture

    def held(content, *arguments, name, **options):
        began.append(name)
        gate.wait(10)
        return load(content, *arguments, name=name, **options)

    monkeypatch.setattr(pictures, "load_picture", held)
    client = open_client(Settings(timeout=0.5, decoders=1))
    files = [("a", (name, png(images[0]))) for name in ("first", "second")]
    assert client.post("/classify", files=files).status_code == 504  # while the picture is held
    assert client.post("/classify", content=png(images[0])).status_code == 504  # it never got a thread
    gate.set()
    decoder = client.app._decoder
    decoder._pool.shutdown()  # what was begun has ended
    assert began == ["first"]
    client.get("/v2")  # a round of the event loop
    assert (decoder.buffered, decoder._uploads) == (0, 0)


def test_top_k_lists_no_more_than_there_are(client, png, images, labels):
    answer = client.post("/classify?top_k=999", content=png(images[0])).json()
    assert sorted(entry["label"] for entry in answer["predictions"][0]["top"]) == sorted(labels)


def test_an_unknown_model(client, png, images):
    assert client.post("/classify?model=other", content=png(images[0])).status_code == 404
    assert client.post("/classify?model=", content=png(images[0])).status_code == 404  # as of an unset variable


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 400),
        (b"--x\r\nContent-Dis", "multipart/form-data; boundary=x", 400),
        (b"nothing", "multipart/form-data; boundary=x", 400),
        (b"--x\r\n\r\nhello\r\n--x--\r\n", "multipart/form-data", 400),
        (b"--x\r\nA: " + b"b" * 20000 + b"\r\n\r\nhello\r\n--x--\r\n", "multipart/form-data; boundary=x", 400),
        (b"", "image/png", 400),
    ],
)
def test_bodies_that_hold_no_picture(client, body, kind, status):
    answer = client.post("/classify", content=body, headers={"content-type": kind})
    assert answer.status_code == status
    assert "Traceback" not in answer.text


def test_too_many_pictures(open_client, png, images):
    from edgecifar.serve import Settings

    client = open_client(Settings(max_images=2))
    answer = client.post("/classify", files=[("a", (f"{n}.png", png(images[n]))) for n in range(3)])
    assert answer.status_code == 400
    assert "2 pictures" in answer.json()["error"]


def test_a_picture_of_too_many_pixels_is_not_decoded(open_client, png, monkeypatch):
    from edgecifar.serve import Settings

    client = open_client(Settings(max_pixels=10_000))
    answer = client.post("/classify", content=png(np.zeros((101, 100, 3), np.uint8)))
    assert answer.status_code == 400
    assert "pixels" in answer.json()["predictions"][0]["error"]
    assert client.post("/classify", content=png(np.zeros((100, 100, 3), np.uint8))).status_code == 200


def test_names_of_uploads_cannot_steer_a_terminal(client, png, images):
    disposition = b'form-data; name="a"; filename="\x1b[31mred.png"'
    body = b"--x\r\nContent-Disposition: " + disposition + b"\r\n\r\nno picture\r\n--x--\r\n"
    answer = client.post("/classify", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert b"\x1b" not in answer.content


def test_a_picture_unlike_the_training_pictures(open_client, three_classes, three_colours, png, ask):
    client = open_client(bundles={"three": three_classes})
    known, strange = (np.full((40, 40, 3), colour, np.uint8) for colour in (next(iter(three_colours.values())), 255))
    files = [("image", ("known.png", png(known))), ("image", ("strange.png", png(strange)))]
    found = client.post("/classify", files=files).json()["predictions"]
    assert [entry["known"] for entry in found] == [True, False]
    assert found[0]["familiarity"] == 0 > found[1]["familiarity"]
    outputs = client.post("/v2/models/three/infer", json=ask(np.stack([known, strange]))).json()["outputs"]
    (score,) = [output for output in outputs if output["name"] == "familiarity"]
    assert (score["shape"], score["datatype"]) == ([2], "FP32")
    assert score["data"] == pytest.approx([entry["familiarity"] for entry in found])
    lines = client.get("/metrics").text.splitlines()
    counts = [float(line.split()[1]) for line in lines if line.startswith("edgecifar_unknown_total{")]
    assert sum(counts) == 2  # once as a file, once as an array


def test_a_bundle_without_the_score_cannot_tell(client, images, png):
    entry = client.post("/classify", content=png(images[0])).json()["predictions"][0]
    assert entry["known"] is entry["familiarity"] is None
