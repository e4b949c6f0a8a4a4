"""Many pictures: by every core of one machine, each exactly once into a file; or on many machines, by Ray Data.

On one machine `classify_into` does all of it. For many there is no engine and no scheduler of ours: Ray reads, spreads,
tries again and writes. `Classify` is what its workers do to a batch, `PackedBundle` how the bundle comes to them, and
`finished` says what an earlier job has done; docs/bulk.md has the ten lines around them.
"""

from __future__ import annotations

import functools
import io
import itertools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import choice
from .bundle import Bundle
from .classifier import BATCH, Classifier, check_choices
from .errors import BundleError, InputError, OutputError, PictureError, shown
from .files import temporary_folder
from .machine import usable_cpus
from .manifest import MANIFEST, SUMS
from .outputs import open_output
from .rows import Result, pyarrow_or_refuse, schema, table_of

if TYPE_CHECKING:
    import pyarrow.fs

    from .classifier import Prediction

log = logging.getLogger("edgecifar")

PARQUET_END = b"PAR1"
"""A Parquet file that is whole ends so."""

UNKNOWN = ("keep", "skip", "error")
"""What may become of a picture that is unlike the training pictures: a prediction that says so, nothing, an error."""


@dataclass(frozen=True)
class Options:
    """How pictures are classified.

    Attributes:
        top_k: how many classes are listed.
        fit: how a picture is made square; None: as in training.
        jobs: processes that decode; None: as many as there are usable cores, where there are many pictures.
        unknown: one of `UNKNOWN`.
    """

    top_k: int = 3
    fit: str | None = None
    jobs: int | None = None
    unknown: str = "keep"

    def __post_init__(self) -> None:
        """Raise an `InputError` where `top_k` is below 1, or there is no such `fit` or `unknown`."""
        check_choices(self.top_k, self.fit)
        if self.unknown not in UNKNOWN:
            raise InputError(f"Unknown pictures cannot be {self.unknown!r}: choose one of {', '.join(UNKNOWN)}.")


@dataclass
class Count:
    """Progress of `classify_into`.

    Attributes:
        done: pictures that have a row now, without those that had one before.
        errors: how many of them are errors.
        earlier: pictures met so far that had a row before.
    """

    done: int = 0
    errors: int = 0
    earlier: int = 0


def results(classifier: Classifier, sources: Iterable[str], options: Options) -> Iterator[Result]:
    """Yield each picture's path and its prediction, or the reason why it has none; in order.

    The log says how many unknown pictures were left out, or that the model cannot tell which are unknown.

    Args:
        classifier: what classifies.
        sources: paths; "-" is standard input. They are taken as they are needed.
        options: how.
    """
    names: list[str] = []

    def noted() -> Iterator[str]:
        for source in sources:
            names.append(source)
            yield source

    if options.unknown != "keep" and classifier.variant.familiarity is None:
        log.warning(
            "%s cannot tell which pictures are unlike the training pictures: none is left out or an error for that.",
            classifier.variant.name,
        )
    stream = classifier.stream(noted(), options.top_k, options.fit, options.jobs or usable_cpus())
    place = skipped = 0
    for result in stream:
        name, place = names[place], place + 1
        if place == BATCH:  # drop those that are done
            del names[:place]
            place = 0
        if options.unknown != "keep" and not isinstance(result, PictureError) and result.known is False:
            if options.unknown == "skip":
                skipped += 1
                continue
            result = _stranger(name, result)
        yield name, result
    if skipped:
        log.info("%s left out, unlike the training pictures.", f"{skipped:,} picture{'s' * (skipped > 1)}")


def _stranger(name: str, prediction: Prediction) -> PictureError:
    return PictureError(
        f"{shown(name)} is unlike the training pictures (familiarity {prediction.familiarity:.3g}): what it "
        "shows is none of the classes, or it was taken in another way."
    )


def classify_into(
    out: str | Path,
    classifier: Classifier,
    sources: str | Path | Iterable[str | Path],
    options: Options,
    *,
    resume: bool = False,
    retry_errors: bool = False,
    progress: Callable[[Count], object] = lambda count: None,
) -> Count:
    """Classify pictures into FILE.jsonl, FILE.csv or a folder of Parquet parts, a row a picture.

    After an error, Ctrl-C or a kill, `resume` continues it: pictures that have a row are left out.

    Args:
        out: where the rows go. Beside them a file of settings says how it was begun.
        classifier: what classifies.
        sources: paths, or one; the rows keep their names.
        options: how; "skip" is no choice for unknown pictures here, since each has a row.
        resume: whether to continue an output that exists; if there is none, it is made.
        retry_errors: whether a resumed job tries pictures again that could not be read before.
        progress: called with the progress after every batch.

    Raises:
        OutputError: `out` is there and `resume` is false, was begun with another bundle, variant, fit, `top_k` or
            `unknown`, is damaged, is being written by another process, or cannot be written.
    """
    if options.unknown == "skip":
        raise OutputError("Every picture has a row in an output: keep unknown pictures, or make them errors.")
    count = Count()
    with open_output(out, settings(classifier, options), resume=resume, retry_errors=retry_errors) as output:
        found = results(classifier, output.remaining(sources), options)
        while batch := list(itertools.islice(found, BATCH)):
            output.write(batch)
            count.done += len(batch)
            count.errors += sum(isinstance(result, PictureError) for _, result in batch)
            count.earlier = output.passed_over
            progress(count)
        count.earlier = output.passed_over
    return count


