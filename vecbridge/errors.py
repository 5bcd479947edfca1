"""Every error that vecbridge raises on purpose.

VecbridgeError
├── InputError (also ValueError)      what you passed cannot be used; nothing was sent or changed
│   ├── DimensionMismatch             vectors of another length than the collection's
│   ├── VectorError                   NaN, infinity, zero under cosine, too large or small for half precision
│   ├── ModelMismatch                 vectors of another model than the collection's
│   ├── MetadataError                 metadata that JSON cannot hold
│   ├── FilterError                   an unknown operator or an operand it cannot take
│   ├── UrlError                      a store URL that names nothing
│   └── SourceError                   a corpus file that cannot be read; names file and line
├── PlanError                         no layout fits; carries the refused candidates
├── MissingExtra (also ImportError)   an optional package is absent; names the extra to install
├── CollectionExists                  create() of a name that is taken
├── CollectionNotFound (also KeyError)
├── ManifestError                     a collection that does not look as its manifest says
├── EmbedderError                     the embedding API refused or failed
├── TooManyRejects                    a run was stopped: more inputs were rejected than it bears with
└── StoreError                        the store refused or failed
    ├── Unavailable                   not reachable, connection lost, still starting
    ├── Forbidden                     the user's rights do not suffice; carries the SQL to run
    ├── FeatureMissing                feature, version found, version needed
    ├── Busy                          another process holds what is needed
    ├── LayoutChanged                 the collection was laid out anew meanwhile; a Collection opens it again
    └── IndexFailure                  an index could not be built, is invalid, or is not used

RecallMissed (a UserWarning)          a collection finds less than was asked for when it was made
"""

from __future__ import annotations


class VecbridgeError(Exception):
    """Base of all errors raised on purpose; the text is a sentence for the user."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class InputError(VecbridgeError, ValueError):
    """What was passed cannot be used; nothing was sent or changed."""


class DimensionMismatch(InputError):
    """Vectors of another length than the collection's."""


class VectorError(InputError):
    """A vector holds a value that the store could not keep or search."""


class ModelMismatch(InputError):
    """Vectors of another model than the collection's: distances would be meaningless."""


class MetadataError(InputError):
    """Metadata that JSON, and with it a store, cannot hold."""


class FilterError(InputError):
    """A filter with an unknown operator or an operand that it cannot take."""


class UrlError(InputError):
    """A store URL that names nothing known."""


class SourceError(InputError):
    """A corpus file that cannot be read; the text names file and line."""


class PlanError(VecbridgeError):
    """No layout fits; the text lists every refused candidate with its reason."""


class MissingExtra(VecbridgeError, ImportError):
    """An optional package is absent; the text names the extra to install."""


class CollectionExists(VecbridgeError):
    """A collection of this name is there already."""


class CollectionNotFound(VecbridgeError, KeyError):
    """No collection of this name."""


class ManifestError(VecbridgeError):
    """A collection does not look as its manifest says, or the manifest is of a newer format."""


class EmbedderError(VecbridgeError):
    """The embedding model or API refused or failed.

    `provider`: the profile's name. `status`: of HTTP, None where no answer came. `code`, `parameter`,
    `detail` (its message), `request_id`: as the server says them, None where it does not. `remedy`: what the
    provider's documentation says to do. All of it is in the text, and none of it holds a key.
    """

    def __init__(
        self,
        text: str,
        *,
        provider: str | None = None,
        status: int | None = None,
        code: str | None = None,
        parameter: str | None = None,
        detail: str | None = None,
        request_id: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(text)
        self.provider = provider
        self.status = status
        self.code = code
        self.parameter = parameter
        self.detail = detail
        self.request_id = request_id
        self.remedy = remedy


class TooManyRejects(VecbridgeError):
    """A run was stopped because more inputs were rejected than it bears with."""


class StoreError(VecbridgeError):
    """The store refused or failed; `__cause__` holds the driver's error."""


class Unavailable(StoreError):
    """The store cannot be reached, or the connection was lost."""


class Forbidden(StoreError):
    """The user's rights do not suffice; the text holds the statement that an administrator can run."""


class FeatureMissing(StoreError):
    """The server is too old for what is asked: feature, version found, version needed."""


class Busy(StoreError):
    """Another process holds what is needed."""


class LayoutChanged(StoreError):
    """The collection was laid out anew since it was opened: what is known of its layout no longer holds."""


class RecallMissed(UserWarning):
    """A collection finds less than was asked for when it was made."""


class IndexFailure(StoreError):
    """An index could not be built, is invalid, or is not used by the collection's own query."""
