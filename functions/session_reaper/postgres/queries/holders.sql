-- The largest groups of client sessions that hold the slots, as one JSON value. Single clients come and
-- go, so they are grouped by network. Runs after snapshot.sql where many slots are used. As a part of
-- that statement it would take 0.8 ms of planning on every new connection.
--
-- {is_transient}  transient_sessions.sql
SELECT json_build_object('holders', json_agg(
    json_build_array(
        h.application, r.rolname, h.client, h.state, h.number, h.oldest,
        r.rolsuper, r.rolreplication, r.rolname = session_user
    )
    ORDER BY h.number DESC, h.oldest DESC
))::text AS holders
FROM (
    SELECT
        a.application_name AS application,
        a.usesysid AS role,
        network(
            set_masklen(a.client_addr, CASE family(a.client_addr) WHEN 4 THEN 24 ELSE 64 END)
        ) AS client,
        coalesce(a.state, 'starting') AS state,
        count(*) AS number,
        -- A login that hangs has not changed its state yet.
        greatest(max(extract(
            epoch FROM clock_timestamp() - coalesce(a.state_change, a.backend_start)
        )), 0) AS oldest
    FROM pg_stat_get_activity(NULL) AS a
    WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
        AND {is_transient} IS NOT TRUE
    GROUP BY 1, 2, 3, 4
    ORDER BY number DESC, oldest DESC
    LIMIT 10
) AS h
LEFT JOIN pg_roles AS r ON r.oid = h.role
