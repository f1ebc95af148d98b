-- What our role may not use of what the statements here use, as the statements that grant it. Those of
-- pg_catalog are granted in each database.
SELECT json_build_object('missing_grants', json_agg(g.statement ORDER BY g.statement))::text AS missing
FROM (
    SELECT format('GRANT EXECUTE ON FUNCTION pg_catalog.%I(%s) TO %I',
        p.proname, pg_get_function_identity_arguments(p.oid), session_user) AS statement
    FROM pg_proc AS p
    WHERE p.pronamespace = 'pg_catalog'::regnamespace
        AND p.proname IN (
            'pg_stat_get_activity', 'pg_lock_status', 'pg_blocking_pids', 'pg_stat_get_progress_info',
            'pg_terminate_backend', 'pg_cancel_backend', 'pg_postmaster_start_time',
            'pg_is_in_recovery', 'pg_backend_pid', 'pg_prepared_xact', 'pg_get_replication_slots',
            'current_setting', 'set_config', 'clock_timestamp', 'age', 'encode', 'octet_length'
        )
        AND NOT has_function_privilege(p.oid, 'EXECUTE')
    UNION ALL
    SELECT format('GRANT SELECT ON pg_catalog.%I TO %I', c.relname, session_user)
    FROM pg_class AS c
    WHERE c.relnamespace = 'pg_catalog'::regnamespace
        AND c.relname IN (
            'pg_database', 'pg_roles', 'pg_settings', 'pg_proc', 'pg_stat_activity',
            'pg_db_role_setting', 'pg_prepared_xacts', 'pg_replication_slots'
        )
        AND NOT has_table_privilege(c.oid, 'SELECT')
) AS g
