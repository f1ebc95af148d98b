-- What a check tells of one server and of our role on it, as one JSON value.
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
    -- In the form of a certificate's end, to be compared with it.
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
            -- The server's own, unless our role or this connection has another: then NULL.
            SELECT NULL::name AS role, NULL::name AS database, s.name, CASE
                WHEN s.source NOT IN ('default', 'configuration file', 'command line') THEN NULL
                WHEN s.setting = '0' THEN '0'
                ELSE s.setting || coalesce(s.unit, '')
            END AS value
            FROM pg_settings AS s
            UNION ALL
            SELECT r.rolname, d.datname, split_part(c.setting, '=', 1),
                substr(c.setting, strpos(c.setting, '=') + 1)
            FROM pg_db_role_setting AS s
            CROSS JOIN unnest(s.setconfig) AS c (setting)
            LEFT JOIN pg_roles AS r ON r.oid = s.setrole
            LEFT JOIN pg_database AS d ON d.oid = s.setdatabase
        ) AS t
        WHERE t.name IN (
            'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout',
            'statement_timeout', 'client_connection_check_interval'
        )
    )
) AS preflight
FROM pg_roles AS m
WHERE m.rolname = session_user
