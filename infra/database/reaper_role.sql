-- The role that session-reaper connects as. Run this once per PostgreSQL instance, in any database
-- of it (roles belong to the instance); running it again changes nothing. PostgreSQL 13 and newer.
--
-- Run it as a superuser, or on RDS and Aurora as the master user. Any client will do: this is plain
-- SQL. Then set the password, which is not for a file:
--
--     ALTER ROLE session_reaper PASSWORD '...';
--
-- and put it into the secret. The role must be allowed to connect to the one database that the
-- secret names; it sees and signals the sessions of all databases from there. Every role is allowed
-- to, unless somebody revoked that from PUBLIC:
--
--     GRANT CONNECT ON DATABASE postgres TO session_reaper;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'session_reaper') THEN
        CREATE ROLE session_reaper;
    END IF;
END
$$;

-- INHERIT: a membership that is not inherited neither shows nor signals anything.
-- CONNECTION LIMIT: a run holds one connection; the rest is for one that died badly and for you.
-- Whatever goes wrong, the reaper itself takes no more slots than this.
ALTER ROLE session_reaper LOGIN INHERIT CONNECTION LIMIT 5;

-- It must never be what it hunts. Its statements take milliseconds and lock nothing.
ALTER ROLE session_reaper SET statement_timeout = '10s';
ALTER ROLE session_reaper SET lock_timeout = '2s';
ALTER ROLE session_reaper SET idle_in_transaction_session_timeout = '10s';

-- It holds a privilege worth stealing: it runs nothing that others put into a schema of theirs.
ALTER ROLE session_reaper SET search_path = pg_catalog;

-- To see: without it, state, times and addresses of other roles' sessions are NULL, and nothing
-- would ever be found. (pg_monitor contains it, and more than is needed.)
GRANT pg_read_all_stats TO session_reaper;

-- To act: pg_terminate_backend and pg_cancel_backend on other roles' sessions. Superusers' sessions
-- stay out of its reach. Leave this out, and it can observe but not enforce.
GRANT pg_signal_backend TO session_reaper;

DO $$
BEGIN
    -- A leaked connection of the reaper's own ends by itself.
    IF CAST(current_setting('server_version_num') AS integer) >= 140000 THEN
        ALTER ROLE session_reaper SET idle_session_timeout = '60s';
    END IF;
END
$$;

DO $$
BEGIN
    -- To get in when the application has taken every ordinary slot: the slots of
    -- reserved_connections, which PostgreSQL has since 16. Its default is 0, and then this grant
    -- does nothing: set it to 2 in postgresql.conf or the parameter group, and restart.
    -- Before 16 only superusers have such slots: there the reaper must come before it is too late.
    IF CAST(current_setting('server_version_num') AS integer) >= 160000
        AND EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'pg_use_reserved_connections')
    THEN
        GRANT pg_use_reserved_connections TO session_reaper;
    END IF;
EXCEPTION
    -- Some providers keep this one to themselves. The rest of the role is worth having all the same.
    WHEN insufficient_privilege THEN
        RAISE WARNING 'session_reaper may not use reserved connections: %', SQLERRM;
END
$$;

-- What it may do now.
SELECT
    r.rolname AS role,
    r.rolconnlimit AS connection_limit,
    pg_catalog.pg_has_role(r.oid, 'pg_read_all_stats', 'USAGE') AS sees,
    pg_catalog.pg_has_role(r.oid, 'pg_signal_backend', 'USAGE') AS signals,
    COALESCE((
        SELECT pg_catalog.pg_has_role(r.oid, p.oid, 'USAGE')
        FROM pg_catalog.pg_roles AS p
        WHERE p.rolname = 'pg_use_reserved_connections'
    ), false) AS uses_reserved_connections,
    r.rolconfig AS settings
FROM pg_catalog.pg_roles AS r
WHERE r.rolname = 'session_reaper';
