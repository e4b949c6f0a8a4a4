"""The bill of materials: CycloneDX for machine learning, of the models, the data, and the packages that made them.

It says for a program what the model card says for a person. cyclonedx-python-lib writes it; a model card is the one
thing that the library has no class for yet, so that part is put in as the schema has it. Tests hold the whole against
the schema; an export does not, as the validator takes seconds to import.
"""

# The decorators of cyclonedx's classes hide their constructors and attributes from pyright.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentScope, ComponentType, Pedigree
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from ..runtime.errors import RunError
from ..runtime.machine import PACKAGES
from ..runtime.manifest import CARD, Manifest
from ..runtime.metrics import wilson_interval
from ..train.nets import layout
from ..train.run import WEIGHTS
from .parity import tested_images
from .provenance import Provenance

SOURCES = {"CIFAR-10": "https://www.cs.toronto.edu/~kriz/cifar.html"}
"""Data sets of these names come from these pages."""

TOOL = "edgecifar"
"""The package that writes this; the names of properties that no standard has begin with it."""

LISTED_LABELS = 20
"""The model's description names all labels where there are at most so many."""


def text(manifest: Manifest, versions: dict[str, str]) -> str:
    """Return the bill of materials of a bundle as JSON; for the same arguments the same bytes.

    Args:
        manifest: the bundle's.
        versions: of the packages that it is exported with; the manifest knows those of the training.

    Raises:
        RunError: the run's record says nothing usable of when the run ended.
    """
    origin = Provenance.parse(manifest.provenance)
    ended = origin.finished or origin.started
    try:
        timestamp = datetime.fromisoformat(ended)
    except (TypeError, ValueError):
        raise RunError(f"The run's record is damaged ({ended!r} is no time): restore it or train again.") from None
    data = _dataset(manifest, origin)
    libraries = _libraries([origin.trained_with, *(origin.resumed or ())], versions)
    model = _model(manifest, origin)
    bom = Bom(
        serial_number=_serial_number(manifest, versions),
        metadata=BomMetaData(
            timestamp=timestamp,
            component=model,
            tools=ToolRepository(
                components=[Component(type=ComponentType.APPLICATION, name=TOOL, version=versions.get(TOOL))]
            ),
        ),
        components=[data, *libraries],
    )
    bom.register_dependency(model, [data, *libraries])
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    document["metadata"]["component"]["modelCard"] = _model_card(manifest, data)
    return json.dumps(document, indent=2) + "\n"


def _serial_number(manifest: Manifest, versions: dict[str, str]) -> uuid.UUID:
    """Return a number that is another for every other content."""
    digest = sha256(json.dumps([manifest.as_json(), versions], sort_keys=True).encode()).hexdigest()
    return uuid.uuid5(uuid.NAMESPACE_OID, digest)


def _model(manifest: Manifest, origin: Provenance) -> Component:
    """Return the net, with the files that hold it as its parts and the checkpoint as what they come from."""
    labels = manifest.contract.labels
    listed = ", ".join(labels) if len(labels) <= LISTED_LABELS else f"{len(labels):,} classes"
    # Whoever trained a net on pictures of their own decides on its licence.
    licenses = [] if origin.dataset.get("origin") else [DisjunctiveLicense(id="MIT")]
    files = [
        Component(
            type=ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref=variant.file,
            name=variant.file,
            description=variant.made_by,
            hashes=[_sha256(variant.sha256)],
            licenses=licenses,
            properties=_properties(variant=variant.name, format=variant.format, precision=variant.precision),
        )
        for variant in manifest.variants
    ]
    checkpoint = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=WEIGHTS,
        name=WEIGHTS,
        hashes=[_sha256(origin.checkpoint_sha256)],
    )
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model",
        name=f"edgecifar {manifest.dataset} classifier",
        version=origin.checkpoint_sha256[:12],
        description=f"Classifies a picture as one of {listed}.",
        licenses=licenses,
        external_references=[ExternalReference(type=ExternalReferenceType.MODEL_CARD, url=XsUri(CARD))],
        components=files,
        pedigree=Pedigree(ancestors=[checkpoint]),
        properties=_properties(recipe=origin.recipe["name"], epochs=f"{origin.epochs_done}", seed=f"{origin.seed}"),
    )


def _dataset(manifest: Manifest, origin: Provenance) -> Component:
    source = SOURCES.get(manifest.dataset)
    return Component(
        type=ComponentType.DATA,
        bom_ref="data",
        name=manifest.dataset,
        description=f"{origin.training_images:,} of its training images were trained on. The hash is over the pixels "
        "and labels of all its images.",
        hashes=[_sha256(origin.dataset["sha256"])],
        external_references=[ExternalReference(type=ExternalReferenceType.WEBSITE, url=XsUri(source))]
        if source
        else [],
    )


def _libraries(training: Iterable[Mapping[str, Any]], export: Mapping[str, str]) -> list[Component]:
    """Return each package in each version that was there. None is part of the bundle, which is what "excluded" says.

    Args:
        training: versions by name, among other things: where it was begun, and wherever it went on.
        export: versions by name.
    """
    uses: dict[tuple[str, str], dict[str, None]] = {}
    for use, versions in (*(("training", where) for where in training), ("export", export)):
        for name in PACKAGES:
            if name in versions and name != TOOL:
                uses.setdefault((name, versions[name]), {})[use] = None
    components = []
    for (name, version), used in uses.items():
        purl = PackageURL("pypi", name=name, version=version)
        components.append(
            Component(
                type=ComponentType.LIBRARY,
                bom_ref=str(purl),
                name=name,
                version=version,
                purl=purl,
                scope=ComponentScope.EXCLUDED,
                properties=[Property(name=f"{TOOL}:installed-for", value=", ".join(used))],
            )
        )
    return components


def _model_card(manifest: Manifest, data: Component) -> dict[str, Any]:
    """Return the card in the words of the schema; accuracy is of each model file, where it was measured."""
    contract = manifest.contract.as_json()
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "classification",
            "architectureFamily": "convolutional neural network",
            "modelArchitecture": layout(Provenance.parse(manifest.provenance).net),
            "datasets": [{"ref": data.bom_ref.value}],
            "inputs": [{"format": _tensor(contract["input"]) + " RGB"}],
            "outputs": [{"format": _tensor(output)} for output in contract["outputs"]],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {
                    "type": "accuracy",
                    "value": f"{variant.accuracy}",
                    "slice": f"{variant.file} on {tested_images(variant.parity):,} images ({manifest.dataset} test)",
                    "confidenceInterval": _interval(variant.accuracy, tested_images(variant.parity)),
                }
                for variant in manifest.variants
                if variant.accuracy is not None
            ]
        },
    }


def _interval(accuracy: float, images: int) -> dict[str, str]:
    """Return the 95 % interval of an accuracy."""
    low, high = wilson_interval(round(accuracy * images), images)
    return {"lowerBound": f"{low:.4f}", "upperBound": f"{high:.4f}"}


def _tensor(described: dict[str, Any]) -> str:
    return f"{described['name']}: {described['dtype']} [{', '.join(map(str, described['shape']))}]"


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _properties(**values: str) -> list[Property]:
    return [Property(name=f"{TOOL}:{name}", value=value) for name, value in values.items()]
