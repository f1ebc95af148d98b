-- Makes one server look like a server of its own to each role reaper_0, reaper_1, ...: the function
-- tells servers apart by their start. A superuser runs it; {count} roles can then log in.
CREATE OR REPLACE FUNCTION pg_catalog.pg_postmaster_start_time() RETURNS timestamptz
LANGUAGE sql STABLE STRICT PARALLEL SAFE
RETURN timestamptz '2026-01-01 00:00:00+00'
    + make_interval(secs => coalesce(substring(session_user::text FROM '\d+$'), '0')::integer);

DO $$
BEGIN
    FOR number IN 0 .. {count} - 1 LOOP
        EXECUTE format(
            'CREATE ROLE reaper_%s LOGIN PASSWORD %L IN ROLE session_reaper', number, '{password}'
        );
    END LOOP;
END
$$;
