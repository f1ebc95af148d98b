-- Signals one session if it is still as it was in the snapshot. No row means that it has changed or
-- ended; NULL means that it is hidden from us now and was not signalled. A session that begins to wait
-- keeps its identity, so the wait is checked too: `waits` means that the session is unchanged, but its
-- wait is not what its rule relies on, and that it was not signalled. The function that signals must
-- stay in the SELECT list: in WHERE it could run before the other conditions.
--
-- {function}  pg_terminate_backend or pg_cancel_backend
SELECT CASE
    WHEN a.backend_type IS NULL THEN NULL
    WHEN coalesce(a.wait_event_type = CAST(:wait_event_type AS text),
                  CAST(:wait_event_type AS text) IS NULL)
        AND coalesce(a.wait_event = CAST(:wait_event AS text), CAST(:wait_event AS text) IS NULL)
        AND coalesce(a.wait_event <> CAST(:other_than AS text), true)
        AND coalesce(a.wait_event_type || ':' || a.wait_event NOT LIKE ALL (CAST(:none_of AS text[])), true)
        AND CASE
            WHEN CAST(:waits_for_lock AS boolean) IS NULL THEN true
            -- Only a running query has parallel workers: the list of all processes is long.
            WHEN a.state IN ('active', 'fastpath function call') THEN
                CAST(:waits_for_lock AS boolean) = EXISTS (
                    SELECT FROM pg_stat_get_activity(NULL) AS g
                    WHERE g.wait_event_type = 'Lock' AND coalesce(g.leader_pid, g.pid) = a.pid
                )
            ELSE CAST(:waits_for_lock AS boolean)
                = coalesce(a.wait_event_type = 'Lock', false)
        END
    THEN CASE {function}(a.pid) WHEN true THEN 't' ELSE 'f' END
    ELSE 'waits'
END AS signalled
FROM pg_stat_get_activity(CAST(:pid AS integer)) AS a
WHERE a.pid = CAST(:pid AS integer)
  AND (
    (a.backend_type IS NULL AND a.usesysid IS NOT NULL)
    OR (
        a.backend_type = 'client backend'
        AND a.backend_start = CAST(:backend_start AS timestamptz)
        AND a.xact_start IS NOT DISTINCT FROM CAST(:xact_start AS timestamptz)
        AND a.state_change IS NOT DISTINCT FROM CAST(:state_change AS timestamptz)
        AND a.query_start IS NOT DISTINCT FROM CAST(:query_start AS timestamptz)
        AND a.state = CAST(:state AS text)
    )
  )
