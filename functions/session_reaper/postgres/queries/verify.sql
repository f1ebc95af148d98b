-- Which of the signalled sessions are left, and the slots used at that same moment, as one JSON value.
-- It names the server that answers: a pooler may switch servers under one connection.
--
-- :changes  of a cancelled session the moment of its state: at another one its query has ended. Empty
--           of a terminated one, of which nothing may be left. (A NULL would be text to a role whose
--           array_nulls is off.)
SELECT json_build_object(
    'started', round(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
    'checkpointer', max(a.pid) FILTER (WHERE a.backend_type = 'checkpointer'),
    'checkpointer_started', round(extract(epoch FROM
        max(a.backend_start) FILTER (WHERE a.backend_type = 'checkpointer')) * 1000000)::bigint,
    'remaining', coalesce(json_agg(a.pid) FILTER (WHERE v.pid IS NOT NULL), '[]'),
    -- NULL if sessions are hidden from us now: they would be in no count.
    'used', CASE
        WHEN count(*) FILTER (WHERE a.backend_type IS NULL AND a.usesysid IS NOT NULL) = 0
        THEN count(*) FILTER (WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid())
    END
)::text AS verification
FROM pg_stat_get_activity(NULL) AS a
LEFT JOIN unnest(
    CAST(:pids AS integer[]), CAST(:starts AS timestamptz[]), CAST(:changes AS text[])
) AS v (pid, backend_start, state_change)
    ON v.pid = a.pid
    -- What we may not see may be the one.
    AND coalesce(v.backend_start = a.backend_start, true)
    AND coalesce(CAST(nullif(v.state_change, '') AS timestamptz) = a.state_change, true)
