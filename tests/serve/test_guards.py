"""What guards the server: keys, CORS, limits, metrics; and its OpenAPI document."""

from __future__ import annotations

import json
import logging
import re

import pytest

KEY = "0123456789abcdef-one"
INFER = "/v2/models/tiny-edge/infer"


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text(f"# the keys of two clients\n{KEY}\n\nfedcba9876543210-two\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def keys(key_file):
    from edgecifar.serve.settings import ApiKeys

    return ApiKeys(key_file)


@pytest.mark.parametrize(
    "header",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"X-API-Key": "fedcba9876543210-two"},
        {"Authorization": "Bearer of-another-service", "X-API-Key": KEY},
        {"Authorization": f"Bearer {KEY}", "X-API-Key": "of another service"},
    ],
)
def test_a_key_opens_everything(open_client, keys, images, ask, header):
    client = open_client(keys=keys)
    assert client.post(INFER, json=ask(images[:1]), headers=header).status_code == 200
    assert client.get("/metrics", headers=header).status_code == 200


@pytest.mark.parametrize(
    "header", [{}, {"Authorization": "Bearer "}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": KEY[:-1]},
               {"X-API-Key": ""}, {"X-API-Key": "# the keys of two clients"}]
)  # fmt: skip
def test_without_a_key_only_health_is_told(open_client, keys, header):
    client = open_client(keys=keys)
    for path in ("/", "/v2", "/v2/models/tiny", "/metrics", "/openapi.json", "/nothing", "/v2/health/live/x"):
        answer = client.get(path, headers=header)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert list(answer.json()) == ["error"]
    assert client.post(INFER, json={}, headers=header).status_code == 401
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 200


def test_metrics_are_open_by_choice(open_client, keys):
    from edgecifar.serve import Settings

    client = open_client(Settings(open_metrics=True), keys)
    assert client.get("/metrics").status_code == 200
    assert client.get("/v2").status_code == 401


@pytest.mark.parametrize("content", [b"", b"# none\n", b"short\n", b"0123456789abcdef with a space\n", b"\xff" * 32])
def test_a_file_without_good_keys_is_refused(tmp_path, content):
    from edgecifar.runtime.errors import InputError
    from edgecifar.serve.settings import ApiKeys

    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"keys?\b"):
        ApiKeys(path)
    with pytest.raises(InputError, match=r"cannot be read \(No such file.*check the path"):
        ApiKeys(tmp_path / "missing")


def test_keys_that_others_can_read_are_noticed(key_file):
    from edgecifar.serve.settings import ApiKeys

    assert not ApiKeys(key_file).exposed
    key_file.chmod(0o644)
    assert ApiKeys(key_file).exposed


def test_web_pages_may_not_ask_unless_named(client, open_client, keys):
    from edgecifar.serve import Settings

    origin = {"Origin": "https://a.example"}
    assert "access-control-allow-origin" not in client.get("/v2", headers=origin).headers
    named = open_client(Settings(allow_origins=("https://a.example",)), keys)
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    assert named.options("/classify", headers=preflight).status_code == 200
    refused = named.options("/classify", headers={**preflight, "Origin": "https://b.example"})
    assert "access-control-allow-origin" not in refused.headers
    answer = named.get("/v2", headers=origin)  # without a key: the page must be able to read why
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "https://a.example")


def test_a_body_that_is_too_long(open_client, images, ask):
    from edgecifar.serve import Settings

    client = open_client(Settings(max_body=3000))
    whole = client.post(INFER, json=ask(images[:1]))
    parts = client.post(INFER, content=iter([b"0" * 1000] * 4))
    for answer in (whole, parts, client.post("/classify", content=b"0" * 3001)):
        assert answer.status_code == 413
        assert "3,000 bytes" in answer.json()["error"]
    assert client.get("/metrics").text.count("edgecifar_buffered_bytes 0.0") == 1


