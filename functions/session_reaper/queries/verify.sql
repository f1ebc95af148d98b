-- Which of the signalled sessions are still there, and the slots used at that same moment.
SELECT
    coalesce(array_agg(a.pid) FILTER (WHERE v.pid IS NOT NULL), '{}') AS remaining,
    count(*) FILTER (WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()) AS used
FROM pg_stat_activity AS a
LEFT JOIN unnest(CAST(:pids AS integer[]), CAST(:starts AS timestamptz[])) AS v (pid, backend_start)
    ON v.pid = a.pid
    AND coalesce(v.backend_start = a.backend_start, true) -- what we may not see may be the one
