-- The facts that advice is based on: one server, and our role on it, as one JSON value.
--
-- The answer leaves in UTF-8 (client_encoding, from here on): an ALTER sends the names back.
WITH set_for AS (
    SELECT s.setrole, s.setdatabase, split_part(c.setting, '=', 1) AS name,
        substr(c.setting, strpos(c.setting, '=') + 1) AS value
    FROM pg_db_role_setting AS s
    CROSS JOIN unnest(s.setconfig) AS c (setting)
)
SELECT json_build_object(
    'version', current_setting('server_version'),
    'major', current_setting('server_version_num')::integer / 10000,
    'provider', CASE
        WHEN EXISTS (SELECT FROM pg_proc WHERE proname = 'aurora_version') THEN 'Aurora'
        WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_superuser') THEN 'RDS'
        WHEN EXISTS (SELECT FROM pg_database WHERE datname = '_aiven') THEN 'Aiven'
        ELSE 'vanilla'
    END,
    'role', m.rolname,
    'superuser', m.rolsuper,
    'inherits', m.rolinherit,
    'connection_limit', nullif(m.rolconnlimit, -1),
    'granted_reserved', EXISTS (
        SELECT FROM pg_roles AS p
        WHERE p.rolname = 'pg_use_reserved_connections' AND pg_has_role(p.oid, 'USAGE')
    ),
    'reserved_slots', CASE
        WHEN m.rolsuper THEN current_setting('superuser_reserved_connections')::integer
        WHEN current_setting('server_version_num')::integer >= 160000
            THEN coalesce(nullif(current_setting('reserved_connections', true), '')::integer, 0)
        WHEN EXISTS (
            SELECT FROM pg_roles AS p
            WHERE p.rolname = 'rds_superuser' AND pg_has_role(p.oid, 'MEMBER')
        ) THEN coalesce(
            nullif(current_setting('rds.rds_superuser_reserved_connections', true), '')::integer, 0
        )
        ELSE 0
    END,
    -- In the format of a certificate's expiry, to be compared with it.
    'soon', to_char(
        (clock_timestamp() + interval '30 days') AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'
    ),
    'databases', (
        SELECT json_agg(d.datname ORDER BY d.datname)
        FROM pg_database AS d
        WHERE d.datallowconn AND NOT d.datistemplate AND d.datname NOT IN ('rdsadmin', '_aiven')
    ),
    'timeouts', (
        SELECT json_agg(json_build_array(t.role, t.database, t.name, t.value)
            ORDER BY t.role NULLS FIRST, t.database NULLS FIRST, t.name)
        FROM (
            -- The value for the whole server (also by ALTER ROLE ALL), or NULL if a setting of our
            -- role, database or connection hides it. reset_val ignores what the snapshot sets.
            SELECT NULL::name AS role, NULL::name AS database, s.name, CASE
                WHEN s.source = 'client' OR EXISTS (
                    SELECT FROM set_for AS f
                    LEFT JOIN pg_database AS d ON d.oid = f.setdatabase
                    WHERE f.name = s.name AND (f.setrole, f.setdatabase) <> (0, 0)
                    AND f.setrole IN (0, m.oid) AND coalesce(d.datname = current_database(), true)
                ) THEN NULL
                WHEN s.reset_val = '0' THEN '0'
                ELSE s.reset_val || coalesce(s.unit, '')
            END AS value
            FROM pg_settings AS s
            UNION ALL
            SELECT r.rolname, d.datname, f.name, f.value
            FROM set_for AS f
            LEFT JOIN pg_roles AS r ON r.oid = f.setrole
            LEFT JOIN pg_database AS d ON d.oid = f.setdatabase
            WHERE (f.setrole, f.setdatabase) <> (0, 0)
        ) AS t
        WHERE t.name IN (
            'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout',
            'statement_timeout', 'client_connection_check_interval'
        )
    ),
    -- Idle sessions by application and role, if it has more than one.
    'idle', (
        SELECT json_agg(json_build_array(i.application_name, i.usename, i.number)
            ORDER BY i.number DESC, i.application_name, i.usename)
        FROM (
            SELECT a.application_name, a.usename, count(*) AS number
            FROM pg_stat_activity AS a
            WHERE a.backend_type = 'client backend' AND a.state = 'idle'
                AND a.usename <> session_user
            GROUP BY a.application_name, a.usename
            HAVING count(*) > 1
        ) AS i
    ),
    -- Without the gid: it is a literal of the application.
    'prepared', (
        SELECT json_agg(json_build_array(
            p.database, greatest(extract(epoch FROM clock_timestamp() - p.prepared), 0)
        ) ORDER BY p.prepared)
        FROM pg_prepared_xacts AS p
    ),
    -- The slots that hold vacuum back, and by how many transactions. A lost slot holds nothing.
    'replication_slots', (
        SELECT json_agg(json_build_array(s.slot_name, s.active, s.held) ORDER BY s.held DESC, s.slot_name)
        FROM (
            SELECT r.slot_name, r.active, greatest(age(r.xmin), age(r.catalog_xmin)) AS held
            FROM pg_replication_slots AS r
            WHERE r.wal_status IS DISTINCT FROM 'lost'
        ) AS s
        WHERE s.held IS NOT NULL
    )
)::text AS server_facts
FROM pg_roles AS m
CROSS JOIN (SELECT set_config('client_encoding', 'UTF8', false) OFFSET 0) AS e
WHERE m.rolname = session_user
