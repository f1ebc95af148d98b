-- Signals one session if it is still as it was in the snapshot. No row means that it has changed or
-- ended; NULL means that it is hidden from us now and was not signalled. The function that signals must
-- stay in the SELECT list: in WHERE it could run before the other conditions.
--
-- {function}  pg_terminate_backend or pg_cancel_backend
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
