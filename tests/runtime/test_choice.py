"""Each provider and processor gets the variant that suits it, loaded once, and says why; a user may ask for another."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edgecifar.runtime import Bundle, Classifier, machine
from edgecifar.runtime.choice import choose
from edgecifar.runtime.errors import BundleError, ProviderError, VariantError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
VNNI = "avx_vnni|avx512_vnni|asimddp"


@pytest.fixture
def bundle_of(tiny):
    """Describe a bundle by its variants, `(name, precision, bytes, accuracy, needs)`, the last one the default."""
    opened = Bundle.open(tiny)

    def make(*described: tuple[str, str, int, float | None, str], **changes) -> Bundle:
        variants = []
        for name, precision, size, accuracy, needs in described:
            facts = {"precision": precision, "bytes": size, "accuracy": accuracy, "needs": needs, **changes}
            variants.append(replace(opened.manifest.variants[0], name=name, file=f"model.{name}.onnx", **facts))
        manifest = replace(opened.manifest, variants=tuple(variants), default_variant=variants[-1].name)
        return replace(opened, manifest=manifest)

    return make


@pytest.fixture
def processor(monkeypatch):
    """Let the processor have these features alone."""
    return lambda *features: monkeypatch.setattr(machine, "cpu_info", lambda: ("a processor", frozenset(features)))


FP32, FP16 = ("fp32", "fp32", 80, 0.9, "any"), ("fp16", "fp16", 40, 0.9, "any")
TINY, EDGE, FULL = ("tiny", "int8", 1, 0.88, "any"), ("edge", "int8", 3, 0.899, "any"), ("full", "int8", 2, 0.9, VNNI)


def names(bundle: Bundle, provider: str, name: str | None = None) -> tuple[str, str]:
    variant, reason = choose(bundle, provider, name)
    return variant.name, reason


@pytest.mark.parametrize("provider", ["cpu", "xnnpack", "openvino"])
class TestProcessors:
    def test_the_default(self, bundle_of, provider, monkeypatch):
        monkeypatch.setattr(machine, "cpu_info", lambda: pytest.fail("read, and nothing hangs on it"))
        assert names(bundle_of(FP32, FP16, TINY, EDGE), provider) == (
            "edge",
            "The variant edge is the bundle's default.",
        )

    @pytest.mark.parametrize("feature", VNNI.split("|"))
    def test_one_of_what_the_default_needs_is_enough(self, bundle_of, processor, provider, feature):
        processor("avx2", feature)
        assert names(bundle_of(FP32, EDGE, FULL), provider) == ("full", "The variant full is the bundle's default.")

    def test_where_its_needs_are_not_met_the_smallest_that_is_as_good(self, bundle_of, processor, provider):
        processor("avx2", "avx512f")
        assert names(bundle_of(FP32, FP16, TINY, EDGE, FULL), provider) == (
            "edge",
            "The variant edge takes the place of the default, full: that needs avx_vnni or avx512_vnni or asimddp, "
            "which this processor lacks.",
        )

    def test_what_is_much_less_accurate_takes_no_place(self, bundle_of, processor, provider):
        processor("avx2")
        assert names(bundle_of(FP32, FP16, TINY, FULL), provider)[0] == "fp32"

    def test_where_accuracies_are_not_known_the_most_exact(self, bundle_of, processor, provider):
        processor("avx2")
        assert names(bundle_of(FP32, FP16, TINY, EDGE, FULL, accuracy=None), provider)[0] == "fp32"

    def test_what_takes_its_place_has_what_it_needs(self, bundle_of, processor, provider):
        processor("avx2")
        small = ("small", "int8", 1, 0.9, "avx512f|amx_int8")
        assert names(bundle_of(FP32, small, FULL), provider)[0] == "fp32"
        processor("amx_int8")
        assert names(bundle_of(FP32, small, FULL), provider)[0] == "small"

    def test_where_nothing_fits_the_default_all_the_same(self, bundle_of, processor, provider):
        processor("avx2")
        assert names(bundle_of(FP16, FULL), provider) == (
            "full",
            "The variant full is the bundle's default; it needs avx_vnni or avx512_vnni or asimddp, which this "
            "processor lacks: its answers may differ.",
        )

    def test_a_system_that_tells_no_features(self, bundle_of, processor, provider):
        processor()
        name, reason = names(bundle_of(FP32, FULL), provider)
        assert name == "fp32"
        assert reason.endswith("asimddp, which this system does not tell of.")

    def test_half_precision_only_where_there_is_nothing_else(self, bundle_of, provider):
        assert names(bundle_of(FP32, FP16), provider) == (
            "fp32",
            "The variant fp32 takes the place of the default, fp16: half precision is for GPUs.",
        )
        assert names(bundle_of(FP16), provider) == ("fp16", "The variant fp16 is the bundle's default.")

    def test_torch_formats_take_no_place(self, bundle_of, processor, provider):
        processor("avx2")
        bundle = bundle_of(FP32, FULL)
        pt2 = replace(bundle.manifest.variants[0], name="pt2", format="pt2", file="model.pt2", bytes=1)
        one = replace(bundle, manifest=replace(bundle.manifest, variants=(pt2, *bundle.manifest.variants)))
        assert names(one, provider)[0] == "fp32"
        assert names(replace(one, manifest=replace(one.manifest, default_variant="pt2")), provider) == (
            "fp32",
            "The variant fp32 takes the place of the default, pt2: that needs torch.",
        )

    def test_one_that_is_asked_for(self, bundle_of, processor, provider):
        processor("avx2")
        bundle = bundle_of(FP32, FP16, EDGE, FULL)
        assert names(bundle, provider, "fp16") == ("fp16", "The variant fp16 was asked for.")
        assert names(bundle, provider, "full") == (
            "full",
            "The variant full was asked for; it needs avx_vnni or avx512_vnni or asimddp, which this processor lacks: "
            "its answers may differ.",
        )
        with pytest.raises(VariantError, match=r"no variant called int4: choose one of fp32, fp16, edge, full\.$"):
            choose(bundle, provider, "int4")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "directml", "coreml"])
class TestGpus:
    def test_half_precision_else_single(self, bundle_of, provider):
        assert names(bundle_of(FP32, FP16, EDGE), provider) == (
            "fp16",
            "The variant fp16 takes the place of the default, edge: GPU providers are given fp16, and int8 is for "
            "processors.",
        )
        assert names(bundle_of(FP32, TINY, EDGE), provider)[0] == "fp32"

    def test_else_the_default_whatever_processors_need_for_it(self, bundle_of, processor, provider):
        processor("avx2")
        assert names(bundle_of(EDGE, FULL), provider) == ("full", "The variant full is the bundle's default.")

    def test_one_that_is_asked_for(self, bundle_of, processor, provider):
        processor("avx2")
        bundle = bundle_of(FP32, FP16, FULL)
        assert names(bundle, provider, "full") == ("full", "The variant full was asked for.")


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
        with pytest.raises(ProviderError, match="The provider cuda cannot run"):
            Classifier(folder, provider="cuda")
        assert [name for name, _ in ort.tried] == [CUDA]

    def test_a_variant_that_is_asked_for_runs_anywhere(self, folder, fake):
        fake([CUDA, CPU])
        assert Classifier(folder, "edge").provider == "cuda"
        assert Classifier(folder, "fp16", "cpu").variant.name == "fp16"


class TestNeeds:
    @pytest.fixture
    def needing(self, resealed):
        """Make a tiny bundle whose edge variant has these needs."""
        return lambda needs: resealed(manifest=lambda values: values["variants"][1].update(needs=needs))

    @pytest.mark.parametrize("needs", ["", "|", "any|", "AVX2", "avx2 avx512_vnni", "avx2||avx_vnni", "avx2\n"])
    def test_what_cannot_be_read_is_damage(self, needing, needs):
        with pytest.raises(
            BundleError, match=r"manifest\.json is damaged \(variant 'edge' needs what no processor has"
        ):
            Bundle.open(needing(needs))

    def test_what_is_lacking_is_said_where_answers_are_right_all_the_same(self, needing, processor):
        folder = needing(VNNI)
        processor("avx2")
        (check,) = (check for check in Bundle.open(folder).verify() if check.name == "golden vectors of edge")
        assert check.passed
        assert check.detail.endswith("; it needs avx_vnni or avx512_vnni or asimddp, which this processor lacks")
        processor("avx_vnni")
        (check,) = (check for check in Bundle.open(folder).verify() if check.name == "golden vectors of edge")
        assert "needs" not in check.detail

    def test_and_where_they_are_wrong(self, needing, processor, resealed):
        folder = needing(VNNI)
        shutil.copy(folder / "model.onnx", folder / "model.edge.onnx")
        digest, size = Bundle.open(folder).variant("fp32").sha256, (folder / "model.onnx").stat().st_size
        resealed(manifest=lambda values: values["variants"][1].update(sha256=digest, bytes=size))
        processor("avx2")
        (check,) = (check for check in Bundle.open(folder).verify() if check.name == "golden vectors of edge")
        assert not check.passed
        assert check.detail.startswith("differ by ")
        assert check.detail.endswith(
            "on this machine; it needs avx_vnni or avx512_vnni or asimddp, which this processor lacks"
        )
