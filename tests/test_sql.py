"""What SQL statements do, by their text: tables of cases for each database, and properties of any text."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live_cache.sql import Statement, StatementKind, classify, normalize_table
from live_cache.sql import classifier as sql_module

P, M, S = "postgresql", "mysql", "sqlite"
ALL = (P, M, S)
VENDORS = {"p": P, "m": M, "s": S, "o": "oracle"}
# may_delete has a test of its own: the tables below would say it of every DELETE and DROP.
NO_FLAGS = ("kind", "written", "read", "functions", "may_delete")
FLAGS = tuple(field.name for field in fields(Statement) if field.name not in NO_FLAGS)
SHORT_FLAGS = {
    "commits": "commits_implicitly",
    "switches": "changes_search_path",
    "values": "changes_values",
    "local": "ends_with_transaction",
    "isolation": "changes_isolation",
    "locks": "locks_rows",
    "limited": "is_limited_to_session",
}


@dataclass(frozen=True)
class Case:
    vendor: str
    sql: str
    kind: StatementKind
    written: frozenset[str]
    read: frozenset[str]
    flags: frozenset[str]


def cases(text: str) -> list[Any]:
    """Parse lines of: vendors | kind | tables written | tables read | flags | statement."""
    found = []
    for line in text.strip().splitlines():
        if not line.strip() or line.lstrip().startswith("# "):
            continue
        vendors, kind, written, read, flags, sql = (part.strip() for part in line.split(" | ", 5))
        for vendor in vendors:
            case = Case(
                VENDORS[vendor],
                sql.replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t").replace("{BOM}", "\ufeff"),
                StatementKind[kind],
                frozenset(written.split()),
                frozenset(read.split()),
                frozenset(SHORT_FLAGS[flag] for flag in flags.split()),
            )
            found.append(pytest.param(case, id=f"{vendor}-{sql[:70]}"))
    return found


def check(case: Case) -> None:
    statement = classify(case.sql, vendor=case.vendor)
    assert statement.kind is case.kind
    if case.kind is StatementKind.UNKNOWN:
        return
    assert statement.written == case.written
    assert statement.read == case.read
    assert {flag for flag in FLAGS if getattr(statement, flag)} == case.flags


READS = cases(r"""
pms | READ |  |  |  | SELECT 1
pms | READ |  | a |  | SELECT * FROM a
pms | READ |  | a |  | select*from a
pms | READ |  | a |  | SeLeCt\n\t"x"\r\nFROM\n\n a;
pms | READ |  | a |  | /* DELETE FROM b */ SELECT 1 FROM a -- ; DELETE FROM b
pms | READ |  | a |  | SELECT/**/1/**/FROM/**/a/**/;/**/
ps | READ |  | a |  | SELECT 1 FROM"a"WHERE 1=1
pms | READ |  | a b c |  | SELECT * FROM a, b AS x, c y WHERE x.id = y.id ORDER BY 1, 2
pms | READ |  | a b c |  | SELECT * FROM a JOIN b ON (a.id = b.id) LEFT OUTER JOIN c USING (id, x)
pms | READ |  | a b c d |  | SELECT * FROM a NATURAL JOIN b CROSS JOIN c, d
pms | READ |  | a b |  | SELECT * FROM (a JOIN b ON a.id = b.id)
pms | READ |  | a b c |  | SELECT * FROM ((a JOIN b ON a.id = b.id), c)
pms | READ |  | a b c |  | SELECT (SELECT 1 FROM b), x FROM a WHERE x IN (SELECT y FROM c)
pms | READ |  | a b c |  | SELECT * FROM (SELECT * FROM a UNION ALL SELECT * FROM b) u WHERE EXISTS(SELECT 1 FROM c)
ps | READ |  | a b |  | (SELECT x FROM a) UNION (SELECT x FROM b) ORDER BY 1, 2
pms | READ |  | a b |  | ((SELECT x FROM a)) UNION SELECT x FROM b
pms | READ |  | b |  | WITH a AS (SELECT * FROM b) SELECT * FROM a
pm | READ |  | a |  | WITH a AS (SELECT * FROM a) SELECT * FROM a
pms | READ |  | b |  | WITH RECURSIVE a(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM a, b) SELECT * FROM a
pms | READ |  | c |  | WITH a AS (SELECT * FROM c), b AS (SELECT * FROM a) SELECT * FROM a, b
pm | READ |  | b c |  | WITH a AS (SELECT * FROM b), b AS (SELECT * FROM c) SELECT * FROM a, b
s | READ |  | c |  | WITH a AS (SELECT * FROM b), b AS (SELECT * FROM c) SELECT * FROM a, b
pms | READ |  | a b |  | SELECT * FROM (WITH a AS (SELECT * FROM b) SELECT * FROM a) q JOIN a ON 1=1
pms | READ |  | a |  | WITH a AS (SELECT 1) SELECT * FROM s.a
p | READ |  | t |  | WITH "T" AS (SELECT 1) SELECT * FROM t
p | READ |  |  |  | WITH T AS (SELECT 1) SELECT * FROM "t"
ms | READ |  |  |  | WITH T AS (SELECT 1) SELECT * FROM `t`
p | READ |  | b |  | WITH a AS MATERIALIZED (SELECT * FROM b), c AS NOT MATERIALIZED (TABLE a) SELECT * FROM a, c
p | READ |  | b |  | WITH RECURSIVE a AS (TABLE b) SEARCH DEPTH FIRST BY x, y SET o, c AS (SELECT 1) SELECT * FROM a, c
p | READ |  | b |  | WITH RECURSIVE a AS (SELECT * FROM b) CYCLE x SET y USING p SELECT * FROM a
p | READ |  | t |  | SELECT EXTRACT(YEAR FROM d), SUBSTRING(x FROM 2 FOR 3), TRIM(BOTH ' ' FROM y) FROM t
pms | READ |  | t |  | SELECT a IS DISTINCT FROM b, a IS NOT DISTINCT FROM b FROM t
p | READ |  | t |  | SELECT 1 AS from, 2 AS select, 3 AS into FROM t
pms | READ |  | t |  | SELECT 'INSERT INTO x', 'it''s; DELETE FROM y' FROM t
p | READ |  | t |  | SELECT E'\'; DELETE FROM x; --', $$; DELETE FROM y $$, $q$ $$ ; DROP $q$ FROM t
p | READ |  | t |  | SELECT E'a'\n 'b\'; DELETE FROM x; --' FROM t
p | READ |  | t |  | SELECT * FROM t WHERE a LIKE '\' AND b = 'x'
p | READ |  | t |  | SELECT /* a /* DELETE FROM b */ ; DELETE FROM c */ 1 FROM t
m | READ |  | t |  | SELECT 'a\' FROM x, --', "b\" FROM y, " FROM t # ; DELETE FROM z
m | READ |  | t |  | SELECT 5--1 FROM t
m | READ |  | 2024_data |  | SELECT 1e5FROM 2024_data
m | READ |  | t |  | SELECT 1.FROM t
p | READ |  | t |  | SELECT 1FROM t
ps | READ |  | t |  | SELECT 5--1 FROM x\nFROM t
p | READ |  | t |  | SELECT 1 -- x\rFROM t
ms | READ |  | t |  | SELECT 1 -- x\rFROM u\nFROM t
s | READ |  | my-table |  | SELECT [a b] FROM [my-table]
ms | READ |  | a`b |  | SELECT `x` FROM `a``b`
p | READ |  | a"b |  | SELECT "x" FROM "a""b"
s | READ |  | t |  | SELECT * FROM 't' WHERE "x" = :from AND y = @select AND z = ?1
m | READ |  | t |  | SELECT @from, @@session.sql_mode FROM t
pms | READ |  | t |  | SELECT * FROM t WHERE a = %s AND b = %(into)s AND c %% 2 = 0 AND d IN (%s, %s)
p | READ |  | t |  | SELECT * FROM t WHERE a = $1 AND b ? 'x' AND c @> %s::jsonb AND d[1:2] = e
ms | READ |  | select |  | SELECT "from" FROM `select` WHERE "delete"."update" = 1
p | READ |  | select |  | SELECT "from" FROM "select" WHERE "delete"."update" = 1
ms | READ |  | order |  | SELECT t.`from`, t.`set` FROM `s`.`order` t
p | READ |  | u |  | SELECT * FROM generate_series(1, 3) AS g(a), u
p | READ |  | u w |  | SELECT * FROM ROWS FROM (f(1), g(2)) AS r(a, b), LATERAL (SELECT * FROM u) x, LATERAL h(3), w
p | READ |  | t u |  | SELECT * FROM ONLY t, ONLY (u)
p | READ |  | t |  | SELECT * FROM t * WHERE 1 = 1
p | READ |  | a b |  | SELECT * FROM f(1) t(x, y), a TABLESAMPLE BERNOULLI (10), b
p | READ |  | a b |  | SELECT * FROM (VALUES (1, 2)) v(x, y), a JOIN b ON true WINDOW w AS (), w2 AS (ORDER BY y)
p | READ |  | a |  | SELECT * FROM f(1) WITH ORDINALITY AS t(x, n), a
p | READ |  | t |  | TABLE t
p | READ |  | t u |  | TABLE t UNION ALL TABLE u
p | READ |  | t |  | SELECT * FROM (TABLE t) x
pms | READ |  |  |  | VALUES (1, 2), (3, 4)
m | READ |  | a b |  | SELECT STRAIGHT_JOIN * FROM a STRAIGHT_JOIN b USE INDEX FOR JOIN (i, j) ON 1
m | READ |  | a b |  | SELECT * FROM a PARTITION (p0, p1), b FORCE INDEX (i)
m | READ |  | a b |  | SELECT * FROM { OJ a LEFT OUTER JOIN b ON a.x = b.x }
m | READ |  | a b |  | SELECT * FROM a FOR SYSTEM_TIME FROM '1' TO '2', b
m | READ |  |  |  | SELECT 1 FROM DUAL
m | READ |  | t |  | SELECT * FROM t INTO OUTFILE '/x'
m | READ |  | t |  | SELECT a, b FROM t INTO @a, @b
m | READ |  | t |  | SELECT /*! SQL_NO_CACHE */ /*!50000 * */ FROM t
m | READ |  | t |  | SELECT INSERT('abc', 1, 2, 'x'), (REPLACE(a, 'x', 'y')), VALUES(a) FROM t
p | READ |  | t |  | SELECT (delete), (update = 1), (insert, replace) FROM t
s | READ |  | a b |  | SELECT * FROM a INDEXED BY i, b NOT INDEXED
s | READ |  | t |  | SELECT * FROM main.t /* an open comment: DELETE FROM x
s | READ |  | a b |  | SELECT 1 FROM a,{BOM}b
pms | READ |  | t | locks | SELECT * FROM t FOR UPDATE
p | READ |  | a b | locks | SELECT * FROM a, b FOR NO KEY UPDATE OF a, b NOWAIT
pm | READ |  | t | locks | SELECT * FROM t WHERE x = (SELECT 1) FOR SHARE SKIP LOCKED
m | READ |  | t | locks | SELECT * FROM t LOCK IN SHARE MODE
p | READ |  | t | locks | DECLARE c CURSOR WITH HOLD FOR SELECT * FROM t FOR UPDATE
p | READ |  |  |  | FETCH 10 FROM c
pms | READ |  | t |  | EXPLAIN SELECT * FROM t
pms | READ |  | t |  | EXPLAIN DELETE FROM t
p | READ |  | t |  | EXPLAIN (ANALYZE, BUFFERS) SELECT * FROM t
p | READ |  | t |  | EXPLAIN (COSTS off) INSERT INTO t VALUES (1)
s | READ |  | t |  | EXPLAIN QUERY PLAN SELECT * FROM t
m | READ |  | t |  | DESC SELECT * FROM t
m | READ |  |  |  | DESCRIBE t
m | READ |  |  |  | SHOW TABLES
p | READ |  |  |  | SHOW search_path
m | READ |  | t |  | HANDLER t READ FIRST
m | READ |  |  |  | DO RELEASE_LOCK('x')
p | READ |  | t |  | COPY t (a, b) TO STDOUT
p | READ |  | t |  | COPY (SELECT * FROM t) TO STDOUT
s | READ |  |  |  | PRAGMA table_info("t")
s | READ |  |  |  | PRAGMA main.foreign_keys
pms | READ |  |  |  | -- nothing
pms | READ |  |  |  | ;;
pms | READ |  | a b |  | SELECT 1 FROM a; SELECT 2 FROM b;
o | READ |  | t |  | SELECT * FROM t
""")

WRITES = cases(r"""
pms | WRITE | t |  |  | INSERT INTO t (a, b) VALUES (%s, %s)
pms | WRITE | t |  |  | insert\ninto\n"s" . "T"\n(a) values (1)
pms | WRITE | t |  |  | -- SELECT\n/* SELECT */ INSERT INTO t DEFAULT VALUES
pms | WRITE | t | u |  | INSERT INTO t (a) SELECT x FROM u
p | WRITE | t | u |  | INSERT INTO t AS x (a) TABLE u ON CONFLICT (a) DO UPDATE SET b = 1, c = 2 RETURNING a, b
s | WRITE | t | u |  | INSERT INTO t SELECT * FROM u WHERE 1 ON CONFLICT (a) WHERE b DO UPDATE SET b = 1, c = 2
m | WRITE | t | u |  | INSERT LOW_PRIORITY IGNORE t SELECT a FROM u ON DUPLICATE KEY UPDATE a = VALUES(a), b = 2
m | WRITE | t |  |  | INSERT INTO t PARTITION (p0) SET a = 1, b = 2
m | WRITE | t |  |  | INSERT DELAYED INTO `db`.`t` () VALUES ()
ms | WRITE | t |  |  | REPLACE INTO t VALUES (1)
m | WRITE | t |  |  | REPLACE t (a) VALUES (1)
s | WRITE | t |  |  | INSERT OR REPLACE INTO t VALUES (1)
s | WRITE | t |  |  | UPDATE OR IGNORE t SET a = 1
s | WRITE | my-t |  |  | DELETE FROM [my-t]
s | WRITE | t |  |  | DELETE FROM 't'
pms | WRITE | t |  |  | UPDATE t SET a = 1, b = 2 WHERE c = 3
p | WRITE | t | q y z |  | UPDATE ONLY "t" * AS x SET (a, b) = (SELECT 1, 2 FROM q) FROM z, y WHERE x.id = z.id
s | WRITE | t | u |  | UPDATE t AS x SET a = u.a FROM u WHERE u.id = x.id
m | WRITE | a b | b |  | UPDATE a, b SET a.x = b.x WHERE a.id = b.id
m | WRITE | a b | b c |  | UPDATE LOW_PRIORITY IGNORE a JOIN b USING (id), (SELECT * FROM c) d SET a.x = 1
m | WRITE | a b | b |  | UPDATE (a JOIN b ON a.x = b.x) SET a.y = 1
pms | WRITE | t | u |  | DELETE FROM t WHERE id IN (SELECT id FROM u)
p | WRITE | t | u w |  | DELETE FROM ONLY t AS x USING u, w WHERE u.id = x.id RETURNING *
p | WRITE | t | u |  | DELETE FROM t USING u RETURNING a, b
m | WRITE | a b | b |  | DELETE a FROM a JOIN b USING (id) WHERE b.x
m | WRITE | c shop | c |  | DELETE x, y.* FROM shop x INNER JOIN c y ON x.id = y.id
m | WRITE | t1 t2 | t2 |  | DELETE QUICK FROM a1, a2 USING t1 AS a1 INNER JOIN t2 AS a2
m | WRITE | t |  |  | DELETE FROM t PARTITION (p0) WHERE a ORDER BY b, c LIMIT 5
p | WRITE | t | u |  | MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT (a)
p | WRITE | t | u |  | MERGE INTO ONLY s.t AS x USING (SELECT * FROM u) y ON x.a = y.a WHEN MATCHED THEN DELETE
p | WRITE | t |  |  | TRUNCATE TABLE t
m | WRITE | t |  | commits | TRUNCATE TABLE t
p | WRITE | a b c |  |  | TRUNCATE a, ONLY b *, "s"."c" RESTART IDENTITY
p | WRITE | t |  |  | COPY t FROM STDIN
p | WRITE | t |  |  | COPY "s"."t" ("a", b) FROM STDIN WITH (FORMAT csv)
p | WRITE | t |  |  | COPY (DELETE FROM t RETURNING *) TO STDOUT
m | WRITE | t |  |  | LOAD DATA LOCAL INFILE 'x' REPLACE INTO TABLE t (a, b) SET c = 1
p | WRITE | a | a b |  | WITH x AS (DELETE FROM a USING b RETURNING *) SELECT * FROM x, a
p | WRITE | a b |  |  | WITH x AS (INSERT INTO a VALUES (1)), y AS (UPDATE b SET c = 1 RETURNING *) SELECT * FROM y
p | WRITE | a b |  |  | WITH x AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM x
pms | WRITE | t | u |  | WITH x AS (SELECT * FROM u) UPDATE t SET a = (SELECT a FROM x)
pms | WRITE | t |  |  | WITH t AS (SELECT 1) DELETE FROM t
m | WRITE | t | u |  | INSERT INTO t WITH x AS (SELECT * FROM u) SELECT * FROM x
m | WRITE | a |  |  | WITH x AS (SELECT 1) UPDATE a JOIN x ON 1 SET a.b = 1
p | WRITE | n | t |  | SELECT * INTO n FROM t
p | WRITE | n | t |  | SELECT a INTO UNLOGGED TABLE s.n FROM t
p | WRITE | n | t | limited switches | SELECT * INTO TEMP TABLE n FROM t
p | WRITE | v |  |  | REFRESH MATERIALIZED VIEW CONCURRENTLY v
p | WRITE | t |  |  | EXPLAIN ANALYZE DELETE FROM t
p | WRITE | t |  |  | EXPLAIN (BUFFERS, ANALYZE) WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x
m | WRITE | t |  |  | ANALYZE FORMAT=JSON DELETE FROM t
m | WRITE | t |  |  | SET STATEMENT max_statement_time=1 FOR DELETE FROM t
m | WRITE | t |  |  | /*!50003 DELETE FROM t */
m | WRITE | t |  |  | /*M!100000 DELETE FROM t */
m | WRITE | t u | t |  | SELECT 1 FROM t; /*! DELETE FROM u */; DELETE FROM t
pms | WRITE | b | a |  | SELECT 1 FROM a; DELETE FROM b
p | WRITE | b |  | values | SET x = 1; DELETE FROM b
p | WRITE | a b |  |  | DELETE FROM a; CREATE TABLE b (x int)
ms | WRITE | insert |  |  | INSERT INTO `insert` (`select`, "from") VALUES ('x')
p | WRITE | insert |  |  | INSERT INTO "insert" ("select", "from") VALUES ('x')
p | WRITE | t |  |  | UPDATE t SET a = 'x'';' || E'\'' WHERE b = $x$;$x$
o | WRITE | b t | b |  | UPDATE t SET a = 1 FROM b
""")

SCHEMA = cases(r"""
ps | SCHEMA | t |  |  | CREATE TABLE IF NOT EXISTS "s"."t" (id int REFERENCES u (id) ON DELETE CASCADE, x char(1))
m | SCHEMA | t |  | commits | CREATE TABLE t (id int) /*!50100 PARTITION BY HASH (id) */
ps | SCHEMA | t | a b |  | CREATE TABLE t AS SELECT * FROM a JOIN b USING (id)
ps | SCHEMA | t | a |  | CREATE TABLE t AS WITH x AS (SELECT * FROM a) SELECT * FROM x
m | SCHEMA | t | a | commits | CREATE OR REPLACE TABLE t (id int) SELECT * FROM a
m | SCHEMA | t |  | commits | CREATE TABLE t LIKE a
p | SCHEMA | c p |  |  | CREATE TABLE c PARTITION OF p FOR VALUES FROM (1) TO (2)
p | SCHEMA | c p q |  |  | CREATE TABLE c () INHERITS (p, q)
ps | SCHEMA | t |  | limited switches | CREATE TEMP TABLE t (a int)
m | SCHEMA | t | a | limited switches | CREATE TEMPORARY TABLE t SELECT * FROM a
s | SCHEMA | t |  |  | CREATE VIRTUAL TABLE t USING fts5(a, b)
p | SCHEMA | t |  |  | CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON ONLY "s"."t" USING btree (lower(b))
p | SCHEMA | t |  |  | CREATE INDEX ON t (a)
s | SCHEMA | t |  |  | CREATE INDEX "s"."i" ON "t" ("on")
m | SCHEMA | t |  | commits | CREATE FULLTEXT INDEX i ON t (a)
ps | SCHEMA | v | a |  | CREATE VIEW v AS SELECT * FROM a
p | SCHEMA | v | a |  | CREATE OR REPLACE VIEW v (x) WITH (security_barrier) AS SELECT * FROM a
p | SCHEMA | v | a |  | CREATE MATERIALIZED VIEW v AS SELECT * FROM a WITH NO DATA
p | SCHEMA |  |  |  | CREATE SEQUENCE s
p | SCHEMA | t |  |  | CREATE POLICY p ON t USING (x = current_user)
ps | SCHEMA | a b |  |  | ALTER TABLE "a" RENAME TO "b"
m | SCHEMA | a b |  | commits | ALTER TABLE a RENAME b
p | SCHEMA | t |  |  | ALTER TABLE IF EXISTS ONLY t RENAME COLUMN a TO b
p | SCHEMA | t |  |  | ALTER TABLE t RENAME a TO b
p | SCHEMA | t |  |  | ALTER TABLE t ADD CONSTRAINT c FOREIGN KEY (x) REFERENCES u (id) ON UPDATE CASCADE DEFERRABLE
p | SCHEMA | c p |  |  | ALTER TABLE p ATTACH PARTITION c FOR VALUES IN (1)
p | SCHEMA | c p |  |  | ALTER TABLE c NO INHERIT p
m | SCHEMA | a b |  | commits | ALTER TABLE a EXCHANGE PARTITION p0 WITH TABLE b
ps | SCHEMA | a |  |  | DROP TABLE IF EXISTS a
p | SCHEMA | a b |  |  | DROP TABLE a, s.b RESTRICT
m | SCHEMA | a |  | limited switches | DROP TEMPORARY TABLE a
m | SCHEMA | t |  | commits | DROP INDEX i ON t
p | SCHEMA | v |  |  | DROP MATERIALIZED VIEW v
m | SCHEMA | a b c d |  | commits | RENAME TABLE a TO b, s.c TO d
p | SCHEMA |  |  |  | COMMENT ON TABLE t IS 'x'
ps | SCHEMA |  |  |  | VACUUM
ps | SCHEMA |  |  |  | ANALYZE t
m | SCHEMA |  |  | commits | ANALYZE TABLE t
m | SCHEMA |  |  | commits | OPTIMIZE TABLE t
ps | SCHEMA |  |  |  | REINDEX TABLE t
p | SCHEMA |  |  |  | CLUSTER t
p | SCHEMA | a |  |  | SELECT 1; DROP TABLE a
""")

SESSIONS = cases(r"""
ps | BEGIN |  |  |  | BEGIN
m | BEGIN |  |  | commits | BEGIN WORK
p | BEGIN |  |  |  | START TRANSACTION READ ONLY
m | BEGIN |  |  | commits | START TRANSACTION
m | BEGIN |  |  | commits isolation | START TRANSACTION WITH CONSISTENT SNAPSHOT
p | BEGIN |  |  | isolation | BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE, NOT DEFERRABLE
s | BEGIN |  |  |  | begin immediate
s | BEGIN |  |  |  | BEGIN EXCLUSIVE TRANSACTION
pms | COMMIT |  |  | commits | COMMIT
pms | COMMIT |  |  | commits | /* x */ commit work ; -- y
pm | COMMIT |  |  | commits | COMMIT AND NO CHAIN
ps | COMMIT |  |  | commits | END TRANSACTION
pms | ROLLBACK |  |  |  | ROLLBACK
p | ROLLBACK |  |  |  | ABORT WORK
pms | SAVEPOINT |  |  |  | SAVEPOINT "a;b"
pms | ROLLBACK_TO_SAVEPOINT |  |  |  | ROLLBACK TO SAVEPOINT s1
pms | ROLLBACK_TO_SAVEPOINT |  |  |  | ROLLBACK WORK TO s1
s | ROLLBACK_TO_SAVEPOINT |  |  |  | ROLLBACK TRANSACTION TO SAVEPOINT "savepoint"
pms | RELEASE_SAVEPOINT |  |  |  | RELEASE SAVEPOINT s1
ps | RELEASE_SAVEPOINT |  |  |  | RELEASE s1
p | SESSION |  |  | values | SET TIME ZONE 'UTC'
p | SESSION |  |  | values | SET TimeZone = 'UTC'
p | SESSION |  |  | values | SET SESSION default_text_search_config TO 'german'
p | SESSION |  |  | values local | SET LOCAL "DateStyle" = 'German'
p | SESSION |  |  | values | SET session_replication_role = replica
p | SESSION |  |  | values | SET nobody_knows = 1
p | SESSION |  |  |  | SET work_mem = '64MB'
p | WRITE | pg_settings |  | switches values isolation | UPDATE pg_settings SET setting = 'UTC' WHERE name = 'x'
p | SESSION |  |  |  | SET enable_seqscan = off
p | SESSION |  |  |  | SET LOCAL statement_timeout = 5
p | SESSION |  |  |  | SET CONSTRAINTS ALL IMMEDIATE
p | SESSION |  |  | switches | SET search_path TO a, b
p | SESSION |  |  | switches local | SET LOCAL "search_path" = x
p | SESSION |  |  | switches | SET SCHEMA 'x'
p | SESSION |  |  | switches | SET SESSION ROLE x
p | SESSION |  |  | switches | SET SESSION AUTHORIZATION x
p | SESSION |  |  | switches local | SET LOCAL app.tenant = '5'
p | SESSION |  |  | switches local | SET LOCAL SESSION AUTHORIZATION x
p | SESSION |  |  | switches local | SET LOCAL app.tenant = '5'; SET LOCAL search_path = x; SET LOCAL work_mem = 5
p | SESSION |  |  | switches values | SET LOCAL app.tenant = '5'; SET TIME ZONE 'UTC'
p | SESSION |  |  | switches values | SET pg_trgm.similarity_threshold = 0.5
p | SESSION |  |  | values | RESET TIME ZONE
p | SESSION |  |  | switches | RESET SESSION AUTHORIZATION
p | SESSION |  |  |  | RESET work_mem
p | SESSION |  |  | switches | RESET search_path
p | SESSION |  |  | isolation switches values | RESET ALL
p | SESSION |  |  | isolation switches values | DISCARD ALL
p | SESSION |  |  | isolation | SET TRANSACTION ISOLATION LEVEL SERIALIZABLE
p | SESSION |  |  | isolation | SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY
p | SESSION |  |  | isolation | SET default_transaction_isolation = 'serializable'
p | READ |  |  | switches | SELECT set_config('search_path', 'x', false)
p | READ |  |  | isolation switches values | SELECT pg_catalog.set_config(%s, %s, false)
p | READ |  |  | isolation | SELECT set_config('transaction_isolation', 'serializable', true)
p | READ |  |  | isolation switches values local | SELECT set_config(%s, %s, true)
p | READ |  |  | switches local | SELECT set_config('app.x', %s, TRUE), set_config('search_path', (SELECT 'x'), true)
p | READ |  |  | switches | SELECT set_config('app.tenant', %s, true), set_config('search_path', 'x', false)
p | READ |  |  | switches | SELECT set_config('search_path', 'x', false), set_config('app.tenant', %s, true)
p | READ |  |  | values | SELECT set_config('TimeZone', 'UTC', false)
p | READ |  |  | values | SELECT set_config('TimeZone', 'UTC', false or true)
p | READ |  |  |  | SELECT set_config('statement_timeout', '5', true)
p | SESSION |  |  | limited | PREPARE p AS DELETE FROM t
p | SESSION |  |  | limited | DEALLOCATE p
p | SESSION |  |  |  | LISTEN x
p | SESSION |  |  |  | NOTIFY x, 'DELETE FROM t'
p | SESSION |  |  |  | LOCK TABLE t IN EXCLUSIVE MODE
p | SESSION |  |  |  | CLOSE c
m | SESSION |  |  | commits | LOCK TABLES a READ, b WRITE
m | SESSION |  |  | commits | UNLOCK TABLES
m | SESSION |  |  | commits | FLUSH TABLES
m | SESSION |  |  | values | SET NAMES utf8mb4
m | SESSION |  |  | values | SET CHARACTER SET latin1
m | SESSION |  |  |  | SET SESSION lock_wait_timeout = 5, @@session.unique_checks = 0
m | SESSION |  |  |  | SET foreign_key_checks = 0
m | SESSION |  |  | values | SET foreign_key_checks = 0, @x = 5
m | SESSION |  |  | values | SET foreign_key_checks = 0, GLOBAL y = 3
m | SESSION |  |  | values | SET @@session.sql_mode = ''
m | SESSION |  |  | values | SET time_zone = '+02:00'
m | SESSION |  |  | values | SET SQL_AUTO_IS_NULL = 0
m | SESSION |  |  | values isolation | SET SQL_AUTO_IS_NULL = 0; SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED
m | SESSION |  |  | values isolation | SET x = 1, SESSION transaction_isolation = 'SERIALIZABLE'
m | SESSION |  |  | isolation | SET @@session.tx_isolation = 'SERIALIZABLE'
m | SESSION |  | t | values | SET @autocommit = (SELECT MAX(id) FROM t)
m | SESSION |  |  | switches | SET ROLE x
m | SESSION |  |  | switches | USE x
s | SESSION |  |  | switches | ATTACH DATABASE 'x' AS y
s | SESSION |  |  | switches | DETACH y
s | SESSION |  |  |  | PRAGMA foreign_keys = ON
s | SESSION |  |  | values | PRAGMA case_sensitive_like = ON
s | SESSION |  |  | switches | PRAGMA temp_store = MEMORY
s | SESSION |  |  |  | PRAGMA main.journal_mode(wal)
s | SESSION |  |  | isolation | PRAGMA read_uncommitted = 1
""")

UNKNOWNS = cases(r"""
pms | UNKNOWN |  |  |  | CALL p(1)
ps | UNKNOWN |  |  |  | DO $$ BEGIN DELETE FROM t; END $$
pms | UNKNOWN |  |  |  | EXECUTE p
pms | UNKNOWN |  |  |  | EXEC p
pms | UNKNOWN |  |  |  | GRANT SELECT ON t TO u
pms | UNKNOWN |  |  |  | REVOKE ALL ON t FROM u
pms | UNKNOWN |  |  |  | CREATE TRIGGER g AFTER INSERT ON a BEGIN DELETE FROM b; END
pms | UNKNOWN |  |  |  | CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$
p | UNKNOWN |  |  |  | CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END
pms | UNKNOWN |  |  |  | DROP TABLE t CASCADE
p | UNKNOWN |  |  |  | TRUNCATE t CASCADE
p | UNKNOWN |  |  |  | ALTER TABLE t DROP COLUMN a CASCADE
ps | UNKNOWN |  |  |  | DROP INDEX i
p | UNKNOWN |  |  |  | ALTER TYPE e RENAME VALUE 'a' TO 'b'
p | UNKNOWN |  |  |  | CREATE TABLE t AS EXECUTE p
p | UNKNOWN |  |  |  | DROP SCHEMA s
pm | UNKNOWN |  |  |  | COMMIT AND CHAIN
pm | UNKNOWN |  |  |  | ROLLBACK AND CHAIN
p | UNKNOWN |  |  |  | PREPARE TRANSACTION 'x'
p | UNKNOWN |  |  |  | COMMIT PREPARED 'x'
m | UNKNOWN |  |  |  | XA COMMIT 'x'
m | UNKNOWN |  |  |  | SET autocommit = 1
m | UNKNOWN |  |  |  | SET SESSION AUTOCOMMIT = 0
m | UNKNOWN |  |  |  | SET @@session.autocommit = 0
m | UNKNOWN |  |  |  | SET x = f(1, 2), `autocommit` = ON
m | UNKNOWN |  |  |  | SET completion_type = 1
m | UNKNOWN |  |  |  | BEGIN NOT ATOMIC DELETE FROM t; END
m | UNKNOWN |  |  |  | END
s | UNKNOWN |  |  |  | PRAGMA writable_schema = 1
s | UNKNOWN |  |  |  | PRAGMA nobody_knows
pms | UNKNOWN |  |  |  | BEGIN; SELECT 1
pms | UNKNOWN |  |  |  | BEGIN; COMMIT
pms | UNKNOWN |  |  |  | DELETE FROM t; COMMIT
pms | UNKNOWN |  |  |  | SELECT 1; FROBNICATE t
pms | UNKNOWN |  |  |  | FROBNICATE
pms | UNKNOWN |  |  |  | INSERT
pms | UNKNOWN |  |  |  | DELETE FROM
pms | UNKNOWN |  |  |  | DELETE FROM %s
pms | UNKNOWN |  |  |  | UPDATE %s SET a = 1
pms | UNKNOWN |  |  |  | SELECT * FROM t WHERE (a = 1
pms | UNKNOWN |  |  |  | SELECT 1) FROM t
pms | UNKNOWN |  |  |  | SELECT 'open
pm | UNKNOWN |  |  |  | SELECT 1 /* open
p | UNKNOWN |  |  |  | SELECT $x$ open
p | UNKNOWN |  |  |  | SELECT * FROM U&"d\0061t"
m | UNKNOWN |  |  |  | DELETE FROM t; SELECT 'open
m | UNKNOWN |  |  |  | SELECT 'a\'; COMMIT; -- '
o | UNKNOWN |  |  |  | SELECT 1 DELETE FROM t
o | UNKNOWN |  |  |  | EXEC p
""")


@pytest.mark.parametrize("case", [*READS, *WRITES, *SCHEMA, *SESSIONS, *UNKNOWNS])
def test_statement_is_sorted_with_its_tables(case: Case) -> None:
    """Kind, tables and flags of a statement, in the spelling of its database."""
    check(case)


@pytest.mark.parametrize("case", [*READS, *WRITES, *SCHEMA, *SESSIONS, *UNKNOWNS])
def test_comments_case_and_space_do_not_matter(case: Case) -> None:
    """The same statement in other letters, after comments and with a semicolon behind does the same."""
    plain = classify(case.sql, vendor=case.vendor)
    dressed = f"\n /* SELECT 1; */\t-- DROP TABLE x\n{case.sql}"
    assert classify(dressed, vendor=case.vendor) == plain
    if not any(sign in case.sql for sign in (*"\"'$%:?@", "/*M")):
        assert classify(case.sql.upper(), vendor=case.vendor) == plain
        assert classify(case.sql.lower(), vendor=case.vendor) == plain
        assert classify(case.sql.replace(" ", "\n\t "), vendor=case.vendor) == plain or "--" in case.sql


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("DELETE FROM t", True),
        ("delete from t where a in (select b from u)", True),
        ("REPLACE INTO t VALUES (1)", True),
        ("INSERT OR REPLACE INTO t VALUES (1)", True),
        ("MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN DELETE", True),
        ("WITH x AS (DELETE FROM t RETURNING a) SELECT a FROM x", True),
        ("DROP TABLE t", True),
        ("SELECT 1; DELETE FROM t", True),
        ("INSERT INTO t VALUES ('delete')", False),
        ("UPDATE t SET a = 1", False),
        ("SELECT a FROM t", False),
        ("ALTER TABLE t ADD COLUMN a int", False),
    ],
)
def test_a_statement_that_may_delete_rows_says_so(sql: str, expected: bool) -> None:
    """Then the database may go on to other tables, by what it was told to do on delete."""
    vendors = [vendor for vendor in ALL if classify(sql, vendor=vendor).kind is not StatementKind.UNKNOWN]
    assert vendors
    assert {classify(sql, vendor=vendor).may_delete for vendor in vendors} == {expected}


@pytest.mark.parametrize("vendor", ALL)
def test_functions_are_named_without_their_schema(vendor: str) -> None:
    """A SELECT may write through a function, so every call is told; types and aliases are none."""
    sql = "SELECT Touch_All(1), s.fn (2), COUNT(*), CAST(a AS varchar(10)) FROM t AS x (b, c) WHERE d IN (1) AND (e)"
    assert classify(sql, vendor=vendor).functions == {"touch_all", "fn", "count", "cast"}


def test_functions_of_postgresql() -> None:
    """Calls behind other words, in FROM and in quotes; casts, windows and lists are none."""
    sql = (
        'SELECT DISTINCT ON (a) f1(x), "F2"(y), z::numeric(3, 1), count(*) FILTER (WHERE b) OVER (PARTITION BY (c)) '
        "FROM f3(1) t(i, j), ROWS FROM (f4(1)) AS u(k) JOIN v USING (id) WHERE (a, b) = ANY (ARRAY(SELECT f5()))"
    )
    assert classify(sql, vendor=P).functions == {"f1", "f2", "count", "f3", "f4", "f5"}


@pytest.mark.parametrize("sql", ["SELECT fn()", "INSERT INTO t VALUES (fn())", "WITH x AS (SELECT fn()) SELECT 1"])
def test_a_function_is_seen_wherever_it_stands(sql: str) -> None:
    """Also in VALUES and in WITH."""
    assert classify(sql, vendor=P).functions == {"fn"}


@pytest.mark.parametrize("vendor", [M, "oracle"])
def test_unknown_statements_may_commit_where_statements_do(vendor: str) -> None:
    """A procedure may commit, and so may what is not understood."""
    assert classify("CALL p()", vendor=vendor).commits_implicitly
    assert not classify("CALL p()", vendor=P).commits_implicitly


@pytest.mark.parametrize("sql", ["SELECT (1", "DELETE FROM %s", "INSERT INTO (a)"])
def test_queries_that_are_not_understood_do_not_commit(sql: str) -> None:
    """Rows were written, perhaps, but the transaction goes on and the session is as it was."""
    statement = classify(sql, vendor=M)
    assert statement == Statement(StatementKind.UNKNOWN)


def test_body_of_a_trigger_is_no_transaction() -> None:
    """The END of a body ends no transaction, and what follows it counts."""
    sql = "CREATE TRIGGER g AFTER INSERT ON a BEGIN DELETE FROM b; SELECT CASE WHEN 1 THEN 2 END; END"
    assert not classify(sql, vendor=S).commits_implicitly
    assert classify(f"{sql}; COMMIT", vendor=S).commits_implicitly


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shop_product", "shop_product"),
        ("Shop_Product", "shop_product"),
        ("schema.table", "table"),
        ('"schema"."Table"', "table"),
        ('schema"."table', "table"),
        ("`db`.`t`", "t"),
        ("[my table]", "my table"),
        ('"we""ird"', 'we"ird'),
        ("`we``ird`", "we`ird"),
        (" t ", "t"),
        ("Ä", "ä"),
        ("x" * 100, "x" * 63),
        ("ä" * 40, "ä" * 31),
        ("", ""),
    ],
)
def test_normalize_table(name: str, expected: str) -> None:
    """Last part, no quotes, small letters, at most 63 bytes."""
    assert normalize_table(name) == expected


