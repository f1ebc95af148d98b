-- The processes that wait for a lock, and their blockers: a part of snapshot.sql. pg_blocking_pids stops
-- the lock manager for a moment, so it is called only for waiting processes, and only if a rule needs it.
SELECT json_agg(json_build_array(
    coalesce(w.leader_pid, w.pid), -- a worker of a parallel query waits on behalf of its session
    w.backend_type IN ('client backend', 'parallel worker'),
    r.rolname,
    w.application_name,
    -- Before 14 the server does not record when a wait began; it cannot have begun before its query.
    greatest(coalesce(extract(epoch FROM clock_timestamp() - CASE
        WHEN current_setting('server_version_num')::integer >= 140000 THEN l.waitstart
        ELSE w.query_start
    END), 0), 0),
    to_json(pg_blocking_pids(w.pid))
))
FROM pg_stat_get_activity(NULL) AS w
LEFT JOIN pg_roles AS r ON r.oid = w.usesysid
LEFT JOIN (
    SELECT l.pid, min((to_json(l) ->> 'waitstart')::timestamptz) AS waitstart
    FROM pg_lock_status() AS l
    WHERE NOT l.granted
    GROUP BY l.pid
) AS l ON l.pid = w.pid
WHERE w.wait_event_type = 'Lock'
