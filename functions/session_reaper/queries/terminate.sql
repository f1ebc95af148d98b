-- Signals each session that is still the very one that was looked at, and names it; one that is not
-- named has changed or is gone. pg_stat_activity stands still within a transaction, and a statement is
-- one: the snapshot is dropped before each session's own row is read, so that between its check and its
-- signal there is no other session's. The function that signals stands in the SELECT list: in WHERE it
-- could run before the other conditions.
SELECT v.pid, pg_terminate_backend(a.pid) AS signalled
FROM unnest(
    CAST(:pids AS integer[]),
    CAST(:backend_starts AS timestamptz[]),
    CAST(:xact_starts AS timestamptz[]),
    CAST(:state_changes AS timestamptz[]),
    CAST(:states AS text[])
) AS v (pid, backend_start, xact_start, state_change, state)
CROSS JOIN LATERAL pg_stat_get_activity(
    CASE WHEN pg_stat_clear_snapshot() IS NOT NULL THEN v.pid END
) AS a
WHERE a.pid = v.pid
  AND a.backend_type = 'client backend'
  AND a.backend_start = v.backend_start
  AND a.xact_start IS NOT DISTINCT FROM v.xact_start
  AND a.state_change IS NOT DISTINCT FROM v.state_change
  AND a.state = v.state