@given(st.text(max_size=80))
def test_normalized_names_stay_as_they_are(name: str) -> None:
    """To normalise twice changes nothing, for names without signs of their own."""
    once = normalize_table(name)
    if not set(once) & set('"`[]. '):
        assert normalize_table(once) == once or normalize_table(normalize_table(once)) == normalize_table(once)


@given(st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=30), st.sampled_from([P, S]))
def test_quoted_name_in_sql_is_the_normalised_name(name: str, vendor: str) -> None:
    """What the ORM calls a table and what the SQL calls it come to the same name."""
    quoted = '"' + name.replace('"', '""') + '"'
    assert classify(f"DELETE FROM {quoted}", vendor=vendor).written == {normalize_table(name)}


# -- what is given ----------------------------------------------------------------------------------------------------


def test_bytes_and_strings_alike() -> None:
    """Bytes in UTF-8, and subclasses of str, are text."""

    class Text(str):
        def __hash__(self) -> int:
            raise RuntimeError

    expected = classify('DELETE FROM "ä"', vendor=P)
    assert expected.written == {"ä"}
    text = 'DELETE FROM "ä"'
    for sql in (text.encode(), bytearray(text.encode()), memoryview(text.encode()), Text(text)):
        assert classify(sql, vendor=P) == expected
    assert classify(b"DELETE FROM \xff", vendor=P).kind is StatementKind.UNKNOWN


