-- The functions and relations that our statements use and our role may not use.
--
-- {functions}, {relations}  their names in pg_catalog, as literals
SELECT json_build_object(
    'missing_functions', (
        SELECT json_agg(json_build_array(p.proname, oidvectortypes(p.proargtypes))
            ORDER BY p.proname, p.oid)
        FROM pg_proc AS p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname IN ({functions})
            AND NOT has_function_privilege(p.oid, 'EXECUTE')
    ),
    'missing_relations', (
        SELECT json_agg(c.relname ORDER BY c.relname)
        FROM pg_class AS c
        WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relname IN ({relations})
            AND NOT has_table_privilege(c.oid, 'SELECT')
    )
)::text AS missing
