"""Which variant of a bundle runs, and why: by the provider and the manifest's figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ProviderError
from .providers import AUTO, first_that_runs

if TYPE_CHECKING:
    from .bundle import Bundle
    from .manifest import Variant
    from .session import Session

GPUS = ("cuda", "tensorrt", "directml", "coreml")
"""Providers that are given half precision, not int8, for which CPUs have instructions; no GPU has been measured yet."""

GPU_PRECISIONS = ("fp16", "fp32")
"""What variants for GPUs have, the fastest first: CUDA's provider of onnxruntime does not take int8's biases."""

MAX_ACCURACY_DROP = 0.002
"""The share of the test images by which the variant that replaces a bundle's default may be less accurate."""


def load(bundle: Bundle, name: str | None, provider: str, threads: int | None = None) -> tuple[Variant, str, Session]:
    """Return the variant called `name`, by default the one that suits the provider, why it is that, and its session.

    Args:
        bundle: where the variants are.
        name: of a variant, or None.
        provider: as `Session` takes it; with "auto" the variant is chosen for the provider that then runs it.
        threads: as `Session` takes it.

    Raises:
        VariantError: the bundle has no such variant, or it needs torch.
        BundleError, ProviderError, ModelError: as `Bundle.load` says.
    """

    def on(candidate: str) -> tuple[Variant, str, Session]:
        variant, reason = choose(bundle, candidate, name)
        if provider == AUTO and candidate == "cuda" and variant.precision not in GPU_PRECISIONS:
            raise ProviderError(f"CUDA does not run {variant.precision}.")  # seconds of starting it are spared
        return variant, reason, bundle.load(variant, candidate, threads)

    return first_that_runs(provider, on)


def choose(bundle: Bundle, provider: str, name: str | None = None) -> tuple[Variant, str]:
    """Return the variant called `name`, by default the one that suits `provider`, and the reason, a sentence.

    On a GPU that is the first fp16, else the first fp32 variant. On a CPU it is the bundle's default, unless that is
    fp16, which CPUs compute by way of fp32, or needs torch. Then it is the smallest ONNX variant of another precision
    that is at most `MAX_ACCURACY_DROP` less accurate; where there is none, the first, which is the most exact.

    Raises:
        VariantError: the bundle has no variant of that name.
    """
    given = bundle.variant(name)
    if name:
        return given, f"The variant {name} was asked for."
    models = [variant for variant in bundle.manifest.variants if variant.is_onnx]
    best = _for_gpu(models) if provider in GPUS else _for_cpu(models, given)
    if best is None and provider in GPUS:
        return given, (
            f"The variant {given.name} is the bundle's default; GPU providers run {' and '.join(GPU_PRECISIONS)}, "
            "which this bundle lacks: export one for them."
        )
    if best is None or best is given:
        return given, f"The variant {given.name} is the bundle's default."
    if not given.is_onnx:
        why = "that needs torch"
    elif provider in GPUS:
        why = f"GPU providers are given {best.precision}, and {given.precision} is for processors"
    else:
        why = "half precision is for GPUs"
    return best, f"The variant {best.name} takes the place of the default, {given.name}: {why}."


def _for_gpu(models: list[Variant]) -> Variant | None:
    for precision in GPU_PRECISIONS:
        for variant in models:
            if variant.precision == precision:
                return variant
    return None


def _for_cpu(models: list[Variant], default: Variant) -> Variant | None:
    suited = [variant for variant in models if variant.precision != "fp16"]
    if default in suited or not suited:
        return default
    least = (default.accuracy or 2) - MAX_ACCURACY_DROP  # nothing is close to an accuracy that is not known
    close = [variant for variant in suited if (variant.accuracy or 0) >= least]
    return min(close, key=lambda variant: variant.bytes) if close else suited[0]
