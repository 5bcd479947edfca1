"""What PostgreSQL answers `vecbridge doctor`: two questions that any user may ask."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from ...manifest import Manifest
from . import sql
from .pool import Connection
from .sql import Place


@dataclass(frozen=True, slots=True)
class Server:
    """Server, database, user and schema, as one row."""

    database: str
    user: str
    superuser: bool
    major: int
    version: str
    encoding: str
    standby: bool
    read_only: bool
    autovacuum: bool
    indexscan: bool
    shared_memory: str
    memory: int
    most: int
    used: int
    vector: str | None
    offered: str | None
    trusted: bool
    may_use_vector: bool
    may_create: bool
    schema: str
    there: bool
    may_use: bool
    may_add: bool
    catalogue: bool
    may_read: bool
    may_write: bool
    statistics_since: datetime | None


_SERVER = """
SELECT current_database() AS database, current_user AS user,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
    current_setting('server_version_num')::int / 10000 AS major, current_setting('server_version') AS version,
    current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS standby,
    current_setting('transaction_read_only')::bool AS read_only,
    current_setting('autovacuum')::bool AS autovacuum,
    current_setting('enable_indexscan')::bool AS indexscan,
    current_setting('dynamic_shared_memory_type') AS shared_memory,
    (SELECT pg_size_bytes(reset_val || unit) FROM pg_settings WHERE name = 'maintenance_work_mem') AS memory,
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS most,
    (SELECT sum(numbackends)::int FROM pg_stat_database) AS used,
    e.extversion AS vector, a.default_version AS offered,
    EXISTS (SELECT FROM pg_available_extension_versions v WHERE v.name = 'vector'
        AND v.version = a.default_version AND (v.trusted OR NOT v.superuser)) AS trusted,
    coalesce(has_schema_privilege(e.extnamespace, 'USAGE'), true) AS may_use_vector,
    has_database_privilege(current_database(), 'CREATE') AS may_create,
    wanted.schema, n.oid IS NOT NULL AS there,
    coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS may_use,
    coalesce(has_schema_privilege(n.oid, 'CREATE'), false) AS may_add,
    c.oid IS NOT NULL AS catalogue,
    coalesce(has_table_privilege(c.oid, 'SELECT'), false) AS may_read,
    coalesce(has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE')
        AND has_table_privilege(c.oid, 'DELETE'), false) AS may_write,
    (SELECT stats_reset FROM pg_stat_database WHERE datname = current_database()) AS statistics_since
FROM (SELECT %s::text AS schema) AS wanted
    LEFT JOIN pg_namespace n ON n.nspname = wanted.schema
    LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = %s
    LEFT JOIN pg_extension e ON e.extname = 'vector'
    LEFT JOIN pg_available_extensions a ON a.name = 'vector'
"""


@dataclass(frozen=True, slots=True)
class State:
    """One collection's table. `rows`: by the last ANALYZE, -1 before it; `scans`: of the search index."""

    rows: float
    filled: bool
    owner: str
    owned: bool
    may_read: bool
    lacking: list[str]
    dead: int
    live: int
    vacuumed: datetime | None
    analyzed: datetime | None
    scans: int | None
    building: bool
    broken: list[str]


_STATE = """
SELECT CASE WHEN c.relpages = 0 AND c.reltuples = 0 THEN -1 ELSE c.reltuples END::float8 AS rows,
    pg_relation_size(c.oid) > 0 AS filled,
    pg_get_userbyid(c.relowner) AS owner, pg_has_role(c.relowner, 'USAGE') AS owned,
    has_table_privilege(c.oid, 'SELECT') AS may_read,
    ARRAY(SELECT r FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) r
        WHERE NOT has_table_privilege(c.oid, r)) AS lacking,
    coalesce(s.n_dead_tup, 0) AS dead, coalesce(s.n_live_tup, 0) AS live,
    greatest(s.last_vacuum, s.last_autovacuum) AS vacuumed,
    greatest(s.last_analyze, s.last_autoanalyze) AS analyzed,
    (SELECT idx_scan FROM pg_stat_user_indexes i WHERE i.relid = c.oid AND i.indexrelname = %(index)s)
        AS scans,
    EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.relid = c.oid) AS building,
    ARRAY(SELECT x.relname::text FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
        WHERE i.indrelid = c.oid AND NOT i.indisvalid AND x.relname <> %(index)s ORDER BY 1) AS broken
FROM pg_class c LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid
    JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s
"""


def server(connection: Connection, place: Place) -> Server:
    """What there is to know of the server, the database and the schema."""
    cursor = connection.cursor(row_factory=class_row(Server))
    found = cursor.execute(_SERVER, [place.schema, sql.CATALOGUE]).fetchone()
    assert found is not None
    return found


def state(connection: Connection, place: Place, manifest: Manifest) -> State | None:
    """What there is to know of a collection's table, None where there is none."""
    schema, table = place.names(manifest)
    values = {"index": sql.index_name(manifest), "schema": schema, "table": table}
    return connection.cursor(row_factory=class_row(State)).execute(_STATE, values).fetchone()