def test_composed_sql_of_psycopg() -> None:
    """Names that a program puts together are seen; a literal is a literal."""
    sql = pytest.importorskip("psycopg.sql")
    composed = sql.SQL("UPDATE {} SET a = {}, b = {} FROM {}").format(
        sql.Identifier("s", "T"), sql.Literal("x'; DELETE FROM y; --"), sql.Placeholder(), sql.Identifier("u")
    )
    statement = classify(composed, vendor=P)
    assert (statement.kind, statement.written, statement.read) == (StatementKind.WRITE, {"t"}, {"u"})
    assert classify(sql.SQL("SELECT 1"), vendor=P).kind is StatementKind.READ
    assert classify(sql.SQL("SELECT {}").format(sql.Literal(object())), vendor=P).kind is StatementKind.UNKNOWN


def test_composed_sql_of_psycopg2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its classes need a connection to quote names, so their documented attributes are read."""
    module: Any = ModuleType("psycopg2.sql")

    class Composable:
        def __init__(self, value: Any) -> None:
            self.seq = self.string = self.strings = self.wrapped = value

        def as_string(self, context: Any) -> str:
            raise TypeError(context)

    names = ("Composed", "SQL", "Identifier", "Literal", "Placeholder")
    kinds = {name: type(name, (Composable,), {}) for name in names}
    module.Composable = Composable
    vars(module).update(kinds)
    monkeypatch.setitem(sys.modules, "psycopg2.sql", module)
    parts = [kinds["SQL"]("DELETE FROM "), kinds["Identifier"](("s", 'a"b')), kinds["SQL"](" WHERE x = ")]
    statement = classify(kinds["Composed"]([*parts, kinds["Literal"]("y")]), vendor=P)
    assert (statement.kind, statement.written) == (StatementKind.WRITE, {'a"b'})
    assert classify(Composable("SELECT 1"), vendor=P).kind is StatementKind.UNKNOWN


def test_template_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Template strings (Python 3.14) by psycopg's rules: names, snippets, values."""

    @dataclass
    class Interpolation:
        value: Any
        format_spec: str = ""

    class Template(tuple[Any, ...]):
        __slots__ = ()

    module: Any = ModuleType("string.templatelib")
    module.Template = Template
    monkeypatch.setitem(sys.modules, "string.templatelib", module)
    nested = Template(["SELECT * FROM ", Interpolation("U", "i")])
    parts = [
        "INSERT INTO ",
        Interpolation('T"x', "i"),
        " ",
        Interpolation(nested, "q"),
        " WHERE a = ",
        Interpolation("'"),
    ]
    statement = classify(Template(parts), vendor=P)
    assert (statement.kind, statement.written, statement.read) == (StatementKind.WRITE, {'t"x'}, {"u"})
    assert classify(Template(["SELECT ", Interpolation("x", "q")]), vendor=P).kind is StatementKind.UNKNOWN


