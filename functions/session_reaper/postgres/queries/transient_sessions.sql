-- Whether a session takes its slot for a moment only, so that it does not count as used: a condition of
-- snapshot.sql, holders.sql and verify.sql. It may be a reaper's, of a run that lasts 15 minutes at most:
-- it has the name, and a role that may see all sessions, because the secrets of one server may have
-- different roles. Or it is a login in progress, which the server shows from PostgreSQL 18 on, even if
-- it is about to refuse it; a login that takes longer than 10 seconds hangs.
--
-- {own_name}  the names of a reaper's sessions, as a pattern of LIKE
(a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND (
    a.application_name LIKE {own_name}
    AND a.backend_start > statement_timestamp() - interval '15 minutes'
    AND pg_has_role(a.usesysid, 'pg_read_all_stats', 'USAGE')
    OR a.state = 'starting' AND a.backend_start > statement_timestamp() - interval '10 seconds'
))
