-- Signals one session if it is still the very one that was looked at: no row means that it has changed
-- or is gone. The function that signals stands in the SELECT list: in WHERE it could run before the
-- other conditions. A session that is hidden from us now is not signalled, and answers NULL. One that
-- waits for something else than its rule relies on keeps its identity, and answers `waits`.
--
-- {function}  pg_terminate_backend or pg_cancel_backend, behind the same guard
SELECT CASE
    WHEN a.backend_type IS NULL THEN NULL
    WHEN coalesce(a.wait_event_type = CAST(:wait_event_type AS text),
                  CAST(:wait_event_type AS text) IS NULL)
        AND coalesce(a.wait_event = CAST(:wait_event AS text), CAST(:wait_event AS text) IS NULL)
        AND coalesce(a.wait_event <> CAST(:other_than AS text), true)
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
