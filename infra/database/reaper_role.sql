-- Creates the role that session-reaper connects as. Run this once per PostgreSQL instance, in any
-- of its databases (roles belong to the instance). It needs PostgreSQL 13 or newer. Running it again
-- changes nothing.
--
-- Run it as a superuser; on RDS and Aurora as the master user; on Aiven as avnadmin. From PostgreSQL
-- 16 on, only a superuser or the role that ran it first can run it again. The file works for all
-- providers: it grants what the server offers and what you may grant. For everything else it prints
-- a warning that says what to do instead. It is plain SQL, so any client can run it.
--
-- Then set the password and put it into the secret. With psql's \password it appears neither in a
-- file nor in the server's log:
--
--     \password session_reaper
--
-- For IAM authentication on RDS and Aurora, run this instead. The role then cannot use a password:
--
--     GRANT rds_iam TO session_reaper;
--
-- The role must be allowed to connect to the database that the secret names. From there it sees and
-- signals the sessions of all databases. Every role may connect unless that right was revoked from
-- PUBLIC. In that case:
--
--     GRANT CONNECT ON DATABASE postgres TO session_reaper;

-- One block, so that an error undoes everything, however the client handles errors.
DO $$
DECLARE
    version CONSTANT integer := pg_catalog.current_setting('server_version_num');
    -- From PostgreSQL 16 on, each membership has its own INHERIT option.
    inherited CONSTANT text := CASE WHEN version >= 160000 THEN ' WITH INHERIT TRUE' ELSE '' END;
    granted text;
    refusal text;
BEGIN
    IF pg_catalog.to_regrole('session_reaper') IS NULL THEN
        CREATE ROLE session_reaper;
    END IF;

    -- INHERIT: without it, the memberships below have no effect.
    -- CONNECTION LIMIT: a run holds one connection. The others are for a connection that was not
    -- closed cleanly, and for you. The reaper can never take more slots than this.
    ALTER ROLE session_reaper LOGIN INHERIT CONNECTION LIMIT 5;

    -- The reaper must never become a leak itself. Its statements take milliseconds and lock nothing.
    -- It opens no transaction and closes its sessions itself, so it needs no idle timeouts. Its own
    -- idle timeouts would hide the server's values from it, so those that earlier versions of this
    -- file set are removed.
    ALTER ROLE session_reaper SET statement_timeout = '10s';
    ALTER ROLE session_reaper SET lock_timeout = '2s';
    ALTER ROLE session_reaper RESET idle_in_transaction_session_timeout;
    IF version >= 140000 THEN
        ALTER ROLE session_reaper RESET idle_session_timeout;
    END IF;

    -- With this search_path the role cannot be made to call another role's function, which could abuse
    -- the reaper's privileges.
    ALTER ROLE session_reaper SET search_path = pg_catalog;

    -- See sessions. Without pg_read_all_stats, the state, times and addresses of other roles' sessions
    -- are NULL, and the reaper would never find anything. From PostgreSQL 16 on, granting a role takes
    -- ADMIN OPTION on it. The master user of RDS and Aurora has that on pg_monitor only, which includes
    -- pg_read_all_stats and more than the reaper needs: settings, and functions that scan tables.
    FOREACH granted IN ARRAY ARRAY['pg_read_all_stats', 'pg_monitor'] LOOP
        EXIT WHEN pg_catalog.pg_has_role('session_reaper', 'pg_read_all_stats', 'USAGE');
        BEGIN
            EXECUTE pg_catalog.format('GRANT %I TO session_reaper%s', granted, inherited);
            IF granted = 'pg_monitor' THEN
                RAISE NOTICE 'session_reaper gets pg_monitor instead of pg_read_all_stats: %', refusal;
            END IF;
        EXCEPTION
            WHEN insufficient_privilege THEN
                refusal := SQLERRM;
        END;
    END LOOP;

    -- A role that cannot see sessions is useless, so do not keep it.
    IF NOT pg_catalog.pg_has_role('session_reaper', 'pg_read_all_stats', 'USAGE') THEN
        RAISE EXCEPTION 'session_reaper would see no session, so it was not created: %', refusal
            USING
                ERRCODE = 'insufficient_privilege',
                HINT = pg_catalog.format(
                    'If %1$I has pg_read_all_stats itself, let the secret name %1$I. To let it'
                    ' terminate the sessions of an application''s role: GRANT app TO %1$I%2$s;',
                    current_user,
                    inherited
                );
    END IF;

    -- Signal sessions. pg_signal_backend allows pg_terminate_backend and pg_cancel_backend on the
    -- sessions of other roles, except superusers. Remove this part if the reaper is only to observe.
    --
    -- From PostgreSQL 16 on, Aiven's avnadmin may be unable to grant it. Membership in an application's
    -- role also allows the reaper to signal that role's sessions, but it is a large privilege: the
    -- reaper may then do everything that the application may do.
    IF NOT pg_catalog.pg_has_role('session_reaper', 'pg_signal_backend', 'USAGE') THEN
        BEGIN
            EXECUTE 'GRANT pg_signal_backend TO session_reaper' || inherited;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE WARNING 'session_reaper sees all sessions, but terminates only those of'
                    ' roles that it is a member of: %', SQLERRM
                    USING HINT = pg_catalog.format(
                        'For each application''s role: GRANT app TO session_reaper%s;'
                        ' or let the secret name a role that has pg_signal_backend.',
                        inherited
                    );
        END;
    END IF;

    -- Connect when the application has taken every ordinary slot. Prepare the server once:
    --
    -- * PostgreSQL 16 and newer: set reserved_connections = 2 in postgresql.conf, or in the parameter
    --   group of RDS and Aurora, and restart. With the default, 0, this grant has no effect.
    -- * RDS and Aurora up to 15: rds.rds_superuser_reserved_connections (2 by default) reserves slots
    --   for members of rds_superuser, and the reaper should not be one. Give the target a
    --   fallback_secret: a second secret, of the master user, used only when the server is full.
    -- * Other servers up to 15 reserve slots for superusers only. Give the target a fallback_secret of
    --   a superuser, or run the reaper often enough to act before the server is full.
    -- * Aiven documents no such setting. Keep the pools below max_connections.
    --
    -- The slots of rds.rds_reserved_connections are for AWS only.
    IF pg_catalog.to_regrole('pg_use_reserved_connections') IS NOT NULL
        AND NOT pg_catalog.pg_has_role('session_reaper', 'pg_use_reserved_connections', 'USAGE')
    THEN
        BEGIN
            EXECUTE 'GRANT pg_use_reserved_connections TO session_reaper' || inherited;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE WARNING 'session_reaper cannot connect to a server that is full: %', SQLERRM
                    USING HINT = 'Run it often enough to act before that, or give the target a'
                        ' fallback_secret with a role that has reserved slots.';
        END;
    END IF;
END
$$;

-- Show what the role may do now. It may also signal the sessions of each role in member_of.
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
    ARRAY(
        SELECT DISTINCT p.rolname
        FROM pg_catalog.pg_auth_members AS m
        INNER JOIN pg_catalog.pg_roles AS p ON p.oid = m.roleid
        WHERE m.member = r.oid
        ORDER BY p.rolname
    ) AS member_of,
    r.rolconfig AS settings
FROM pg_catalog.pg_roles AS r
WHERE r.rolname = 'session_reaper';