def settings(classifier: Classifier, options: Options) -> dict[str, Any]:
    """Return the settings that must be the same for an output to be resumed."""
    return {
        "bundle": classifier.bundle.sums[MANIFEST],
        "variant": classifier.variant.name,
        "fit": options.fit or classifier.contract.fit,
        "top_k": options.top_k,
        "unknown": options.unknown,
    }


@dataclass(frozen=True)
class PackedBundle:
    """A bundle that was verified, as bytes that travel to other machines: what one of its variants needs to run.

    Attributes:
        files: the content of each file by its name.
        variant: which variant it is.
    """

    files: dict[str, bytes]
    variant: str

    @classmethod
    def of(
        cls, bundle: str | Path | None = None, variant: str | None = None, key: str | Path | None = None
    ) -> PackedBundle:
        """Verify a bundle, all of it, and pack what a variant needs.

        Args:
            bundle: its folder; by default the one installed with the package.
            variant: by default the one for processors, whatever a worker's processor is: all give the same answers.
            key: a public key; the bundle must be signed with its private key.

        Raises:
            BundleError: it is missing or damaged, or does not give its golden vectors here.
            VariantError: it has no such variant.
            SigningError: the key cannot be used.
        """
        opened = Bundle.open(bundle, key)
        for check in opened.verify(key):
            if not check.passed:
                raise BundleError(f"{opened.folder} does not verify ({check.name}: {check.detail}): copy it again.")
        chosen, _ = choice.choose(opened, "cpu", variant)
        own = {name: opened.file(name) for name in (MANIFEST, SUMS)}
        return cls({**own, chosen.file: opened.read(chosen)}, chosen.name)

    def __repr__(self) -> str:
        return f"<PackedBundle {self.variant}, {sum(map(len, self.files.values())):,} bytes>"

    def classifier(self, provider: str = "cpu", threads: int | None = None) -> Classifier:
        """Return a classifier of it; the arguments are those of `Classifier`, and so is what is raised."""
        with temporary_folder() as folder:
            for name, content in self.files.items():
                (folder / name).write_bytes(content)
            return Classifier(folder, self.variant, provider, threads)


class Classify:
    """Classifies the batches of a `ray.data.Dataset`, for its `map_batches` with batch_format="pyarrow".

    Each worker makes one, and with it one `Classifier` with as many threads as Ray gave the worker processors.
    """

    def __init__(
        self,
        bundle: PackedBundle,
        *,
        top_k: int = 3,
        fit: str | None = None,
        provider: str = "cpu",
        threads: int | None = None,
        filesystem: pyarrow.fs.FileSystem | None = None,
    ) -> None:
        """Load the model.

        Args:
            bundle: from `PackedBundle.of`, which verified it.
            top_k: how many classes are listed.
            fit: how a picture is made square; None: as in training.
            provider: as `Classifier` takes it.
            threads: by default as many as Ray gave the worker processors.
            filesystem: where paths are opened, for batches without bytes; by default what their URI says, or the local
                one.

        Raises:
            InputError, VariantError, ProviderError, ModelError: as `Classifier` and its `predict` say.
        """
        check_choices(top_k, fit)
        self._classifier = bundle.classifier(provider, threads or _threads_of_worker())
        self._top_k = min(top_k, self._classifier.contract.classes)
        self._fit = fit
        self._filesystem = filesystem

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """Return a row for each row of `batch`, in order.

        Args:
            batch: has a column "path", a column "bytes" with the content of picture files, or both. Where there are no
                bytes, the paths are opened, such as "s3://bucket/picture.jpg".

        Returns:
            The columns of `batch` but for "bytes", and those of a prediction: error, label, probability, top, known,
            familiarity. Of a picture that cannot be read all of these but the error are null.

        Raises:
            InputError: it has neither column, or one that is called as one of a prediction.
        """
        if not {"path", "bytes"} & set(batch.column_names):
            raise InputError(
                f"The columns {', '.join(batch.column_names)} hold no pictures: name those with the files' content "
                "'bytes', or those with their paths 'path'."
            )
        if taken := {*schema().names} & {*batch.column_names}:
            raise InputError(f"The batch has columns that a prediction has ({', '.join(sorted(taken))}): rename them.")
        found = table_of(self._classifier.stream(self._pictures(batch), self._top_k, self._fit))
        kept = batch.drop_columns(["bytes"]) if "bytes" in batch.column_names else batch
        for name in found.column_names:
            kept = kept.append_column(found.schema.field(name), found[name])
        return kept

    def _pictures(self, batch: pyarrow.Table) -> Iterator[_Named]:
        rows = len(batch)
        names = batch["path"].to_pylist() if "path" in batch.column_names else [f"picture {i}" for i in range(rows)]
        if "bytes" in batch.column_names:
            for name, content in zip(names, batch["bytes"], strict=True):
                yield _Named(str(name), content.as_py() or b"")
        else:
            for name in names:
                yield _Remote(str(name), self._filesystem)


