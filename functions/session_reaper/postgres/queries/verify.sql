-- Which of the signalled sessions remain, and the slots used at the same moment, as one JSON value. It
-- identifies the server, because a pooler may switch servers under one connection.
--
-- :changes  for a cancelled session its state_change: once that differs, the query has ended. Empty for
--           a terminated session, which remains in any state. (Not NULL: with array_nulls off, that
--           would be read as text.)
-- {is_transient}  transient_sessions.sql
SELECT json_build_object(
    'started', round(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
    'checkpointer', max(a.pid) FILTER (WHERE a.backend_type = 'checkpointer'),
    'checkpointer_started', round(extract(epoch FROM
        max(a.backend_start) FILTER (WHERE a.backend_type = 'checkpointer')) * 1000000)::bigint,
    'remaining', coalesce(json_agg(a.pid) FILTER (WHERE v.pid IS NOT NULL), '[]'),
    -- Rows that are hidden from us, and those of sessions among them, are recognised as in snapshot.sql.
    'can_see', count(*) FILTER (WHERE a.backend_type IS NULL AND a.usesysid IS NOT NULL) = 0,
    'used', count(*) FILTER (
        WHERE (
            a.backend_type = 'client backend'
            OR a.backend_type IS NULL AND a.usesysid IS NOT NULL AND a.datid IS NOT NULL
        )
        AND a.pid <> pg_backend_pid()
    ) - count(*) FILTER (WHERE {is_transient})
)::text AS verification
FROM pg_stat_get_activity(NULL) AS a
LEFT JOIN unnest(
    CAST(:pids AS integer[]), CAST(:starts AS timestamptz[]), CAST(:changes AS text[])
) AS v (pid, backend_start, state_change)
    ON v.pid = a.pid
    -- A hidden row with this pid may be the signalled session.
    AND coalesce(v.backend_start = a.backend_start, true)
    AND coalesce(CAST(nullif(v.state_change, '') AS timestamptz) = a.state_change, true)
