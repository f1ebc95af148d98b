-- The snapshot: everything that one run needs from one server, except the holders of its slots, as one
-- JSON value, because 5,000 sessions in it decode in a fraction of the time that 5,000 driver rows take.
-- It reads the function under pg_stat_activity instead of the view, and few catalogs, because planning
-- takes most of the time on a new connection.
--
-- The answer leaves the server unconverted (client_encoding SQL_ASCII, from here on): a query is in the
-- encoding of its own database, and invalid text in one query must not hide the other sessions.
--
-- Two things keep planning short. The parts that no rule needs are left out. The two operands of an
-- operator have the same type (1000000.0 is numeric, like the result of extract()), because otherwise
-- the server loads all operators of that name.
--
-- {is_transient} transient_sessions.sql
-- {columns}      session_columns.sql, in the order in which rows.py reads them
-- {idle_for}     a JSON object, state -> seconds: sessions in other states, or in their state for less
--                time, match no rule and stay on the server, except those that a dump may have
-- {waits}        waits.sql, or NULL if no rule needs it: planning it takes a fifth of the whole
-- {locks}        locks.sql, or nothing if no rule needs it
SELECT json_build_object(
    'role', session_user,
    'pid', pg_backend_pid(),
    'started', round(extract(epoch FROM pg_postmaster_start_time()) * 1000000.0)::bigint,
    'checkpointer', max(a.pid) FILTER (WHERE a.backend_type = 'checkpointer'),
    'checkpointer_started', round(extract(epoch FROM
        max(a.backend_start) FILTER (WHERE a.backend_type = 'checkpointer')) * 1000000.0)::bigint,
    'taken_at', round(extract(epoch FROM max(m.now)) * 1000000.0)::bigint,
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
            extract(epoch FROM m.now - a.state_change)::double precision
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
    'waits', ({waits})
)::text AS snapshot
FROM pg_stat_get_activity(NULL) AS a
LEFT JOIN pg_roles AS r ON r.oid = a.usesysid
{locks}
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
WHERE a.pid <> pg_backend_pid()