class _Named(io.BytesIO):
    """The content of a picture file, which messages call by its path."""

    def __init__(self, name: str, content: bytes = b"") -> None:
        super().__init__(content)
        self.name = name


class _Remote(_Named):
    """A file that is opened when it is read, so that one that cannot be opened is a picture that cannot be read."""

    def __init__(self, name: str, filesystem: pyarrow.fs.FileSystem | None) -> None:
        super().__init__(name)
        self._filesystem = filesystem
        self._file: Any = None

    def read(self, size: int | None = -1, /) -> bytes:
        if self._file is None:
            where, path = (self._filesystem, self.name) if self._filesystem else _where(self.name)
            self._file = where.open_input_stream(path)
        return self._file.read(size)


def _where(path: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path on it."""
    from pyarrow import fs

    if "://" not in path:
        return fs.LocalFileSystem(), path
    scheme, rest = path.split("://", 1)
    if scheme == "file":
        return fs.LocalFileSystem(), "/" + rest.partition("/")[2]
    place, mark, options = rest.partition("?")  # such as s3://bucket/picture.jpg?region=eu-central-1
    return _filesystem(f"{scheme}://{place.partition('/')[0]}{mark}{options}"), place


@functools.cache
def _filesystem(uri: str) -> pyarrow.fs.FileSystem:
    """Return the file system of a URI; making one for each picture would take longer than reading it."""
    from pyarrow import fs

    return fs.FileSystem.from_uri(uri)[0]


def _threads_of_worker() -> int | None:
    """Return how many processors Ray gave this worker; None outside Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


def finished(
    folder: str | Path, *, filesystem: pyarrow.fs.FileSystem | None = None, retry_errors: bool = False
) -> set[str]:
    """Return the paths of the pictures that have a row in a folder of Parquet files, which an earlier job wrote.

    A file that a killed job left half-written can be read by nobody; it is renamed, with "_" before its name, so that
    readers of Parquet folders pass over it.

    Args:
        folder: path or URI; where there is none, no picture is finished.
        filesystem: where it is; by default what the URI says, or the local one.
        retry_errors: whether pictures that could not be read are not finished. Their rows stay, and there will be two.

    Raises:
        OutputError: pyarrow is not installed, or a file cannot be read or holds other columns.
    """
    arrow = pyarrow_or_refuse()
    from pyarrow import fs, parquet

    where, path = (filesystem, str(folder)) if filesystem else _where(str(folder))
    done: set[str] = set()
    for info in where.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True)):
        if not info.is_file or not info.base_name.endswith(".parquet") or info.base_name.startswith(("_", ".")):
            continue
        try:
            if not _is_whole(info, where):
                torn = info.path.removesuffix(info.base_name) + "_torn-" + info.base_name
                log.warning("%s is incomplete and was renamed to %s.", info.path, torn)
                where.move(info.path, torn)
                continue
            rows = parquet.read_table(info.path, columns=["path", "error"], filesystem=where)
        except (arrow.ArrowException, OSError) as error:
            raise OutputError(
                f"{info.path} cannot be read as a file of predictions with the columns path and error ({error}): name "
                "a folder of such files, or try again."
            ) from error
        done.update((rows.filter(rows["error"].is_null()) if retry_errors else rows)["path"].to_pylist())
    return done


def _is_whole(info: pyarrow.fs.FileInfo, where: pyarrow.fs.FileSystem) -> bool:
    """Return whether a Parquet file ends as such files do; one that was cut short does not."""
    if info.size < 12:
        return False
    with where.open_input_file(info.path) as file:
        file.seek(info.size - len(PARQUET_END))
        return file.read(len(PARQUET_END)) == PARQUET_END
