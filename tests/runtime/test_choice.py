"""Each provider gets the variant that suits it, loaded once, and says why; a user may ask for another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgecifar.runtime import Bundle, Classifier
from edgecifar.runtime.choice import choose
from edgecifar.runtime.errors import ProviderError, VariantError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.fixture
def bundle_of(tiny):
    """Describe a bundle by its variants, `(name, precision, bytes, accuracy)`, the last one the default."""
    opened = Bundle.open(tiny)

    def make(*described: tuple[str, str, int, float | None], **changes) -> Bundle:
        variants = []
        for name, precision, size, accuracy in described:
            facts = {"precision": precision, "bytes": size, "accuracy": accuracy, **changes}
            variants.append(replace(opened.manifest.variants[0], name=name, file=f"model.{name}.onnx", **facts))
        manifest = replace(opened.manifest, variants=tuple(variants), default_variant=variants[-1].name)
        return replace(opened, manifest=manifest)

    return make


FP32, FP16 = ("fp32", "fp32", 80, 0.9), ("fp16", "fp16", 40, 0.9)
TINY, EDGE = ("tiny", "int8", 1, 0.88), ("edge", "int8", 3, 0.899)


def name_of(bundle: Bundle, provider: str, name: str | None = None) -> str:
    variant, reason = choose(bundle, provider, name)
    assert variant.name in reason
    return variant.name


@pytest.mark.parametrize("provider", ["cpu", "xnnpack", "openvino"])
class TestProcessors:
    def test_the_default(self, bundle_of, provider):
        assert name_of(bundle_of(FP32, FP16, TINY, EDGE), provider) == "edge"
        assert "default" in choose(bundle_of(FP32, FP16, TINY, EDGE), provider)[1]

    def test_in_place_of_half_precision_the_smallest_that_is_as_good(self, bundle_of, provider):
        bundle = bundle_of(FP32, TINY, EDGE, FP16)
        assert name_of(bundle, provider) == "edge"
        assert "takes the place of the default, fp16" in choose(bundle, provider)[1]
        assert name_of(bundle_of(FP32, TINY, FP16), provider) == "fp32"  # tiny is much less accurate

    def test_where_accuracies_are_not_known_the_most_exact(self, bundle_of, provider):
        assert name_of(bundle_of(FP32, TINY, EDGE, FP16, accuracy=None), provider) == "fp32"

    def test_half_precision_only_where_there_is_nothing_else(self, bundle_of, provider):
        assert name_of(bundle_of(FP16), provider) == "fp16"

    def test_torch_formats_take_no_place(self, bundle_of, provider):
        bundle = bundle_of(FP32, FP16)
        pt2 = replace(bundle.manifest.variants[0], name="pt2", format="pt2", file="model.pt2", bytes=1)
        one = replace(bundle, manifest=replace(bundle.manifest, variants=(pt2, *bundle.manifest.variants)))
        assert name_of(one, provider) == "fp32"
        default = replace(one, manifest=replace(one.manifest, default_variant="pt2"))
        assert name_of(default, provider) == "fp32"
        assert "needs torch" in choose(default, provider)[1]

    def test_one_that_is_asked_for(self, bundle_of, provider):
        assert name_of(bundle_of(FP32, FP16, EDGE), provider, "fp16") == "fp16"
        assert "asked for" in choose(bundle_of(FP32, FP16, EDGE), provider, "fp16")[1]
        with pytest.raises(VariantError, match=r"int4: choose one of fp32, fp16, edge"):
            choose(bundle_of(FP32, FP16, EDGE), provider, "int4")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "directml", "coreml"])
class TestGpus:
    def test_half_precision_else_single_else_the_default(self, bundle_of, provider):
        assert name_of(bundle_of(FP32, FP16, EDGE), provider) == "fp16"
        assert "fp16, and int8 is for processors" in choose(bundle_of(FP32, FP16, EDGE), provider)[1]
        assert name_of(bundle_of(FP32, TINY, EDGE), provider) == "fp32"
        assert name_of(bundle_of(TINY, EDGE), provider) == "edge"

    def test_one_that_is_asked_for(self, bundle_of, provider):
        assert name_of(bundle_of(FP32, FP16, EDGE), provider, "edge") == "edge"


class TestLoading:
    @pytest.fixture
    def reads(self, monkeypatch) -> list[str]:
        """The name of every model file that is read."""
        found, read = [], Path.read_bytes

        def count(path: Path) -> bytes:
            if path.suffix == ".onnx":
                found.append(path.name)
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", count)
        return found

    @pytest.fixture
    def folder(self, resealed) -> Path:
        """The tiny bundle with the variants fp16, for GPUs, and edge, the default."""

        def change(values: dict) -> None:
            values["variants"][0].update(name="fp16", precision="fp16")
            values["variants"][1].update(precision="int8")
            values["default_variant"] = "edge"

        return resealed(manifest=change)

    def test_on_the_processor_it_is_read_and_loaded_once(self, folder, fake, reads):
        ort = fake(["AzureExecutionProvider", CPU])
        classifier = Classifier(folder)
        assert (classifier.variant.name, classifier.provider) == ("edge", "cpu")
        assert classifier.reason == "The variant edge is the bundle's default."
        assert [name for name, _ in ort.tried] == [CPU]
        assert reads == ["model.edge.onnx"]

    def test_cuda_is_found_first_and_then_its_variant(self, folder, fake, reads):
        ort = fake([CUDA, CPU])
        classifier = Classifier(folder)
        assert (classifier.variant.name, classifier.provider) == ("fp16", "cuda")
        assert classifier.reason.endswith("GPU providers are given fp16, and int8 is for processors.")
        assert [name for name, _ in ort.tried] == [CUDA]
        assert reads == ["model.onnx"]

    def test_where_cuda_does_not_start_the_processors(self, folder, fake):
        ort = fake([CUDA, CPU], fails={CUDA: RuntimeError("no driver")})
        classifier = Classifier(folder)
        assert (classifier.variant.name, classifier.provider) == ("edge", "cpu")
        assert classifier.reason == "The variant edge is the bundle's default."
        assert [name for name, _ in ort.tried] == [CUDA, CPU]

    def test_a_provider_that_is_asked_for_is_never_replaced(self, folder, fake):
        ort = fake([CUDA, CPU], fails={CUDA: RuntimeError("no driver")})
        with pytest.raises(ProviderError, match="The provider cuda could not be started here"):
            Classifier(folder, provider="cuda")
        assert [name for name, _ in ort.tried] == [CUDA]

    def test_int8_alone_does_not_even_start_cuda(self, folder, fake):
        """Which takes seconds; who asks for CUDA is told by CUDA itself."""
        ort = fake([CUDA, CPU])
        assert Classifier(folder, "edge").provider == "cpu"
        assert [name for name, _ in ort.tried] == [CPU]
        assert Classifier(folder, "edge", "cuda").provider == "cuda"

    def test_a_variant_that_is_asked_for_runs_anywhere(self, folder, fake):
        fake([CUDA, CPU])
        assert Classifier(folder, "fp16", "cpu").variant.name == "fp16"
