-- Whether a session takes its slot for a moment only, so that it does not count as used: a condition of
-- snapshot.sql and verify.sql. It may be a reaper's, of a run that lasts 15 minutes at most. Or it is a
-- login in progress, which the server shows from PostgreSQL 18 on, even if it is about to refuse it; a
-- login that takes longer than 10 seconds hangs.
--
-- {own_name}  the names of a reaper's sessions, as a pattern of LIKE
a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND (
    a.usesysid = (SELECT o.oid FROM pg_roles AS o WHERE o.rolname = session_user)
    AND a.application_name LIKE {own_name}
    AND a.backend_start > clock_timestamp() - interval '15 minutes'
    OR a.state = 'starting' AND a.backend_start > clock_timestamp() - interval '10 seconds'
)