def test_an_infer_body_may_not_be_longer_than_its_images_can_be(open_client):
    from edgecifar.serve import Settings

    client = open_client(Settings(max_images=1))
    assert client.post(INFER, content=b" " * 200_000).status_code == 413


def test_a_compressed_body_is_refused(client):
    answer = client.post(INFER, content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


def test_a_full_queue_is_answered_at_once(open_client, images, ask, png):
    from edgecifar.serve import Settings

    client = open_client(Settings(queue_images=0))
    for answer in (client.post(INFER, json=ask(images[:1])), client.post("/classify", content=png(images[0]))):
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        assert "full" in answer.json()["error"]


def test_a_failure_that_nobody_foresaw_is_logged_and_told_without_details(open_client, monkeypatch, caplog):
    from edgecifar.serve import protocol

    client = open_client()
    monkeypatch.setattr(protocol, "model_metadata", lambda *_: 1 / 0)
    answer = client.get("/v2/models/tiny")
    assert answer.status_code == 500
    assert "division" not in answer.text
    assert any(record.exc_info for record in caplog.records)


def test_metrics_count_what_happened(open_client, images, ask, labels, png):
    from edgecifar.serve import Settings

    client = open_client(Settings(unsure_below=0.9999))
    client.post(INFER, json=ask(images))
    client.post(INFER, json={})
    client.post("/classify?model=tiny-edge", files=[("a", ("a", png(images[3]))), ("b", ("b", b"none"))])
    client.get("/nothing/of/many/names")
    text = client.get("/metrics").text
    found = dict(re.findall(r"^(edgecifar_\S+) (\S+)$", text, re.MULTILINE))
    assert found['edgecifar_requests_total{code="200",endpoint="infer"}'] == "1.0"
    assert found['edgecifar_requests_total{code="400",endpoint="infer"}'] == "1.0"
    assert found['edgecifar_requests_total{code="404",endpoint="other"}'] == "1.0"
    assert found['edgecifar_images_total{model="tiny-edge"}'] == "11.0"
    assert found['edgecifar_images_total{model="tiny-fp32"}'] == "0.0"
    counts = [found[f'edgecifar_predictions_total{{label="{label}",model="tiny-edge"}}'] for label in labels]
    assert counts == ["1.0", "1.0", "1.0", "2.0"] + ["1.0"] * 6
    assert found["edgecifar_bad_pictures_total"] == "1.0"
    assert found['edgecifar_batch_images_bucket{le="8.0",model="tiny-edge"}'] == "1.0"
    assert found['edgecifar_batch_images_count{model="tiny-edge"}'] == "2.0"
    assert float(found['edgecifar_inference_seconds_sum{model="tiny-edge"}']) > 0
    assert found['edgecifar_queue_requests{model="tiny-edge"}'] == "0.0"
    assert len(re.findall(r"^edgecifar_model_info{.*} 1.0$", text, re.MULTILINE)) == 2
    assert "_created" not in text


def test_a_model_that_was_removed_has_no_queue(open_client, three_classes):
    client = open_client(variants=("edge",))
    assert 'edgecifar_queue_requests{model="tiny-edge"}' in client.get("/metrics").text
    other = open_client(bundles={"other": three_classes}).app.registry
    client.app.registry = other
    text = client.get("/metrics").text
    assert re.findall(r'^edgecifar_queue_(\w+){model="(\w+)-', text, re.MULTILINE) == [
        (kind, "other") for kind in ("requests", "images") for _ in other.models
    ]


def test_below_a_prefix(open_client, keys, images, ask):
    client = open_client(keys=keys, prefix="/ml")
    key = {"X-API-Key": KEY}
    assert client.get("/ml/v2/health/ready").status_code == 200
    assert client.get("/ml/v2").status_code == 401
    assert client.get("/ml/v2/models/tiny", headers=key).status_code == 200
    assert client.post(f"/ml{INFER}", json=ask(images[:1]), headers=key).status_code == 200
    assert client.get("/ml/nothing", headers=key).status_code == 404
    assert 'code="200",endpoint="infer"' in client.get("/ml/metrics", headers=key).text


def test_unsure_and_unknown_answers_are_counted():
    import numpy as np

    from edgecifar.serve import Settings
    from edgecifar.serve.metrics import Metrics, ModelMetrics

    metrics = Metrics()
    counted = ModelMetrics(metrics, "m", ("a", "b"), Settings(unsure_below=0.6)).know(0.25)
    probabilities = np.array([[0.5, 0.5], [0.1, 0.9], [0.6, 0.4]], np.float32)
    counted.ran([probabilities, probabilities, np.array([0.2, 0.25, 0.3], np.float32)], 3, 0.01)
    value = metrics.registry.get_sample_value
    assert value("edgecifar_unsure_total", {"model": "m"}) == 1
    assert value("edgecifar_unknown_total", {"model": "m"}) == 1
    assert value("edgecifar_predictions_total", {"model": "m", "label": "a"}) == 2


def test_requests_are_logged_by_choice(open_client, caplog):
    from edgecifar.serve import Settings

    client = open_client(Settings(log_requests=True))
    with caplog.at_level(logging.INFO, "edgecifar.serve.requests"):
        client.get("/v2/models/%1b[31m")
    (record,) = [record for record in caplog.records if getattr(record, "event", "") == "request"]
    assert (record.status, record.method) == (404, "GET")
    assert "\x1b" not in record.getMessage()


def test_a_line_of_the_log_is_one_document():
    from edgecifar.serve.logs import JsonFormatter

    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.getLogger("x").makeRecord("x", 40, "f", 1, "it %s", ("failed\n",), None, extra={"event": "e"})
        record.exc_info = (type(error), error, error.__traceback__)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    values = json.loads(line)
    assert values["message"] == "it failed\n"
    assert (values["level"], values["event"]) == ("error", "e")
    assert "ValueError" in values["traceback"]


def test_the_openapi_document_names_every_route(open_client, keys):
    from edgecifar.serve import Settings

    client = open_client()
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        concrete = path.replace("{model}", "tiny").replace("{version}", "x")
        for method in {"get", "post"} & methods.keys():
            assert client.request(method.upper(), concrete).status_code != 405
        for method in {"get", "post"} - methods.keys():
            assert client.request(method.upper(), concrete).status_code == 405
    assert "security" not in document
    secured = open_client(keys=keys).get("/openapi.json", headers={"X-API-Key": KEY}).json()
    assert secured["security"] == [{"key": []}]
    assert secured["paths"]["/v2/health/live"]["get"]["security"] == []
    assert "401" in secured["paths"]["/classify"]["post"]["responses"]
    assert "401" in secured["paths"]["/metrics"]["get"]["responses"]
    opened = open_client(Settings(open_metrics=True), keys).get("/openapi.json", headers={"X-API-Key": KEY}).json()
    assert opened["paths"]["/metrics"]["get"]["security"] == []


def test_the_openapi_document_is_right_for_all_models(open_client, three_classes, tiny, labels, three_colours):
    document = open_client(bundles={"tiny": tiny, "three": three_classes}).get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    inputs = schemas["InferRequest"]["properties"]["inputs"]["items"]["anyOf"]
    sizes = [[size.get("const") for size in one["properties"]["shape"]["prefixItems"][1:]] for one in inputs]
    assert sizes == [[32, 32, 3], [40, 40, 3]]
    flat, nested = inputs[1]["properties"]["data"]["anyOf"]
    assert flat["items"]["maximum"] == 255
    assert nested["items"]["minItems"] == nested["items"]["items"]["minItems"] == 40
    assert nested["items"]["items"]["items"]["items"] == flat["items"]
    picture = schemas["Predictions"]["properties"]["predictions"]["items"]["properties"]
    assert set(picture["label"]["enum"]) == {*labels, *three_colours}
    wanted = schemas["InferRequest"]["properties"]["outputs"]["items"]["properties"]["name"]["enum"]
    assert wanted == ["probabilities", "logits", "familiarity"]
