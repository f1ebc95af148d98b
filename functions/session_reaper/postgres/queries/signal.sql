-- Signals one session if it is still the very one that was looked at: no row means that it has changed
-- or is gone. The function that signals stands in the SELECT list: in WHERE it could run before the
-- other conditions. A session that is hidden from us now is not signalled, and answers NULL.
--
-- {function}  pg_terminate_backend or pg_cancel_backend, behind the same guard
SELECT CASE WHEN a.backend_type IS NOT NULL THEN {function}(a.pid) END AS signalled
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
