"""Names that collections exchanged: what each one was made as, where a store cannot rename."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import InputError, ManifestError


@dataclass(frozen=True, slots=True)
class Names:
    """A permutation of names. Whatever it does not know is called as it was made.

    As every name stands for one that a collection was made as, and no two for the same, dropping a collection
    and making another of its name change nothing here.
    """

    made: Mapping[str, str] = field(default_factory=dict)

    def made_as(self, name: str) -> str:
        """The name that what is called `name` now was made as, or would be."""
        return self.made.get(name, name)

    def now(self, made: str) -> str:
        """What that which was made as `made` is called now."""
        return next((name for name, other in self.made.items() if other == made), made)

    def exchanged(self, one: str, other: str) -> Names:
        """The names after these two have changed places."""
        made = {**self.made, one: self.made_as(other), other: self.made_as(one)}
        return Names({name: as_what for name, as_what in sorted(made.items()) if name != as_what})

    def dump(self) -> bytes:
        """As `load` reads it."""
        return json.dumps(dict(self.made)).encode("ascii")

    @staticmethod
    def load(content: bytes | None, where: str) -> Names:
        """What `dump` gave; for None, nothing was exchanged. Raises ManifestError where it is damaged."""
        if content is None:
            return Names()
        try:
            made = json.loads(content)
            texts = all(isinstance(one, str) for one in made.values())
            right = texts and sorted(made) == sorted(made.values())
        except (ValueError, AttributeError):
            right = False
        if not right:
            raise ManifestError(
                f"expected the names that collections exchanged in {where}, found {content[:60]!a}: it is "
                f"damaged; restore it from a backup"
            )
        return Names(made)


def check_two(one: str, other: str) -> None:
    """Raise InputError where a collection would exchange names with itself."""
    if one == other:
        raise InputError(f"expected two collections to exchange their names, got {one!r} twice")
