"""What others have put on a table of ours: carried over to the table that takes its place, or in its way.

Rights and row security say who may see what, and are carried. What else there may be (columns, triggers,
indexes, views …) cannot be carried for sure, and losing it without a word would be worse than a refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from psycopg.sql import SQL, Composed, Identifier

from ...errors import Forbidden, InputError
from . import sql

if TYPE_CHECKING:
    from ...manifest import Manifest
    from .pool import Connection
    from .sql import Place

_SHOWN = 10

# role (empty: everybody), right, whether it may be passed on, column (empty: the whole table)
Right: TypeAlias = tuple[str, str, bool, str]

_RIGHTS = """
SELECT coalesce(r.rolname, ''), a.privilege_type, a.is_grantable, a.attname
FROM (
    SELECT (aclexplode(coalesce(c.relacl, acldefault('r', c.relowner)))).*, '' AS attname
    FROM pg_class c WHERE c.oid = to_regclass(%(table)s)
    UNION ALL
    SELECT (aclexplode(attacl)).*, attname FROM pg_attribute
    WHERE attrelid = to_regclass(%(table)s) AND attacl IS NOT NULL AND NOT attisdropped
) a LEFT JOIN pg_roles r ON r.oid = a.grantee
"""

_POLICIES = """
SELECT p.polname, p.polpermissive, p.polcmd::text,
       ARRAY(SELECT coalesce(r.rolname, '') FROM unnest(p.polroles) AS of(role)
             LEFT JOIN pg_roles r ON r.oid = of.role ORDER BY 1)::text[],
       pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)
FROM pg_policy p WHERE p.polrelid = to_regclass(%s) ORDER BY p.polname
"""
_COMMANDS = {"r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE", "*": "ALL"}

# what the primary key of a table brings along, and since PostgreSQL 18 its NOT NULL, is ours
_THINGS = """
WITH t AS (SELECT to_regclass(%(table)s)::oid AS oid)
SELECT 'column ' || a.attname FROM t, pg_attribute a
WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> ALL (%(columns)s)
UNION ALL
SELECT 'trigger ' || g.tgname FROM t, pg_trigger g WHERE g.tgrelid = t.oid AND NOT g.tgisinternal
UNION ALL
SELECT 'constraint ' || k.conname FROM t, pg_constraint k
WHERE k.conrelid = t.oid AND k.contype NOT IN ('p', 'n', 't')
UNION ALL
SELECT 'foreign key ' || k.conname || ' of ' || k.conrelid::regclass FROM t, pg_constraint k
WHERE k.confrelid = t.oid AND k.conrelid <> t.oid
UNION ALL
SELECT 'index ' || i.relname FROM t, pg_index x JOIN pg_class i ON i.oid = x.indexrelid
WHERE x.indrelid = t.oid AND i.relname <> ALL (%(indexes)s)
  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.oid)
UNION ALL
SELECT 'rule ' || r.rulename FROM t, pg_rewrite r WHERE r.ev_class = t.oid
UNION ALL
SELECT DISTINCT 'view ' || r.ev_class::regclass FROM t, pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
  AND r.ev_class <> t.oid
