-- Everything that one run needs of one server, as one JSON value (decoding 5,000 rows of it takes a
-- fraction of what 5,000 driver rows take). It leaves as bytes: a query is in the encoding of its own
-- database, and one that is no valid text in ours must not hide the other sessions.
--
-- :idle_for  a JSON object, state -> seconds: sessions in other states, or for a shorter time in
--            theirs, match no rule and stay on the server.
WITH moment AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), activity AS MATERIALIZED (
    SELECT * FROM pg_stat_activity
), own AS MATERIALIZED (
    SELECT usesysid, usename FROM activity WHERE pid = pg_backend_pid()
), clients AS MATERIALIZED (
    SELECT * FROM activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
)
SELECT textsend(json_build_object(
    'role', (SELECT usename FROM own),
    'max', current_setting('max_connections')::integer,
    -- Each setting counts where this server has it. RDS and Aurora up to 15 keep slots for
    -- rds_superuser; from 16 on that setting is deprecated in favour of reserved_connections.
    'reserved', (
        SELECT sum(coalesce(nullif(current_setting(setting, true), '')::integer, 0))
        FROM unnest(ARRAY[
            'superuser_reserved_connections',
            'reserved_connections',
            'rds.rds_reserved_connections',
            CASE WHEN current_setting('server_version_num')::integer < 160000
                 THEN 'rds.rds_superuser_reserved_connections' END
        ]) AS setting
        WHERE setting IS NOT NULL
    ),
    'used', (SELECT count(*) FROM clients),
    -- A row that we may not see has a NULL backend_type, so it is in no count above.
    'can_see', pg_has_role('pg_read_all_stats', 'USAGE')
        AND NOT EXISTS (SELECT FROM activity WHERE backend_type IS NULL AND usesysid IS NOT NULL),
    'can_signal', pg_has_role('pg_signal_backend', 'USAGE'),
    'untracked', (SELECT count(*) FROM clients WHERE state = 'disabled'),
    'sessions', (
        SELECT coalesce(json_agg(json_build_array(
            c.pid,
            c.backend_start,
            c.xact_start,
            c.state_change,
            c.state,
            c.usename,
            c.datname,
            c.application_name,
            host(c.client_addr),
            c.query,
            greatest(extract(epoch FROM m.now - c.state_change), 0),
            greatest(extract(epoch FROM m.now - c.xact_start), 0),
            greatest(extract(epoch FROM m.now - c.backend_start), 0),
            CASE WHEN c.state = 'active'
                 THEN greatest(extract(epoch FROM m.now - c.query_start), 0) END,
            -- A role dropped under its session: nothing is known of it, so it counts as superuser.
            coalesce(r.rolsuper, true),
            coalesce(r.rolreplication, true),
            c.usesysid = o.usesysid
        )), '[]')
        FROM clients AS c
        CROSS JOIN moment AS m
        CROSS JOIN own AS o
        JOIN json_each_text(:idle_for) AS wanted (state, seconds)
            ON c.state = wanted.state
            AND m.now - c.state_change >= make_interval(secs => wanted.seconds::double precision)
        LEFT JOIN pg_roles AS r ON r.oid = c.usesysid
    )
)::text) AS look