@pytest.mark.parametrize(
    "sql", [None, 5, object(), ["SELECT 1"], {}, type, float("nan"), "SELECT 1\0", "\ud800 SELECT"]
)
@pytest.mark.parametrize("vendor", [*ALL, "oracle", "", None, []])
def test_anything_else_is_unknown(sql: object, vendor: Any) -> None:
    """Nothing breaks the statement of a user, whatever it is."""
    assert classify(sql, vendor=vendor).kind is StatementKind.UNKNOWN


def test_deep_and_long_texts() -> None:
    """Depth and length break nothing, and a text that is too long is not kept."""
    nested = "SELECT " * 3 + "(SELECT 1 FROM t WHERE x IN " * 5000 + "(1)" + ")" * 5000
    assert classify(nested, vendor=P).read == {"t"}
    withs = "WITH a AS (" * 3000 + "SELECT 1" + ") SELECT * FROM a" * 3000
    assert classify(withs, vendor=P).kind in (StatementKind.READ, StatementKind.UNKNOWN)
    chain = "SET STATEMENT a=1 FOR " * 5000 + "DELETE FROM t"
    assert classify(chain, vendor=M).kind in (StatementKind.WRITE, StatementKind.UNKNOWN)
    before = sql_module._long.cache_info().misses + sql_module._short.cache_info().misses
    assert classify("SELECT 1 FROM t -- " + "x" * 70_000, vendor=P).read == {"t"}
    assert sql_module._long.cache_info().misses + sql_module._short.cache_info().misses == before


