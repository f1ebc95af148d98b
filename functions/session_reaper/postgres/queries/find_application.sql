-- Whether the server shows another session by its application name, from the address that we have
-- there ourselves. Renames our own session, so that the other one can look for it.
--
-- {wanted}    the name of the other session
-- {own_name}  the name of our own session from now on
SELECT EXISTS (
    SELECT FROM pg_stat_get_activity(NULL) AS a
    WHERE a.application_name = {wanted} AND a.client_addr = o.client_addr
)
FROM pg_stat_get_activity(pg_backend_pid()) AS o
WHERE set_config('application_name', {own_name}, false) IS NOT NULL
