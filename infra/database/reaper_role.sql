-- The role that session-reaper connects as. Run this once per PostgreSQL instance, in any database
-- of it (roles belong to the instance); running it again changes nothing. PostgreSQL 13 and newer.
--
-- Run it as a superuser; on RDS and Aurora as the master user; on Aiven as avnadmin. There is one
-- file for all of them: what it does depends on what the server has and what you may grant. What
-- you may not grant it tells as a warning, with what to do instead. From 16 on only who made the
-- role, or a superuser, may run it again. Any client will do: this is plain SQL.
--
-- Then set the password, which is not for a file nor for the server's log, and put it into the secret.
-- In psql:
--
--     \password session_reaper
--
-- For IAM authentication on RDS and Aurora grant this instead. A password is refused from then on:
--
--     GRANT rds_iam TO session_reaper;
--
-- The role must be allowed to connect to the one database that the secret names; it sees and
-- signals the sessions of all databases from there. Every role is allowed to, unless somebody
-- revoked that from PUBLIC:
--
--     GRANT CONNECT ON DATABASE postgres TO session_reaper;

-- One block: it happens whole or not at all, whatever the client makes of an error.
DO $$
DECLARE
    version CONSTANT integer := pg_catalog.current_setting('server_version_num');
    -- Since 16 each membership has an INHERIT of its own; before, there is no such word.
    inherited CONSTANT text := CASE WHEN version >= 160000 THEN ' WITH INHERIT TRUE' ELSE '' END;
    granted text;
    refusal text;
BEGIN
    IF pg_catalog.to_regrole('session_reaper') IS NULL THEN
        CREATE ROLE session_reaper;
    END IF;

    -- INHERIT: a membership that is not inherited neither shows nor signals anything.
    -- CONNECTION LIMIT: a run holds one connection; the rest is for one that died badly and for
    -- you. Whatever goes wrong, the reaper itself takes no more slots than this.
    ALTER ROLE session_reaper LOGIN INHERIT CONNECTION LIMIT 5;

    -- It must never be what it hunts. Its statements take milliseconds and lock nothing, and it
    -- opens no transaction, and ends its sessions itself: so it needs no timeouts for idle ones, and
    -- those of its own would hide the server's from it. (Earlier forms of this file set them.)
    ALTER ROLE session_reaper SET statement_timeout = '10s';
    ALTER ROLE session_reaper SET lock_timeout = '2s';
    ALTER ROLE session_reaper RESET idle_in_transaction_session_timeout;
    IF version >= 140000 THEN
        ALTER ROLE session_reaper RESET idle_session_timeout;
    END IF;

    -- It holds a privilege worth stealing: it runs nothing that others put into a schema of theirs.
    ALTER ROLE session_reaper SET search_path = pg_catalog;

    -- To see: without it, state, times and addresses of other roles' sessions are NULL, and nothing
    -- would ever be found. From 16 on only who holds ADMIN OPTION on a role may grant it, and on
    -- RDS and Aurora the master user holds it on pg_monitor only, which contains pg_read_all_stats
    -- and more than is needed: settings, and functions that scan tables.
    FOREACH granted IN ARRAY ARRAY['pg_read_all_stats', 'pg_monitor'] LOOP
        EXIT WHEN pg_catalog.pg_has_role('session_reaper', 'pg_read_all_stats', 'USAGE');
        BEGIN
            EXECUTE pg_catalog.format('GRANT %I TO session_reaper%s', granted, inherited);
            IF granted = 'pg_monitor' THEN
                RAISE NOTICE 'session_reaper is given pg_monitor instead: %', refusal;
            END IF;
        EXCEPTION
            WHEN insufficient_privilege THEN
                refusal := SQLERRM;
        END;
    END LOOP;

    -- A role that sees nothing is of no use, whatever else it may do.
    IF NOT pg_catalog.pg_has_role('session_reaper', 'pg_read_all_stats', 'USAGE') THEN
        RAISE EXCEPTION 'session_reaper would see no session, so it is not made: %', refusal
            USING
                ERRCODE = 'insufficient_privilege',
                HINT = pg_catalog.format(
                    'Let the secret name %1$I, if that role has pg_read_all_stats itself. For it to'
                    ' terminate the sessions of an application''s role: GRANT app TO %1$I%2$s;',
                    current_user,
                    inherited
                );
    END IF;

    -- To act: pg_terminate_backend and pg_cancel_backend on other roles' sessions. Superusers'
    -- sessions stay out of its reach. Leave this out, and it can observe but not enforce.
    -- Aiven's avnadmin may not be able to grant it from 16 on. A membership in the application's
    -- role does the same for the sessions of that role. It is no small gift: the reaper then may
    -- do all that the application may.
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

    -- To get in when the application has taken every ordinary slot. What to set, once:
    --
    -- * 16 and newer: reserved_connections = 2, in postgresql.conf or in the parameter group of
    --   RDS and Aurora; then restart. PostgreSQL's default is 0, and then this grant does nothing.
    -- * RDS and Aurora up to 15: rds.rds_superuser_reserved_connections (2 by default) is for
    --   members of rds_superuser only, and the reaper should not be one. Give the target a
    --   fallback_secret: a second secret, with the master user, used only when the server is full.
    -- * Elsewhere up to 15 only superusers have such slots: a fallback_secret of a superuser's, or
    --   the reaper must come before it is too late.
    -- * Aiven documents no such setting: keep the pools' sizes below max_connections.
    --
    -- The slots of rds.rds_reserved_connections are AWS's own; nobody else gets them.
    IF pg_catalog.to_regrole('pg_use_reserved_connections') IS NOT NULL
        AND NOT pg_catalog.pg_has_role('session_reaper', 'pg_use_reserved_connections', 'USAGE')
    THEN
        BEGIN
            EXECUTE 'GRANT pg_use_reserved_connections TO session_reaper' || inherited;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE WARNING 'session_reaper does not get into a server that is full: %', SQLERRM
                    USING HINT = 'Run it often enough to come before that, or give the target a'
                        ' fallback_secret with a role that has reserved slots.';
        END;
    END IF;
END
$$;

-- What it may do now. It may also signal the sessions of the roles that it is a member of.
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
