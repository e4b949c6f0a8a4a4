"""The Open Inference Protocol: metadata, health, infer in JSON and binary, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

INFER = "/v2/models/tiny-edge/infer"


def values(output: dict) -> np.ndarray:
    return np.array(output["data"], np.float32).reshape(output["shape"])


def test_metadata_of_the_server_and_of_every_model(client, labels):
    server = client.get("/v2").json()
    assert server["name"] == "edgecifar"
    assert "binary_tensor_data" in server["extensions"]
    listed = client.post("/v2/repository/index", json={}).json()
    assert {entry["name"] for entry in listed} == {"tiny", "tiny-fp32", "tiny-edge"}
    for entry in listed:
        model = client.get(f"/v2/models/{entry['name']}").json()
        assert model["name"] == entry["name"]
        assert model["versions"] == [entry["version"]]
        assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
        assert [output["name"] for output in model["outputs"]] == ["probabilities", "logits"]
        assert model["outputs"][0]["shape"] == [-1, 10]
        assert model["parameters"]["labels"] == labels
        pinned = f"/v2/models/{entry['name']}/versions/{entry['version']}"
        assert client.get(pinned).json() == model
        assert client.get(f"{pinned}/ready").json()["ready"] is True


def test_health(client):
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2/models/tiny/ready").status_code == 200
    client.app.draining = True
    assert client.get("/v2/health/live").status_code == 200
    ending = client.get("/v2/health/ready")
    assert ending.status_code == 503
    assert ending.headers["connection"] == "close"


@pytest.mark.parametrize("nested", [False, True])
def test_infer_in_json_gives_what_the_classifier_gives(client, classifier, images, ask, nested):
    answer = client.post(INFER, json=ask(images, nested=nested, id="42")).json()
    assert answer["id"] == "42"
    assert answer["model_name"] == "tiny-edge"
    assert answer["model_version"] == client.get("/v2/models/tiny-edge").json()["versions"][0]
    probabilities, logits = answer["outputs"]
    assert (probabilities["name"], probabilities["datatype"]) == ("probabilities", "FP32")
    assert np.array_equal(values(probabilities), classifier.probabilities(images))
    assert logits["name"] == "logits"
    assert values(logits).argmax(1).tolist() == list(range(10))


def test_infer_in_binary_gives_the_same_bits(client, classifier, images, ask_binary):
    answer = client.post(INFER, **ask_binary(images, parameters={"binary_data_output": True}))
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    head, tail = json.loads(answer.content[:length]), answer.content[length:]
    assert [output["parameters"]["binary_data_size"] for output in head["outputs"]] == [400, 400]
    assert tail[:400] == classifier.probabilities(images).tobytes()


def test_outputs_are_chosen_each_as_json_or_binary(client, images, ask_binary):
    chosen = [{"name": "logits", "parameters": {"binary_data": True}}, {"name": "probabilities"}]
    answer = client.post(INFER, **ask_binary(images[:2], outputs=chosen))
    length = int(answer.headers["inference-header-content-length"])
    logits, probabilities = json.loads(answer.content[:length])["outputs"]
    assert "data" not in logits
    assert np.frombuffer(answer.content[length:], "<f4").reshape(2, 10).argmax(1).tolist() == [0, 1]
    assert len(probabilities["data"]) == 20
    assert "id" not in json.loads(answer.content[:length])


def test_classification_names_labels(client, images, ask):
    chosen = [{"name": "probabilities", "parameters": {"classification": 2}}]
    (output,) = client.post(INFER, json=ask(images[3:5], outputs=chosen)).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert [text.split(":")[1:] for text in output["data"][::2]] == [["3", "cat"], ["4", "deer"]]
    values = [float(text.split(":")[0]) for text in output["data"]]
    assert values[0] >= values[1]


def test_no_images_are_answered_with_no_rows(client, images, ask):
    assert client.post(INFER, json=ask(images[:0])).json()["outputs"][0]["shape"] == [0, 10]


def test_more_images_than_a_batch(open_client, classifier, images, ask):
    from edgecifar.serve import Settings

    client = open_client(Settings(max_batch=4, max_images=25))
    many = np.concatenate([images, images[::-1], images[:5]])
    (output, _) = client.post(INFER, json=ask(many)).json()["outputs"]
    assert np.allclose(values(output), classifier.probabilities(many), atol=1e-6)
    assert "25" in client.post(INFER, json=ask(np.concatenate([many, images]))).json()["error"]


def test_versions(client, images, ask):
    version = client.get("/v2/models/tiny").json()["versions"][0]
    good = client.post(f"/v2/models/tiny/versions/{version}/infer", json=ask(images[:1]))
    assert good.json()["model_version"] == version
    bad = client.post("/v2/models/tiny/versions/1/infer", json=ask(images[:1]))
    assert bad.status_code == 404
    assert version in bad.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/v2/models/tiny/infer", 405),
        ("POST", "/v2", 405),
        ("PUT", "/classify", 405),
    ],
)
def test_what_is_not_there(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert ("allow" in answer.headers) == (status == 405)


def broken(**changes):
    tensor = {"name": "images", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [0] * 3072, **changes}
    return {"inputs": [{name: value for name, value in tensor.items() if value is not None}]}


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ([], "object"),
        ({}, "inputs"),
        ({"inputs": [], "id": 3}, "'id'"),
        ({"inputs": {}}, "inputs"),
        ({"inputs": [None]}, "inputs"),
        ({**broken(), "parameters": 3}, "parameters"),
        ({**broken(), "parameters": {"timeout": "soon"}}, "timeout"),
        ({**broken(), "parameters": {"binary_data_output": 1}}, "binary_data_output"),
        ({**broken(), "outputs": [{"name": "other"}]}, "outputs"),
        ({**broken(), "outputs": [{"name": "logits"}, {"name": "logits"}]}, "once"),
        ({**broken(), "outputs": 3}, "outputs"),
        ({**broken(), "outputs": [{"name": "logits", "parameters": {"classification": -1}}]}, "classification"),
        ({**broken(), "outputs": [{"name": "logits", "parameters": {"shared_memory_region": "a"}}]}, "shared memory"),
        (broken(name="picture"), "images"),
        (broken(datatype="FP32"), "UINT8"),
        (broken(datatype=None), "UINT8"),
        (broken(shape=[1, 3, 32, 32]), "shape"),
        (broken(shape=[1.0, 32, 32, 3]), "shape"),
        (broken(shape=[True, 32, 32, 3]), "shape"),
        (broken(shape=[-1, 32, 32, 3]), "images"),
        (broken(shape=[10**12, 32, 32, 3]), "images"),
        (broken(shape=3072), "shape"),
        (broken(data=None), "data"),
        (broken(data=[0] * 3071), "3071"),
        (broken(data=[0.5] * 3072), "integer"),
        (broken(data=[256] * 3072), "integer"),
        (broken(data=[-1] * 3072), "integer"),
        (broken(data=["a"] * 3072), "integer"),
        (broken(data=[True] * 3072), "true"),
        (broken(data=[False] * 3072), "false"),
        (broken(data=[[[[0, 0, 0]] * 32] * 31]), "nested"),
        (broken(data=[[[[0, 0]] * 32] * 32]), "nested"),
        (broken(data=[[0] * 3072]), "nested"),
        (broken(parameters={"binary_data_size": 3072}), "both"),
        (broken(data=None, parameters={"binary_data_size": 3072}), "binary_data_size"),
        (broken(parameters={"shared_memory_region": "a"}), "shared memory"),
    ],
)
def test_what_is_not_a_request_says_where(client, request_, word):
    answer = client.post(INFER, json=request_)
    assert answer.status_code == 400
    assert word in answer.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "99999999999999999999", "", "100000"])
def test_a_json_length_that_lies(client, images, ask_binary, length):
    request = ask_binary(images[:1])
    request["headers"]["Inference-Header-Content-Length"] = length
    answer = client.post(INFER, **request)
    assert answer.status_code == 400
    assert "Length" in answer.json()["error"]


@pytest.mark.parametrize("change", [lambda body: body[:-1], lambda body: body + b"0"])
def test_binary_sizes_that_lie(client, images, ask_binary, change):
    request = ask_binary(images[:1])
    request["content"] = change(request["content"])
    assert client.post(INFER, **request).status_code == 400


def test_bytes_that_nobody_named(client, images, ask):
    head = json.dumps(ask(images[:1])).encode()
    answer = client.post(INFER, content=head + b"rest", headers={"Inference-Header-Content-Length": str(len(head))})
    assert answer.status_code == 400
    assert "4 bytes" in answer.json()["error"]


def test_deep_nesting_is_refused(client):
    answer = client.post(INFER, content=b'{"inputs":' + b"[" * 20000)
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]
