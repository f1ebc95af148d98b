-- Whether the server shows another session by its application name, from the address that we have
-- there ourselves, or from the address and the port of the other connection's socket: one may use
-- IPv4 and the other IPv6. Renames our own session, so that the other one can look for it.
--
-- {wanted}    the name of the other session
-- {address}   the address of the other connection's socket
-- {port}      its port
-- {own_name}  the name of our own session from now on
SELECT EXISTS (
    SELECT FROM pg_stat_get_activity(NULL) AS a
    WHERE a.application_name = {wanted} AND (
        a.client_addr = o.client_addr
        OR (host(a.client_addr) = {address} AND a.client_port = {port})
    )
)
FROM pg_stat_get_activity(pg_backend_pid()) AS o
WHERE set_config('application_name', {own_name}, false) IS NOT NULL
