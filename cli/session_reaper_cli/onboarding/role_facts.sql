-- Reads the facts about a role before it is created, changed or dropped. {role}: its name, as a
-- literal. A role of the role's file has the setting search_path = pg_catalog.
SELECT
    pg_catalog.current_setting('server_version_num'),
    current_user OPERATOR(pg_catalog.=) {role},
    r.oid IS NOT NULL,
    COALESCE(
        r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls, false
    ),
    COALESCE('search_path=pg_catalog' OPERATOR(pg_catalog.=) ANY (r.rolconfig), false),
    pg_catalog.to_regrole('rds_iam') IS NOT NULL,
    EXISTS (
        SELECT FROM pg_catalog.pg_auth_members AS m
        WHERE m.member = r.oid AND m.roleid = pg_catalog.to_regrole('rds_iam')
    )
FROM (VALUES (1)) AS one
LEFT JOIN pg_catalog.pg_roles AS r ON r.rolname = {role}
