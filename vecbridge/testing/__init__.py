"""The contract of a store, as tests: subclass `StoreSuite`, say where a fresh place is, run pytest.

    from vecbridge.testing import StoreSuite

    class TestMyStore(StoreSuite):
        @pytest.fixture(scope="class")
        @classmethod
        def places(cls, tmp_path_factory):
            return lambda: f"mystore:{tmp_path_factory.mktemp('store')}"

Needs the extra `testing` (pytest and Hypothesis). `oracle` is the brute force that results are compared with,
`strategies` makes hostile input, `machine` plays random calls against a dict.
"""

import pytest

pytest.register_assert_rewrite(
    "vecbridge.testing.base",
    "vecbridge.testing.exchanging",
    "vecbridge.testing.lifecycle",
    "vecbridge.testing.filtering",
    "vecbridge.testing.machine",
    "vecbridge.testing.oracle",
    "vecbridge.testing.reading",
    "vecbridge.testing.records",
    "vecbridge.testing.refusals",
    "vecbridge.testing.searching",
    "vecbridge.testing.sharing",
    "vecbridge.testing.succession",
)

from .layouts import LAYOUTS, allowed  # noqa: E402 - asserts are rewritten only in modules imported afterwards
from .suite import StoreSuite  # noqa: E402 - as above

__all__ = ["LAYOUTS", "StoreSuite", "allowed"]
