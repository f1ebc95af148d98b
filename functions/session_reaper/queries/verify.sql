-- Which of the signalled are still there, and the slots used at that same moment.
--
-- :changes  of a cancelled session the moment of its state: at another one its query has ended. Empty
--           of a terminated one, of which nothing may be left. (A NULL would be text to a role whose
--           array_nulls is off.)
SELECT
    coalesce(array_agg(a.pid) FILTER (WHERE v.pid IS NOT NULL), '{}') AS remaining,
    -- NULL if sessions are hidden from us now: they would be in no count.
    CASE WHEN count(*) FILTER (WHERE a.backend_type IS NULL AND a.usesysid IS NOT NULL) = 0
         THEN count(*) FILTER (WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid())
    END AS used
FROM pg_stat_activity AS a
LEFT JOIN unnest(
    CAST(:pids AS integer[]), CAST(:starts AS timestamptz[]), CAST(:changes AS text[])
) AS v (pid, backend_start, state_change)
    ON v.pid = a.pid
    -- What we may not see may be the one.
    AND coalesce(v.backend_start = a.backend_start, true)
    AND coalesce(CAST(nullif(v.state_change, '') AS timestamptz) = a.state_change, true)
