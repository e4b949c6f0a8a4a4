"""A manifest is read strictly, in today's schema and the one of before, and written so that it can be read again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecifar.runtime.bundle import Bundle
from edgecifar.runtime.contract import CIFAR10, Contract
from edgecifar.runtime.errors import BundleError
from edgecifar.runtime.manifest import Familiarity, Manifest, Variant

FIRST = Path(__file__).parents[1] / "fixtures" / "schema_1_bundle"


def changed(folder: Path, *keys: object, value: object = None, drop: bool = False) -> dict:
    """The values of a bundle's manifest with the one at `keys` replaced, or dropped."""
    values = json.loads((folder / "manifest.json").read_text())
    place = values
    for key in keys[:-1]:
        place = place[key]
    if drop:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return values


def refusal(values: object) -> str:
    with pytest.raises(BundleError) as caught:
        Manifest.parse(values if isinstance(values, str) else json.dumps(values), Path("manifest.json"))
    message = str(caught.value)
    assert message.startswith("manifest.json ")
    assert message.endswith(".")
    assert message.isprintable()
    return message


VARIANT = ("variants", 0)
WRONG = {
    "a field that is missing": ({"keys": ("dataset",), "drop": True}, "'dataset' is missing"),
    "a field that is unknown": ({"keys": ("extra",), "value": 1}, "'extra' is unknown"),
    "another type": ({"keys": ("dataset",), "value": 10}, "'dataset' is a int"),
    "no variants": ({"keys": ("variants",), "drop": True}, "'variants' is missing"),
    "variants that are no list": ({"keys": ("variants",), "value": {}}, "'variants'"),
    "none of them": ({"keys": ("variants",), "value": []}, "default"),
    "a variant that is no object": ({"keys": VARIANT, "value": 1}, "variant"),
    "its field missing": ({"keys": (*VARIANT, "sha256"), "drop": True}, "'sha256' is missing"),
    "its field unknown": ({"keys": (*VARIANT, "needs"), "value": "any"}, "'needs' is unknown"),
    "true for a number": ({"keys": (*VARIANT, "bytes"), "value": True}, "'bytes' is a bool"),
    "two of one name": ({"keys": (*VARIANT, "name"), "value": "edge"}, "unique"),
    "two of one file": ({"keys": (*VARIANT, "file"), "value": "model.edge.onnx"}, "unique"),
    "a name of the golden archive": ({"keys": (*VARIANT, "name"), "value": "images"}, "default|images"),
    "an unknown default": ({"keys": ("default_variant",), "value": "int4"}, "default"),
    "an unknown format": ({"keys": (*VARIANT, "format"), "value": "tflite"}, "format"),
    "the ending of another": ({"keys": (*VARIANT, "format"), "value": "pt2"}, "format"),
    "an accuracy in percent": ({"keys": (*VARIANT, "accuracy"), "value": 78.1}, "accuracy"),
    "a tolerance of everything": ({"keys": (*VARIANT, "golden_tolerance"), "value": 1}, "tolerance"),
    "an escape sequence": ({"keys": ("dataset",), "value": "\x1b[2J"}, "cannot be shown"),
    "half a character": ({"keys": ("dataset",), "value": "\ud800"}, "cannot be shown"),
    "one in a name": ({"keys": ("provenance", "\x07"), "value": 1}, "cannot be shown"),
    "a line break": ({"keys": ("dataset",), "value": "ten\r\ncolours"}, "cannot be shown"),
    "no float holds it": ({"keys": (*VARIANT, "parity", "accuracy"), "value": 10**400}, "too large"),
    "a size likewise": ({"keys": (*VARIANT, "bytes"), "value": 10**400}, "too large"),
    "no contract": ({"keys": ("contract",), "drop": True}, "'contract' is missing"),
    "labels of another count": ({"keys": ("contract", "labels"), "value": ["a", "b"]}, "contract"),
    "labels that are text": ({"keys": ("contract", "labels"), "value": "plane"}, "contract|alike"),
    "two labels alike": ({"keys": ("contract", "labels"), "value": ["a"] * 10}, "alike"),
    "another colour order": ({"keys": ("contract", "input", "colour"), "value": "BGR"}, "contract"),
    "an unknown step": ({"keys": ("contract", "preprocessing", "colour"), "value": "linear"}, "contract"),
    "an unknown fit": ({"keys": ("contract", "preprocessing", "fit"), "value": "stretch"}, "stretch"),
    "a threshold without a score": (
        {"keys": (*VARIANT, "familiarity"), "value": {"threshold": 0, "accepted": 1, "images": 0, "measured": {}}},
        "familiarity",
    ),
}


class TestWrong:
    @pytest.mark.parametrize(("change", "word"), WRONG.values(), ids=WRONG)
    def test_a_field(self, tiny, change, word):
        message = refusal(changed(tiny, *change["keys"], value=change.get("value"), drop="drop" in change))
        assert "is damaged (" in message
        assert re.search(word, message)

    @pytest.mark.parametrize(
        "name",
        ["../model.onnx", "/etc/model.onnx", "..\\model.onnx", ".model.onnx", "", "a b.onnx", "-m.onnx", "ö.onnx"],
    )
    def test_a_file_that_could_be_elsewhere(self, tiny, name):
        assert "not a plain name" in refusal(changed(tiny, "variants", 0, "file", value=name))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "null",
            '{"schema": 2, "schema": 2}',
            '{"schema": NaN}',
            '{"schema": 2, "a": [-Infinity]}',
            '{"schema": true}',
            '{"schema": 2.0}',
            '{"schema": "2"}',
            "\x00",
            "[" * 100_000,
            '{"schema":' * 100_000,
            '{"schema": 2, "a": [' * 100_000,
        ],
        ids=lambda text: repr(text[:20]),
    )
    def test_no_manifest(self, text):
        assert "is damaged (" in refusal(text)

    @pytest.mark.parametrize("schema", [0, 3, -1, 10**30])
    def test_another_schema_is_not_called_damaged(self, tiny, schema):
        message = refusal(changed(tiny, "schema", value=schema))
        assert f"has schema {schema}, this version of edgecifar reads 1 and 2" in message


