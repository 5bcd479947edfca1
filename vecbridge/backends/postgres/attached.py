"""What others have put on a table of ours: carried over to the table that takes its place, or in its way.

Rights and row security say who may see what, and are carried. What else there may be (columns, triggers,
indexes, views …) cannot be carried for sure, and losing it without a word would be worse than a refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from psycopg import errors as pg
from psycopg.sql import SQL, Composed, Identifier, Literal

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
SELECT coalesce(r.rolname, ''), a.privilege_type, bool_or(a.is_grantable), a.attname
FROM (
    SELECT (aclexplode(coalesce(c.relacl, acldefault('r', c.relowner)))).*, '' AS attname
    FROM pg_class c WHERE c.oid = to_regclass(%(table)s)
    UNION ALL
    SELECT (aclexplode(attacl)).*, attname FROM pg_attribute
    WHERE attrelid = to_regclass(%(table)s) AND attacl IS NOT NULL AND NOT attisdropped
) a LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE a.grantee = 0 OR r.oid IS NOT NULL
GROUP BY 1, 2, 4
"""

_POLICIES = """
SELECT p.polname, p.polpermissive, p.polcmd::text,
       ARRAY(SELECT coalesce(r.rolname, '') FROM unnest(p.polroles) AS of(role)
             LEFT JOIN pg_roles r ON r.oid = of.role
             WHERE of.role = 0 OR r.oid IS NOT NULL ORDER BY 1)::text[],
       pg_get_expr(p.polqual, %(named)s::regclass), pg_get_expr(p.polwithcheck, %(named)s::regclass)
FROM pg_policy p WHERE p.polrelid = to_regclass(%(table)s) ORDER BY p.polname
"""
_SUBQUERIES = """
SELECT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = to_regclass(%s)
               AND concat(p.polqual::text, p.polwithcheck::text) LIKE '%%{SUBLINK%%')
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
UNION ALL
SELECT 'parent table ' || h.inhparent::regclass FROM t, pg_inherits h WHERE h.inhrelid = t.oid
UNION ALL
SELECT 'statistics ' || s.stxname FROM t, pg_statistic_ext s WHERE s.stxrelid = t.oid
UNION ALL
SELECT 'policy ' || p.polname || ', which reads the table itself' FROM t, pg_policy p
WHERE p.polrelid = t.oid AND concat(p.polqual::text, p.polwithcheck::text) LIKE '%%:relid ' || t.oid || ' %%'
UNION ALL
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) FROM t, pg_class c, pg_depend d
WHERE c.oid = t.oid AND d.deptype = 'n'
  AND (d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
       AND d.classid IN ('pg_policy'::regclass, 'pg_proc'::regclass)
       OR d.refclassid = 'pg_type'::regclass
       AND d.refobjid IN (SELECT unnest(ARRAY[y.oid, y.typarray]) FROM pg_type y WHERE y.oid = c.reltype))
  AND NOT EXISTS (SELECT FROM pg_policy p WHERE d.classid = 'pg_policy'::regclass AND p.oid = d.objid
                  AND p.polrelid = t.oid)
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


def access(connection: Connection, table: Identifier, name: str | None = None) -> Access:
    """What holds for a table that is there; policies in the words for a table called `name`, if given."""
    named = table.as_string(None)
    row = connection.execute(
        "SELECT a.rolname, c.relrowsecurity, c.relforcerowsecurity FROM pg_class c "
        "JOIN pg_roles a ON a.oid = c.relowner WHERE c.oid = to_regclass(%s)",
        [named],
    ).fetchone()
    assert row is not None
    # a subquery in a policy speaks of its table by name; PostgreSQL spells it for any table of these columns
    like = None
    if name is not None and connection.execute(_SUBQUERIES, [named]).fetchone() == (True,):
        like = Identifier("pg_temp", name)
        connection.execute(SQL("CREATE TEMP TABLE {} (LIKE {})").format(like, table))
    shape = named if like is None else like.as_string(None)
    policies = connection.execute(_POLICIES, {"table": named, "named": shape}).fetchall()
    if like is not None:
        connection.execute(SQL("DROP TABLE {}").format(like))
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
    """Give a table that is still to be filled its owner and its policies, and rights to its owner alone.

    Whether the policies fit it is better known before it is filled than after. They count from the start:
    some roles read every table, and others get rights to each that is made.
    """
    _own(connection, table, wanted.owner)
    has = access(connection, table)
    rights = frozenset(right for right in has.rights if right[0] == wanted.owner)
    if has.rights != rights:
        _give(connection, table, has.rights, rights)
    _protect(connection, table, has, wanted)


def dress(connection: Connection, old: Identifier, table: Identifier) -> None:
    """Give a new table the storage parameters and the comment of the one whose place it takes."""
    row = connection.execute(
        "SELECT array_cat(c.reloptions, ARRAY(SELECT 'toast.' || unnest(t.reloptions))), "
        "obj_description(c.oid, 'pg_class') "
        "FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid WHERE c.oid = to_regclass(%s)",
        [old.as_string(None)],
    ).fetchone()
    assert row is not None
    for option in row[0] or ():
        name, _, value = option.partition("=")
        # names are PostgreSQL's own words
        connection.execute(SQL("ALTER TABLE {} SET ({} = {})").format(table, SQL(name), Literal(value)))
    if row[1] is not None:
        connection.execute(SQL("COMMENT ON TABLE {} IS {}").format(table, Literal(row[1])))


def allow(connection: Connection, table: Identifier, wanted: Access, columns: Sequence[str]) -> None:
    """Let the same hold for a table with these columns, neither more nor less.

    All rights are then its owner's to take back, also those that somebody else had passed on.
    """
    _own(connection, table, wanted.owner)
    # the owner's rights are among them
    has = access(connection, table)
    rights = frozenset(right for right in wanted.rights if right[3] in ("", *columns))
    if has.rights != rights:
        _give(connection, table, has.rights, rights)
    _protect(connection, table, has, wanted)


def freeze(connection: Connection, table: Identifier, columns: Sequence[str]) -> None:
    """Let nobody give or take rights on a table until the transaction ends: they wait, and then fail.

    Up to PostgreSQL 17 that takes no lock of the table, and what is taken away while rights are copied would
    come back. This changes nothing, but writes the rows of the catalogue that rights are kept in.
    """
    touched = [SQL("ALTER {} RESET (n_distinct_inherited)").format(Identifier(name)) for name in columns]
    connection.execute(
        SQL("ALTER TABLE {} RESET (user_catalog_table), {}").format(table, SQL(", ").join(touched))
    )


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
    if access(connection, table).owner == owner:
        return
    try:
        connection.execute(SQL("ALTER TABLE {} OWNER TO {}").format(table, Identifier(owner)))
    except pg.InsufficientPrivilege as error:
        raise Forbidden(
            f"the new table could not be given to role {owner}, to whom the old one belongs "
            f"({error.diag.message_primary}); nothing was changed: that role needs CREATE on the schema, and "
            f"this user must be a member of it"
        ) from error


def _protect(connection: Connection, table: Identifier, has: Access, wanted: Access) -> None:
    if has.policies != wanted.policies:
        for policy in has.policies:
            connection.execute(SQL("DROP POLICY {} ON {}").format(Identifier(policy.name), table))
        for policy in wanted.policies:
            connection.execute(_create(policy, table))
    if has.secured != wanted.secured:
        how = SQL("ENABLE" if wanted.secured else "DISABLE")
        connection.execute(SQL("ALTER TABLE {} {} ROW LEVEL SECURITY").format(table, how))
    if has.forced != wanted.forced:
        how = SQL("FORCE" if wanted.forced else "NO FORCE")
        connection.execute(SQL("ALTER TABLE {} {} ROW LEVEL SECURITY").format(table, how))


def _rights(connection: Connection, table: Identifier) -> frozenset[Right]:
    rows = connection.execute(_RIGHTS, {"table": table.as_string(None)}).fetchall()
    return frozenset((role, right, grantable, column) for role, right, grantable, column in rows)


def _give(
    connection: Connection, table: Identifier, given: frozenset[Right], wanted: frozenset[Right]
) -> None:
    for role in sorted({role for role, *_ in given}):
        # takes the rights to single columns, too, and those that others have passed on
        connection.execute(SQL("REVOKE ALL ON {} FROM {} CASCADE").format(table, _role(role)))
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
