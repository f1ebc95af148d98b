-- Everything that one run needs of one server, as one JSON value: decoding 5,000 sessions of it takes a
-- fraction of what 5,000 driver rows take. One scan and few catalogs (the function under
-- pg_stat_activity, not the view): in a new connection most of the time goes into planning.
--
-- Nobody converts it on its way (client_encoding SQL_ASCII, from here on): a query is in the encoding of
-- its own database, and one that is no valid text in ours must not hide the other sessions.
--
-- {idle_for}     a JSON object, state -> seconds: sessions in other states, or for a shorter time in
--                theirs, match no rule and stay on the server.
-- {waits}        waits.sql, or NULL if no rule asks: planning it takes a fifth of the whole.
-- {locks}        true or false: how many locks each holds on objects. The planner drops what is false.
-- {query_id}     a.query_id, or NULL on 13, which has none.
-- {query_bytes}  how much of a query leaves the server: it may keep a megabyte of each. A longer one is
--                cut by bytes, whatever its encoding, and leaves as base64, since half a character is
--                no text.
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
    'max', current_setting('max_connections')::integer,
    -- Each setting counts where this server has it. RDS and Aurora up to 15 keep slots for
    -- rds_superuser; from 16 on that setting is deprecated in favour of reserved_connections.
    'reserved',
        current_setting('superuser_reserved_connections')::integer
        + coalesce(nullif(current_setting('reserved_connections', true), '')::integer, 0)
        + coalesce(nullif(current_setting('rds.rds_reserved_connections', true), '')::integer, 0)
        + CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 0 ELSE
            coalesce(
                nullif(current_setting('rds.rds_superuser_reserved_connections', true), '')::integer,
                0
            )
        END,
    'used', count(*) FILTER (WHERE a.backend_type = 'client backend'),
    -- A row that we may not see has a NULL backend_type: it is in no other count.
    'can_see', pg_has_role('pg_read_all_stats', 'USAGE')
        AND count(*) FILTER (WHERE a.backend_type IS NULL AND a.usesysid IS NOT NULL) = 0,
    'can_signal', pg_has_role('pg_signal_backend', 'USAGE'),
    'untracked', count(*) FILTER (WHERE a.backend_type = 'client backend' AND a.state = 'disabled'),
    'states', json_agg(a.state) FILTER (WHERE a.backend_type = 'client backend'),
    'oldest_idle_in_transaction', greatest(
        max(extract(epoch FROM m.now - a.state_change)) FILTER (
            WHERE a.backend_type = 'client backend' AND a.state LIKE 'idle in transaction%'
        ),
        0
    ),
    'sessions', coalesce(json_agg(json_build_array(
        a.pid,
        a.backend_start,
        a.xact_start,
        a.state_change,
        a.query_start,
        a.state,
        r.rolname,
        d.datname,
        a.application_name,
        host(a.client_addr),
        CASE WHEN octet_length(a.query) <= {query_bytes} THEN a.query END,
        CASE WHEN octet_length(a.query) > {query_bytes}
             THEN encode(substring(textsend(a.query) FROM 1 FOR {query_bytes}), 'base64') END,
        nullif({query_id}, 0)::text, -- as a number it would be rounded on its way through JSON
        greatest(extract(epoch FROM m.now - a.state_change), 0),
        CASE WHEN a.xact_start IS NOT NULL -- greatest() passes over a NULL
             THEN greatest(extract(epoch FROM m.now - a.xact_start), 0) END,
        greatest(extract(epoch FROM m.now - a.backend_start), 0),
        CASE WHEN a.state = 'active' AND a.query_start IS NOT NULL
             THEN greatest(extract(epoch FROM m.now - a.query_start), 0) END,
        a.state = 'active' AND a.wait_event = 'ClientRead' AND NOT EXISTS (
            -- A COPY waits for rows. Before 14 there is no progress of it to be asked for.
            SELECT FROM pg_stat_get_progress_info(
                CASE WHEN m.version >= 140000 THEN 'COPY' ELSE 'VACUUM' END
            ) AS p WHERE p.pid = a.pid
        ),
        age(a.backend_xid),
        age(a.backend_xmin),
        CASE WHEN {locks} THEN coalesce(l.locks, 0) END,
        r.rolsuper,
        r.rolreplication,
        r.rolname = session_user,
        m.can_signal OR coalesce(pg_has_role(r.oid, 'USAGE'), false),
        a.wait_event_type,
        a.wait_event
    )) FILTER (
        WHERE a.backend_type = 'client backend'
        AND extract(epoch FROM m.now - a.state_change)
            >= (CAST({idle_for} AS json) ->> a.state)::double precision
    ), '[]'),
    -- A parallel query's session waits for its workers while one of them waits for a lock.
    'lock_waiters', json_agg(coalesce(a.leader_pid, a.pid)) FILTER (WHERE a.wait_event_type = 'Lock'),
    'waits', ({waits})
)::text AS look
FROM pg_stat_get_activity(NULL) AS a
LEFT JOIN pg_database AS d ON d.oid = a.datid
LEFT JOIN pg_roles AS r ON r.oid = a.usesysid
LEFT JOIN (
    SELECT l.pid, count(*) AS locks
    FROM pg_lock_status() AS l
    WHERE {locks} AND l.granted AND l.locktype NOT IN ('virtualxid', 'transactionid')
        AND l.mode <> 'SIReadLock' -- blocks nobody, and outlives its transaction
    GROUP BY l.pid
) AS l ON l.pid = a.pid
CROSS JOIN (
    SELECT
        clock_timestamp() AS now,
        current_setting('server_version_num')::integer AS version,
        pg_has_role('pg_signal_backend', 'USAGE') AS can_signal,
        set_config('client_encoding', 'SQL_ASCII', false),
        -- Longer than the longest pause between two looks, whatever the role is given.
        CASE WHEN current_setting('server_version_num')::integer >= 140000
             THEN set_config('idle_session_timeout', '6min', false) END
    OFFSET 0
) AS m
WHERE a.pid <> pg_backend_pid()
