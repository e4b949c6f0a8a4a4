"""What `edgecifar info` says of a run folder, a bundle or an ONNX file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..runtime.errors import EdgecifarError, shown
from ..runtime.paths import kind_of
from .display import json_text

if TYPE_CHECKING:
    from ..runtime.contract import Contract
    from ..train.record import Conditions


def describe_model(model: Path | None, as_json: bool) -> str:
    """Return what `edgecifar info` prints of a run folder, an ONNX file or a bundle, by default the installed one.

    Raises:
        EdgecifarError: it is none of them, or damaged.
    """
    kind = "bundle" if model is None else kind_of(model)
    if model is None or kind == "bundle":
        return _bundle_text(model, as_json)
    if kind == "run":
        return _run_text(model, as_json)
    if kind == "onnx":
        return _onnx_text(model, as_json)
    raise EdgecifarError(f"{model} does not describe itself: name the bundle that it is in.")


def _bundle_text(model: Path | None, as_json: bool) -> str:
    from ..runtime.bundle import Bundle
    from ..runtime.choice import choose

    bundle = Bundle.open(model)
    chosen = {provider: choose(bundle, provider) for provider in ("cpu", "cuda")}
    if as_json:
        choices = {where: {"variant": variant.name, "reason": reason} for where, (variant, reason) in chosen.items()}
        manifest = json.loads(bundle.manifest.as_json())
        return json_text({"bundle": str(bundle.folder), "chosen_here": choices, **manifest})
    manifest, contract = bundle.manifest, bundle.contract
    lines = [
        f"{_shown(str(bundle.folder))}: a classifier trained on {manifest.dataset}",
        f"labels: {', '.join(manifest.labels)}",
        _input(contract),
        *(_output(contract, name) for name in contract.output_names),
        "",
        f"{'variant':<12} {'file':<22} {'precision':<9} {'bytes':>11} {'accuracy':>9}  same class as the net",
    ]
    for v in manifest.variants:
        accuracy = "—" if v.accuracy is None else f"{100 * v.accuracy:.2f} %"
        agree = f"{_count(v.parity.get('agree'))} of {_count(v.parity.get('images'))}"
        note = "  (default)" if v.name == manifest.default_variant else ""
        lines.append(f"{v.name:<12} {v.file:<22} {v.precision:<9} {v.bytes:>11,} {accuracy:>9}  {agree}{note}")
    if contract.familiarity_name is not None:
        known = [
            f"{v.name} {v.familiarity.threshold:.3f}" if v.familiarity else f"{v.name} none (too few held-out pictures)"
            for v in manifest.variants
            if v.is_onnx
        ]
        lines += ["", f"a picture is unknown where its {contract.familiarity_name} is below: {', '.join(known)}"]
    lines += ["", *(f"on {provider}: {reason}" for provider, (_, reason) in chosen.items())]
    origin = manifest.provenance
    recipe: dict[str, Any] = origin["recipe"] if isinstance(origin.get("recipe"), dict) else {}
    lines += [
        "",
        f"trained: recipe {recipe.get('name')}, {origin.get('epochs_done')} of {recipe.get('epochs')} epochs, seed "
        f"{origin.get('seed')}, finished {origin.get('finished') or 'not yet'}",
        f"checkpoint: sha256 {origin.get('checkpoint_sha256')}",
    ]
    return "\n".join(lines)


def _input(contract: Contract) -> str:
    shape = ", ".join(map(str, contract.picture_shape))
    return f"input:  {contract.input_name}, uint8 [batch, {shape}] RGB, made square by {contract.fit}"


def _output(contract: Contract, name: str) -> str:
    return f"output: {name}, float32 [{', '.join(map(str, ('batch', *contract.output_shapes[name])))}]"


def _count(value: Any) -> str:
    """Return a number of a manifest whose type nobody checked."""
    return f"{value:,}" if isinstance(value, int) else "—"


def _run_text(folder: Path, as_json: bool) -> str:
    from ..runtime.metrics import wilson_interval
    from ..train.nets import make_net, summarise
    from ..train.run import Run

    record = Run(folder).record
    if as_json:
        return json_text(record.as_json())
    recipe, contract, where = record.recipe, record.contract, record.conditions
    lines = [
        f"{summarise(make_net(recipe.net, contract), contract.size)}\n",
        f"recipe {recipe.name}: {record.epochs_done} of {recipe.epochs} epochs, batch size {recipe.batch_size}, "
        f"{recipe.optimizer} at {recipe.lr:g}, dropout {recipe.dropout:g}, seed {record.seed}",
        f"data: {record.dataset.name}; on {where.hardware} ({where.device}); {record.status}",
    ]
    lines += [f"went on after epoch {epochs} on {_conditions(elsewhere)}" for epochs, elsewhere in record.resumed]
    teachers: list[dict[str, Any]] = record.distillation["teachers"] if record.distillation else []
    lines += [f"learnt from {one.get('folder')}, recipe {one.get('recipe', {}).get('name')}" for one in teachers]
    if begun := record.begun_from:
        lines.append(f"begun with the weights of {begun.get('folder')}, recipe {begun.get('recipe')}")
    if record.test:
        low, high = wilson_interval(round(record.test["accuracy"] * record.test["images"]), record.test["images"])
        lines.append(
            f"test accuracy: {100 * record.test['accuracy']:.2f} % of {record.test['images']:,} images (95 % interval "
            f"{100 * low:.1f} to {100 * high:.1f} %)"
        )
        if "accuracy_flips_averaged" in record.test:
            lines.append(f"with flips averaged: {100 * record.test['accuracy_flips_averaged']:.2f} %")
    return "\n".join(lines)


def _conditions(where: Conditions) -> str:
    """Return where a run went on; older runs do not say all of it."""
    known = {"torch": where.torch, "threads": where.threads, "processes": where.processes}
    details = [where.precision, *(f"{name} {value}" for name, value in known.items() if value is not None)]
    return ", ".join([f"{where.hardware} ({where.device})", *filter(None, details)])


def _onnx_text(path: Path, as_json: bool) -> str:
    from ..runtime.session import Session

    session = Session(path.read_bytes(), provider="cpu", name=str(path))
    described, contract = session.metadata(), session.contract
    if as_json:
        return json_text({"model": str(path), "bytes": path.stat().st_size, **described})
    lines = [
        f"{_shown(str(path))}: an ONNX model, {path.stat().st_size:,} bytes",
        f"labels: {_shown(', '.join(contract.labels))}",
        _input(contract),
        *(_output(contract, name) for name in contract.output_names),
    ]
    for key, value in described.items():
        if key in ("contract", "labels"):
            continue
        inner = cast("dict[str, Any]", value) if isinstance(value, dict) else None
        lines += [f"{key}: {_shown(value)}"] if inner is None else [f"{key}:", *_indented(inner)]
    return "\n".join(lines)


def _indented(values: dict[str, Any]) -> list[str]:
    return [f"  {_shown(name)}: {_shown(value)}" for name, value in values.items()]


def _shown(value: Any) -> str:
    """Return a value of a file's metadata so that it cannot steer a terminal."""
    return shown(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
