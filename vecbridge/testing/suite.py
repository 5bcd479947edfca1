"""The whole contract of a store in one class."""

from __future__ import annotations

from .exchanging import ExchangeTests
from .filtering import FilterTests
from .lifecycle import LifecycleTests
from .reading import ReadingTests
from .records import RecordTests
from .refusals import RefusalTests
from .searching import SearchTests
from .sharing import SharingTests
from .succession import SuccessionTests


class StoreSuite(
    LifecycleTests,
    RecordTests,
    ReadingTests,
    SearchTests,
    FilterTests,
    RefusalTests,
    SharingTests,
    SuccessionTests,
    ExchangeTests,
):
    """Every test that a store must pass. Override the fixture `places`; list known failures in `expected`.

    Parts can be subclassed alone: `LifecycleTests`, `RecordTests`, `ReadingTests`, `SearchTests`,
    `FilterTests`, `RefusalTests`, `SharingTests`, `SuccessionTests`,
    `ExchangeTests`.
    """