def test_a_text_is_read_once() -> None:
    """The second question about a text is answered from memory, for each vendor on its own."""
    sql = "SELECT 1 FROM asked_twice"
    first = classify(sql, vendor=P)
    hits = sql_module._short.cache_info().hits
    assert classify("SELECT 1 " + "FROM asked_twice", vendor=P) is first
    assert sql_module._short.cache_info().hits == hits + 1
    assert classify(sql, vendor=S) is not first


# -- any text ---------------------------------------------------------------------------------------------------------

WORDS = r"""
    select insert into update delete from replace merge with recursive as materialized using where set values table
    join on only lateral union except ( ) ( ) , , ; . * = %s %(x)s ? $1 $$ $a$ ' " ` [ ] /* */ /*! /*M! -- # \ :: @ @@
    'a' "b" `c` t u 1 1.5 0x1 begin end case commit rollback to savepoint explain analyze create alter drop rename
    for share temp or ignore do call copy e' u&' u&" n' pragma = on truncate cascade declare cursor fetch search cycle
    is not distinct partition of system_time rows returning conflict duplicate key order by group limit window over
"""
SOUP = st.lists(st.sampled_from([*WORDS.split(), "\n", "\r"]), max_size=40).map(" ".join)
WRITE_STARTS = ("insert", "INSERT INTO t", "update", "UPDATE t SET", "delete", "Delete From t", "merge", "truncate t")
ANY_VENDOR = st.sampled_from([*ALL, "oracle"])


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(), st.binary(), SOUP, SOUP.map(str.encode)), ANY_VENDOR)
def test_any_text_is_answered(sql: Any, vendor: str) -> None:
    """No text raises, and tables are changed by writing statements only."""
    statement = classify(sql, vendor=vendor)
    if statement.kind not in (StatementKind.WRITE, StatementKind.SCHEMA, StatementKind.UNKNOWN):
        assert not statement.written


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(["", " ", "/* x */", "-- y\n", ";", "(", "with x as (select 1) "]),
    st.sampled_from(WRITE_STARTS),
    st.sampled_from([" ", "\n", "/**/", ";"]),
    st.one_of(st.text(), SOUP),
    ANY_VENDOR,
)
def test_writing_verb_is_never_a_read(before: str, verb: str, between: str, after: str, vendor: str) -> None:
    """A text that begins with a writing verb writes, whatever follows."""
    kind = classify(before + verb + between + after, vendor=vendor).kind
    assert kind in (StatementKind.WRITE, StatementKind.SCHEMA, StatementKind.UNKNOWN)