class TestReadAndWritten:
    def test_again(self, tiny):
        manifest = Bundle.open(tiny).manifest
        assert Manifest.parse(manifest.as_json(), tiny) == manifest
        assert manifest.as_json() == (tiny / "manifest.json").read_text()

    def test_other_classes_and_a_familiarity(self, three_classes, three_colours):
        text = (three_classes / "manifest.json").read_text()
        manifest = Manifest.parse(text, three_classes)
        assert manifest.labels == tuple(three_colours)
        assert "grün 🌲" in text  # as a person reads it
        assert manifest.contract.size == 40
        assert manifest.contract.fit == "pad"
        assert manifest.variants[0].familiarity == Familiarity(-10000, 0.95, 100, {})
        assert manifest.as_json() == text

    @pytest.mark.parametrize(
        "change",
        [
            {"threshold": float("1e999")},
            {"threshold": -(10**400)},
            {"accepted": 1.5},
            {"images": -1},
            {"images": 0.5},
            {"measured": []},
        ],
    )
    def test_a_wrong_familiarity(self, three_classes, change):
        values = json.loads((three_classes / "manifest.json").read_text())
        values["variants"][0]["familiarity"] |= change
        refusal(json.dumps(values).replace("Infinity", "1e999"))

    def test_what_looks_like_an_escape_sequence_is_a_label(self, tiny):
        labels = [r"\u00b5", r"a\u001b[2J", *"cdefghij"]
        values = changed(tiny, "contract", "labels", value=labels)
        manifest = Manifest.parse(json.dumps(values), tiny)
        assert list(manifest.labels) == labels
        assert Manifest.parse(manifest.as_json(), tiny) == manifest

    @pytest.mark.parametrize(("levels", "read"), [(20, True), (40, False), (500, False)])
    def test_what_is_read_can_be_written_again(self, tiny, levels, read):
        """To walk through 500 levels takes more stack than there may be."""
        values = changed(tiny, "provenance", value={"a": json.loads("[" * levels + "]" * levels)})
        if read:
            assert "[" * levels in re.sub(r"\s", "", Manifest.parse(json.dumps(values), tiny).as_json())
        else:
            assert re.search("nested|recursion", refusal(values))


class TestSchema1:
    """Bundles of before: labels at the top, no preprocessing, and processors' features that a variant needs."""

    def test_is_read(self):
        manifest = Bundle.open(FIRST).manifest
        assert manifest.schema == 1
        assert manifest.contract == CIFAR10
        assert [variant.name for variant in manifest.variants] == ["fp32", "edge"]
        assert {variant.familiarity for variant in manifest.variants} == {None}

    def test_is_written_as_schema_2(self):
        manifest = Bundle.open(FIRST).manifest
        again = Manifest.parse(manifest.as_json(), FIRST)
        assert again.schema == 2
        assert (again.contract, again.variants) == (manifest.contract, manifest.variants)

    def test_verifies(self):
        checks = Bundle.open(FIRST).verify()
        assert [check for check in checks if not check.passed] == []
        assert "golden vectors of edge" in {check.name for check in checks}

    @pytest.mark.parametrize(
        ("keys", "value", "word"),
        [
            (("labels",), "plane", "labels"),
            (("labels",), dict.fromkeys(CIFAR10.labels), "labels"),
            (("labels",), ["a", "b"], "contract"),
            (("contract", "input", "dtype"), "float32", "contract"),
            (("contract",), [], "contract"),
            (("variants", 0, "needs"), None, "needs"),
            (("extra",), 1, "extra"),
        ],
    )
    def test_a_wrong_field(self, keys, value, word):
        assert word in refusal(changed(FIRST, *keys, value=value))

    def test_whatever_a_variant_needed_is_dropped(self):
        manifest = Manifest.parse(json.dumps(changed(FIRST, "variants", 0, "needs", value="avx512_vnni")), FIRST)
        assert "needs" not in manifest.as_json()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_anywhere_is_read_or_refused(data, three_classes):
    values = json.loads((three_classes / "manifest.json").read_text())
    place = values
    while True:
        key = data.draw(st.sampled_from(range(len(place)) if isinstance(place, list) else sorted(place)))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    try:
        manifest = Manifest.parse(json.dumps(values), three_classes)
    except BundleError:
        return
    assert json.loads(manifest.as_json()) == values


@given(text=st.text() | st.text('{}[]",:0123456789.eE+-truefalsnl \\u'))
@settings(max_examples=200, deadline=None)
def test_no_text_is_a_manifest_by_chance(text):
    with pytest.raises(BundleError):
        Manifest.parse(text, Path("manifest.json"))


def test_a_thousand_labels():
    contract = Contract(tuple(f"class {index}" for index in range(1000)), 32)
    variant = Variant("fp32", "model.onnx", "onnx", "fp32", 1, "0" * 64, None, {}, "by hand")
    manifest = Manifest(contract, (variant,), "fp32", "many", {})
    assert Manifest.parse(manifest.as_json(), Path("manifest.json")) == manifest
