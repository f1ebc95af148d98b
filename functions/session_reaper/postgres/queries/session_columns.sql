-- The columns of a session, for snapshot.sql, under their names in SESSION_COLUMNS. Each expression is
-- inserted where it is used, because planning a subquery with these names takes 0.15 ms more on a new
-- connection.
--
-- {query_bytes} the most bytes of a query that leave the server, which may keep a megabyte of each.
--               A longer query is cut by bytes, in any encoding, and leaves as base64, because half a
--               character is invalid text.
-- {query_id}    a.query_id, or NULL before PostgreSQL 14, which has none
-- {locks}       the locks on objects that the session holds, or NULL if no rule needs their number
-- {query_end}   query_end.sql, or NULL if no rule needs it
a.pid AS pid,
a.backend_start AS backend_start,
a.xact_start AS xact_start,
a.state_change AS state_change,
a.query_start AS query_start,
a.state AS state,
r.rolname AS role,
-- A join would take 0.1 ms more to plan; the subquery takes 1 µs for each session.
(SELECT d.datname FROM pg_database AS d WHERE d.oid = a.datid) AS database,
a.application_name AS application,
host(a.client_addr) AS client,
CASE WHEN octet_length(a.query) <= {query_bytes} THEN a.query END AS query,
CASE WHEN octet_length(a.query) > {query_bytes}
     THEN encode(substring(textsend(a.query) FROM 1 FOR {query_bytes}), 'base64')
END AS cut_query,
-- As text, because JSON would round the number.
nullif({query_id}, 0)::text AS query_id,
greatest(extract(epoch FROM m.now - a.state_change), 0) AS idle_seconds,
-- greatest() ignores NULL.
CASE WHEN a.xact_start IS NOT NULL
     THEN greatest(extract(epoch FROM m.now - a.xact_start), 0)
END AS transaction_seconds,
greatest(extract(epoch FROM m.now - a.backend_start), 0) AS connected_seconds,
CASE WHEN a.state = 'active' AND a.query_start IS NOT NULL
     THEN greatest(extract(epoch FROM m.now - a.query_start), 0)
END AS query_seconds,
a.state = 'active' AND a.wait_event = 'ClientRead' AND NOT EXISTS (
    -- A COPY waits for its client's rows. Before 14 the server does not report its progress.
    SELECT FROM pg_stat_get_progress_info(
        CASE WHEN m.version >= 140000 THEN 'COPY' ELSE 'VACUUM' END
    ) AS p WHERE p.pid = a.pid
) AS waiting_for_client,
age(a.backend_xid) AS xid_age,
age(a.backend_xmin) AS xmin_age,
{locks} AS locks,
r.rolsuper AS superuser,
r.rolreplication AS replication,
r.rolname = session_user AS own_role,
m.can_signal OR coalesce(pg_has_role(r.oid, 'USAGE'), false) AS signalable,
a.wait_event_type AS wait_event_type,
a.wait_event AS wait_event,
{query_end} AS query_end,
