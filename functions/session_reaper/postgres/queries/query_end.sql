-- The end of a query that was cut, for the tags of its last comment: a part of session_columns.sql. Read
-- only of a query that the server has accepted and keeps whole, so that it ends with a token, not within
-- one.
--
-- {query_bytes}      the most bytes of a query that is not cut
-- {query_end_bytes}  the most bytes of its end
CASE WHEN octet_length(a.query) > {query_bytes}
        AND a.state = 'idle in transaction'
        -- The server cuts before a character, which has at most 4 bytes. Before 15 it does not
        -- read its own unit B.
        AND octet_length(a.query) < pg_size_bytes(regexp_replace(
            current_setting('track_activity_query_size'), '(?<=[0-9])B$', ''
        )) - 4
     THEN encode(
         substring(textsend(a.query) FROM octet_length(a.query) - {query_end_bytes} + 1),
         'base64'
     )
END