@settings(max_examples=200, deadline=None)
@given(SOUP, st.sampled_from(WRITE_STARTS[1:2] + WRITE_STARTS[3:4]), ANY_VENDOR)
def test_writing_verb_after_a_statement_is_never_a_read(before: str, verb: str, vendor: str) -> None:
    """Nor does a statement in front hide a write, if it is a statement by itself."""
    if classify(before, vendor=vendor).kind is StatementKind.READ and not any(
        sign in before for sign in ("--", "#", "/*")
    ):
        kind = classify(f"{before} ; {verb} a = 1", vendor=vendor).kind
        assert kind is not StatementKind.READ


@st.composite
def queries(draw: st.DrawFn, depth: int = 2) -> tuple[str, frozenset[str]]:
    """A query, and the tables in it."""
    tables: set[str] = set()

    def source() -> str:
        if depth and draw(st.booleans()):
            inner, read = draw(queries(depth - 1))
            tables.update(read)
            return f"({inner}) q{draw(st.integers(0, 99))}"
        table = draw(st.sampled_from(["a", "b", "c", "d", "e"]))
        tables.add(table)
        return draw(st.sampled_from([table, f'"{table}"', f"s.{table}", f'{table} AS "from"', f"{table.upper()} z"]))

    sources = [source() for _ in range(draw(st.integers(1, 3)))]
    joiner = draw(st.sampled_from([", ", " JOIN ", "\nLEFT OUTER JOIN "]))
    word = draw(st.sampled_from(["FROM", "from", "/* from y */ From"]))
    sql = f"SELECT x, f(1), 'from z' {word} {joiner.join(sources)}"
    if depth and draw(st.booleans()):
        inner, read = draw(queries(depth - 1))
        tables.update(read)
        sql += draw(
            st.sampled_from([" WHERE x IN ({})", " WHERE EXISTS({}) AND y = 1", " GROUP BY x HAVING 1 < ({})"])
        ).format(inner)
    if depth and draw(st.booleans()):
        inner, read = draw(queries(depth - 1))
        tables.update(read)
        sql += f" UNION ALL {inner}"
    if depth and draw(st.booleans()):
        inner, read = draw(queries(depth - 1))
        tables.update(read)
        sql = f"WITH w(i) AS ({inner}) {sql} JOIN w ON 1=1"
    return sql + draw(st.sampled_from(["", " ORDER BY x, y LIMIT 5", " OFFSET %s -- from v"])), frozenset(tables)


@settings(max_examples=300, deadline=None)
@given(queries(), ANY_VENDOR, st.sampled_from(["", "INSERT INTO t ", "DELETE FROM t WHERE x IN ({})"]))
def test_tables_of_any_query(query: tuple[str, frozenset[str]], vendor: str, write: str) -> None:
    """Every table of a query is found, at any depth, and nothing else is; a write around it changes its table only."""
    sql, tables = query
    if "--" in sql:
        sql = sql.replace(" -- from v", "")
    sql = write.format(sql) if "{}" in write else write + sql
    statement = classify(sql, vendor=vendor)
    assert statement.kind is (StatementKind.WRITE if write else StatementKind.READ)
    assert statement.read == tables
    assert statement.written == ((tables | {"t"} if vendor == "oracle" else {"t"}) if write else set())
