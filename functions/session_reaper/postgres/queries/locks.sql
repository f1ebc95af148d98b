-- The number of locks on objects that each session holds: a part of snapshot.sql.
LEFT JOIN (
    SELECT l.pid, count(*) AS locks
    FROM pg_lock_status() AS l
    WHERE l.granted AND l.locktype NOT IN ('virtualxid', 'transactionid')
        AND l.mode <> 'SIReadLock' -- it blocks no session and outlives its transaction
    GROUP BY l.pid
) AS l ON l.pid = a.pid
