-- Signals one session if it is still the very one that was looked at: no row means it is not, or is gone.
-- The function stands in the SELECT list: in WHERE it could run before the other conditions.
SELECT pg_terminate_backend(a.pid) AS signalled
FROM pg_stat_activity AS a
WHERE a.pid = CAST(:pid AS integer)
  AND a.backend_type = 'client backend'
  AND a.backend_start = CAST(:backend_start AS timestamptz)
  AND a.xact_start IS NOT DISTINCT FROM CAST(:xact_start AS timestamptz)
  AND a.state_change IS NOT DISTINCT FROM CAST(:state_change AS timestamptz)
  AND a.state = CAST(:state AS text)
