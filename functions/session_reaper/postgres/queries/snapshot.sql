-- The snapshot: everything that one run needs from one server, as one JSON value. JSON, because 5,000
-- sessions in it decode in a fraction of the time that 5,000 driver rows take. The function under
-- pg_stat_activity instead of the view, and few catalogs, because on a new connection planning takes
-- most of the time.
--
-- The answer leaves the server unconverted (client_encoding SQL_ASCII, from here on): a query is in the
-- encoding of its own database, and invalid text in one query must not hide the other sessions.
--
-- {is_transient} transient_sessions.sql
-- {columns}      the columns of a session, in the order in which rows.py reads them
-- {idle_for}     a JSON object, state -> seconds: sessions in other states, or in their state for less
--                time, match no rule and stay on the server, except those that a dump may have
-- {waits}        waits.sql, or NULL if no rule needs it: planning it takes a fifth of the whole
-- {holders}      holders.sql, which runs only where many of the slots are used
-- {holders_from} from this share of the slots on
-- {locks}        true or false: count the locks on objects of each session; the planner drops `false`
-- {query_id}     a.query_id, or NULL before PostgreSQL 14, which has none
-- {query_bytes}  the most bytes of a query that leave the server, which may keep a megabyte of each.
--                A longer query is cut by bytes, in any encoding, and leaves as base64, because half a
--                character is invalid text.
-- {query_ends}   true or false: send the end of a query that was cut, for the tags of its last comment,
--                if the server accepted it and keeps all of it. So it ends with a token, not within one.
-- {query_end_bytes}  the most bytes of it
SELECT json_build_object(
    'role', session_user,
    'pid', pg_backend_pid(),
    'started', round(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
    'checkpointer', max(a.pid) FILTER (WHERE a.backend_type = 'checkpointer'),
    'checkpointer_started', round(extract(epoch FROM
        max(a.backend_start) FILTER (WHERE a.backend_type = 'checkpointer')) * 1000000)::bigint,
    'taken_at', round(extract(epoch FROM max(m.now)) * 1000000)::bigint,
    'server_version', current_setting('server_version_num')::integer,
    'inherits', (SELECT o.rolinherit FROM pg_roles AS o WHERE o.rolname = session_user),
    'reader', pg_is_in_recovery(),
    'max', max(m.max_connections),
    'reserved', max(m.reserved),
    'used', count(*) FILTER (WHERE a.backend_type = 'client backend'),
    'transient', count(*) FILTER (WHERE {is_transient}),
    -- A row that is hidden from us has a NULL backend_type, so no other count includes it.
    'can_see', pg_has_role('pg_read_all_stats', 'USAGE')
        AND count(*) FILTER (WHERE a.backend_type IS NULL AND a.usesysid IS NOT NULL) = 0,
    -- Their other columns are hidden, too. Background processes have no role or no database.
    'hidden', count(*) FILTER (
        WHERE a.backend_type IS NULL AND a.usesysid IS NOT NULL AND a.datid IS NOT NULL
    ),
    'can_signal', pg_has_role('pg_signal_backend', 'USAGE'),
    'untracked', count(*) FILTER (WHERE a.backend_type = 'client backend' AND a.state = 'disabled'),
    'states', json_agg(a.state) FILTER (WHERE a.backend_type = 'client backend'),
    'oldest_idle_in_transaction', greatest(
        max(extract(epoch FROM m.now - a.state_change)) FILTER (
            WHERE a.backend_type = 'client backend' AND a.state LIKE 'idle in transaction%'
        ),
        0
    ),
    'sessions', coalesce(json_agg(json_build_array({columns})) FILTER (
        WHERE a.backend_type = 'client backend'
        AND (
            extract(epoch FROM m.now - a.state_change)
                >= (CAST({idle_for} AS json) ->> a.state)::double precision
            -- A parallel dump is recognised by its leader, idle in transaction, and its workers together,
            -- so all of them are needed if a rule may match one of them.
            -- LIKE with a prefix compares bytes, so any encoding will do.
            OR coalesce(
                    CAST({idle_for} AS json) ->> 'idle in transaction',
                    CAST({idle_for} AS json) ->> 'active',
                    CAST({idle_for} AS json) ->> 'fastpath function call'
                ) IS NOT NULL
                AND a.backend_xmin IS NOT NULL AND a.backend_xid IS NULL
                AND (
                    a.query LIKE 'COPY %' OR a.query LIKE 'LOCK TABLE %'
                    OR a.state IN ('idle in transaction', 'fastpath function call')
                )
        )
    ), '[]'),
    -- A parallel query's session waits for its workers while one of them waits for a lock.
    'lock_waiters', json_agg(coalesce(a.leader_pid, a.pid)) FILTER (WHERE a.wait_event_type = 'Lock'),
    'waits', ({waits}),
    'holders', CASE
        WHEN count(*) FILTER (
            WHERE a.backend_type = 'client backend' AND {is_transient} IS NOT TRUE
        )
            >= {holders_from} * max(m.max_connections - m.reserved)
        THEN ({holders})
    END
)::text AS snapshot
FROM pg_stat_get_activity(NULL) AS a
LEFT JOIN pg_database AS d ON d.oid = a.datid
LEFT JOIN pg_roles AS r ON r.oid = a.usesysid
LEFT JOIN (
    SELECT l.pid, count(*) AS locks
    FROM pg_lock_status() AS l
    WHERE {locks} AND l.granted AND l.locktype NOT IN ('virtualxid', 'transactionid')
        AND l.mode <> 'SIReadLock' -- it blocks no session and outlives its transaction
    GROUP BY l.pid
) AS l ON l.pid = a.pid
CROSS JOIN (
    SELECT
        clock_timestamp() AS now,
        current_setting('server_version_num')::integer AS version,
        pg_has_role('pg_signal_backend', 'USAGE') AS can_signal,
        current_setting('max_connections')::integer AS max_connections,
        -- A setting counts where this server has it. RDS and Aurora up to 15 reserve slots for
        -- rds_superuser; from 16 on that setting is deprecated in favour of reserved_connections.
        current_setting('superuser_reserved_connections')::integer
        + coalesce(nullif(current_setting('reserved_connections', true), '')::integer, 0)
        + coalesce(nullif(current_setting('rds.rds_reserved_connections', true), '')::integer, 0)
        + CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 0 ELSE
            coalesce(
                nullif(current_setting('rds.rds_superuser_reserved_connections', true), '')::integer,
                0
            )
        END AS reserved,
        set_config('client_encoding', 'SQL_ASCII', false),
        -- Longer than the longest pause between two snapshots, whatever timeout the role has.
        CASE WHEN current_setting('server_version_num')::integer >= 140000
             THEN set_config('idle_session_timeout', '6min', false) END
    OFFSET 0
) AS m
CROSS JOIN LATERAL (
    SELECT
        a.pid AS pid,
        a.backend_start AS backend_start,
        a.xact_start AS xact_start,
        a.state_change AS state_change,
        a.query_start AS query_start,
        a.state AS state,
        r.rolname AS role,
        d.datname AS database,
        a.application_name AS application,
        host(a.client_addr) AS client,
        CASE WHEN octet_length(a.query) <= {query_bytes} THEN a.query END AS query,
        CASE WHEN octet_length(a.query) > {query_bytes}
             THEN encode(substring(textsend(a.query) FROM 1 FOR {query_bytes}), 'base64')
        END AS cut_query,
        nullif({query_id}, 0)::text AS query_id, -- text: JSON would round the number
        greatest(extract(epoch FROM m.now - a.state_change), 0) AS idle_seconds,
        CASE WHEN a.xact_start IS NOT NULL -- greatest() ignores NULL
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
        CASE WHEN {locks} THEN coalesce(l.locks, 0) END AS locks,
        r.rolsuper AS superuser,
        r.rolreplication AS replication,
        r.rolname = session_user AS own_role,
        m.can_signal OR coalesce(pg_has_role(r.oid, 'USAGE'), false) AS signalable,
        a.wait_event_type AS wait_event_type,
        a.wait_event AS wait_event,
        CASE WHEN {query_ends} AND octet_length(a.query) > {query_bytes}
                AND a.state = 'idle in transaction'
                -- The server cuts before a character, which has at most 4 bytes. Before 15 it does not
                -- read its own unit B.
                AND octet_length(a.query) < pg_size_bytes(regexp_replace(
                    current_setting('track_activity_query_size'), '(?<=[0-9])B$', ''
                )) - 4
             THEN encode(
                 substring(textsend(a.query) FROM octet_length(a.query) - {query_end_bytes} + 1),
                 'base64'
             )
        END AS query_end
) AS s
WHERE a.pid <> pg_backend_pid()