UNION ALL
SELECT 'publication ' || p.pubname FROM t, pg_publication_rel m JOIN pg_publication p ON p.oid = m.prpubid
WHERE m.prrelid = t.oid
UNION ALL
SELECT 'inheriting table ' || h.inhrelid::regclass FROM t, pg_inherits h WHERE h.inhparent = t.oid
"""


@dataclass(frozen=True, slots=True)
class _Policy:
    """A policy of row security, as `pg_policy` has it; `roles`: empty text for everybody."""

    name: str
    permissive: bool
    command: str
    roles: tuple[str, ...]
    using: str | None
    check: str | None


@dataclass(frozen=True, slots=True)
class Access:
    """Who may see and change what of a table: its owner, the rights of others, and row security."""

    owner: str
    rights: frozenset[Right]
    secured: bool
    forced: bool
    policies: tuple[_Policy, ...]


def access(connection: Connection, table: Identifier) -> Access:
    """What holds for a table that is there."""
    named = table.as_string(None)
    row = connection.execute(
        "SELECT a.rolname, c.relrowsecurity, c.relforcerowsecurity FROM pg_class c "
        "JOIN pg_roles a ON a.oid = c.relowner WHERE c.oid = to_regclass(%s)",
        [named],
    ).fetchone()
    assert row is not None
    policies = connection.execute(_POLICIES, [named]).fetchall()
    return Access(
        owner=row[0],
        rights=_rights(connection, table),
        secured=row[1],
        forced=row[2],
        policies=tuple(
            _Policy(name, permissive, command, tuple(roles), using, checked)
            for name, permissive, command, roles, using, checked in policies
        ),
    )


def prepare(connection: Connection, table: Identifier, wanted: Access) -> None:
    """Give a table that is still to be filled its owner and its policies, which do not count yet.

    Whether they fit it is better known before it is filled than after.
    """
    _own(connection, table, wanted.owner)
    _protect(connection, table, access(connection, table).policies, wanted.policies)


def allow(connection: Connection, table: Identifier, wanted: Access, columns: Sequence[str]) -> None:
    """Let the same hold for a table with these columns, neither more nor less."""
    _own(connection, table, wanted.owner)
    # the owner's rights are among them
    has = access(connection, table)
    rights = frozenset(right for right in wanted.rights if right[3] in ("", *columns))
    if has.rights != rights:
        _give(connection, table, has.rights, rights)
    _protect(connection, table, has.policies, wanted.policies)
    if has.secured != wanted.secured:
        how = SQL("ENABLE" if wanted.secured else "DISABLE")
        connection.execute(SQL("ALTER TABLE {} {} ROW LEVEL SECURITY").format(table, how))
    if has.forced != wanted.forced:
        how = SQL("FORCE" if wanted.forced else "NO FORCE")
        connection.execute(SQL("ALTER TABLE {} {} ROW LEVEL SECURITY").format(table, how))


def check(connection: Connection, place: Place, manifest: Manifest) -> None:
    """Raise InputError where a collection's table has something that another table in its place would lack.

    Raises Forbidden where row security hides records from this user: copied they would be lost.
    """
    table = place.table(manifest)
    named = table.as_string(None)
    row = connection.execute("SELECT row_security_active(to_regclass(%s)::oid)", [named]).fetchone()
    if row == (True,):
        raise Forbidden(
            f"expected to see every record of collection {manifest.name!r}, got a table whose row security "
            f"hides some from this user; nothing was changed: do it as a role with BYPASSRLS, or as the "
            f"table's owner without FORCE ROW LEVEL SECURITY"
        )
    things = connection.execute(
        _THINGS,
        {
            "table": named,
            "columns": sql.columns(manifest),
            "indexes": [sql.key_name(manifest), sql.index_name(manifest)],
        },
    ).fetchall()
    if things:
        shown = ", ".join(thing for (thing,) in things[:_SHOWN])
        raise InputError(
            f"expected nothing but vecbridge's own on the table of collection {manifest.name!r}, got {shown}"
            f"{' and more' if len(things) > _SHOWN else ''}: the table that takes its place would lack that; "
            f"nothing was changed: take it away, and put it back afterwards"
        )


def _own(connection: Connection, table: Identifier, owner: str) -> None:
    if access(connection, table).owner != owner:
        connection.execute(SQL("ALTER TABLE {} OWNER TO {}").format(table, Identifier(owner)))


def _protect(
    connection: Connection, table: Identifier, given: Sequence[_Policy], wanted: Sequence[_Policy]
) -> None:
    if given == wanted:
        return
    for policy in given:
        connection.execute(SQL("DROP POLICY {} ON {}").format(Identifier(policy.name), table))
    for policy in wanted:
        connection.execute(_create(policy, table))


def _rights(connection: Connection, table: Identifier) -> frozenset[Right]:
    rows = connection.execute(_RIGHTS, {"table": table.as_string(None)}).fetchall()
    return frozenset((role, right, grantable, column) for role, right, grantable, column in rows)


def _give(
    connection: Connection, table: Identifier, given: frozenset[Right], wanted: frozenset[Right]
) -> None:
    for role in sorted({role for role, *_ in given}):
        # takes the rights to single columns, too
        connection.execute(SQL("REVOKE ALL ON {} FROM {}").format(table, _role(role)))
    for role, right, grantable, column in sorted(wanted):
        on = SQL("{}({})").format(SQL(right), Identifier(column)) if column else SQL(right)
        passing = SQL(" WITH GRANT OPTION" if grantable else "")
        connection.execute(SQL("GRANT {} ON {} TO {}{}").format(on, table, _role(role), passing))


def _create(policy: _Policy, table: Identifier) -> Composed:
    # the expressions are PostgreSQL's own, of the policy that there was
    using = SQL("") if policy.using is None else SQL(f" USING ({policy.using})")
    checked = SQL("") if policy.check is None else SQL(f" WITH CHECK ({policy.check})")
    return SQL("CREATE POLICY {} ON {} AS {} FOR {} TO {}{}{}").format(
        Identifier(policy.name),
        table,
        SQL("PERMISSIVE" if policy.permissive else "RESTRICTIVE"),
        SQL(_COMMANDS[policy.command]),
        SQL(", ").join(map(_role, policy.roles)),
        using,
        checked,
    )


def _role(name: str) -> Composed:
    return SQL("{}").format(Identifier(name) if name else SQL("PUBLIC"))
