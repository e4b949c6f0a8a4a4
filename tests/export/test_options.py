"""What an export is asked for is checked before it begins, and where a net comes from is said once."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from edgecifar.export.options import ExportOptions
from edgecifar.export.provenance import Provenance
from edgecifar.runtime.errors import BundleError
from edgecifar.train.record import Conditions


class TestOptions:
    def test_the_most_exact_first_whatever_the_order(self):
        options = ExportOptions(formats=("pt2", "onnx"), variants=("tiny", "fp16", "fp32"))
        assert options.wanted == ("fp32", "fp16", "tiny", "pt2")

    def test_variants_are_of_onnx(self):
        assert ExportOptions(formats=("torchscript",), variants=("fp32", "edge")).wanted == ("torchscript",)

    @pytest.mark.parametrize(
        ("wrong", "word"),
        [
            ({"formats": ()}, "none"),
            ({"formats": ("h5",)}, "h5"),
            ({"variants": ("fp32", "huge")}, "huge"),
            ({"budget": -1.0}, "budget"),
            ({"budget": float("nan")}, "budget"),
            ({"fine_tune": -1}, "fine-tuning"),
            ({"max_bytes": 1_000}, "size"),
            ({"max_bytes": 1_000, "variants": ("edge", "tiny")}, "size"),
            ({"max_bytes": 1_000, "variants": ("edge",), "formats": ("pt2",)}, "size"),
        ],
    )
    def test_what_cannot_be_is_refused(self, wrong, word):
        with pytest.raises(ValueError, match=word):
            ExportOptions(**wrong)


class TestProvenance:
    def test_what_is_written_is_read(self, run):
        made = Provenance.of(run.record)
        assert Provenance.parse(json.loads(json.dumps(made.as_json()))) == made
        assert "selection_run" not in made.as_json()

    def test_where_a_run_went_on_is_said(self, run):
        elsewhere = Conditions("cuda:0", "another machine", "tf32", processes=1, threads=1, torch="3.1")
        made = Provenance.of(replace(run.record, resumed=((1, elsewhere),))).as_json()
        assert made["resumed"] == [{"after_epochs": 1, **asdict(elsewhere)}]
        assert made["trained_with"]["hardware"] == run.record.conditions.hardware
        assert "resumed" not in Provenance.of(run.record).as_json()

    def test_the_selection_run_under_its_earlier_name(self, run):
        followed = replace(Provenance.of(run.record), selection_run={"temperature": 1.5})
        values = followed.as_json()
        values["trial"] = values.pop("selection_run")
        assert Provenance.parse(values) == followed

    def test_of_the_installed_bundle(self):
        from edgecifar.runtime.bundle import Bundle

        assert Provenance.parse(Bundle.open().manifest.provenance).dataset["name"] == "CIFAR-10"

    def test_what_lacks_something(self, run):
        values = Provenance.of(run.record).as_json()
        del values["seed"]
        with pytest.raises(BundleError, match="lacks seed"):
            Provenance.parse(values)
