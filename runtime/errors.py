"""Every failure that edgecifar knows, as one tree of exceptions; the command line catches its root.

    EdgecifarError
    ├── DataError        the data set is missing, incomplete or corrupt
    ├── RunError         a run folder or its checkpoint cannot be used, or training cannot go on
    ├── ModelError       a model file cannot be loaded, or is of another net
    ├── BundleError      a bundle is missing, damaged or of an unknown schema
    ├── SigningError     a key cannot be used to sign or to verify, or what does so is not installed
    ├── VariantError     the bundle has no such variant
    ├── ParityError      an exported model does not agree with the net it was made from
    ├── PictureError     a picture cannot be read
    ├── InputError       an array given to the classifier has another dtype or shape (a ValueError too)
    ├── ProviderError    an execution provider is unknown or cannot run here
    └── OutputError      a file or folder cannot be written, or would be overwritten

The message of each is one sentence, or two, that says what is wrong and what to do, in the library's terms.
"""

from __future__ import annotations


class EdgecifarError(Exception):
    """Root of the tree: a failure that a person can understand and mend.

    Attributes:
        option: the parameter of the library, such as "replace", that mends it with another value; the command line adds
            its flag to the sentence. None where there is none.
    """

    def __init__(self, message: str = "", *, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class DataError(EdgecifarError):
    """The data set is missing, incomplete or corrupt."""


class RunError(EdgecifarError):
    """A run folder or its checkpoint cannot be used, or training cannot go on."""


class ModelError(EdgecifarError):
    """A model file cannot be loaded, or is of another net."""


class BundleError(EdgecifarError):
    """A bundle is missing, damaged or of an unknown schema."""


class SigningError(EdgecifarError):
    """A key cannot be used to sign or to verify, or what does so is not installed."""


class VariantError(EdgecifarError):
    """The bundle has no such variant."""


class ParityError(EdgecifarError):
    """An exported model does not agree with the net it was made from."""


class PictureError(EdgecifarError):
    """A picture cannot be read."""


class InputError(EdgecifarError, ValueError):
    """An array given to the classifier has another dtype or shape than its contract says."""


class ProviderError(EdgecifarError):
    """An execution provider is unknown or cannot run here."""


class OutputError(EdgecifarError):
    """A file or folder cannot be written, or would be overwritten."""


def shown(name: str) -> str:
    """Return a name as messages have it, so that it cannot steer a terminal."""
    return name if name.isprintable() else ascii(name)
