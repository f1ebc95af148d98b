"""What both benchmarks do to a server first."""

from pathlib import Path

from infra.local.postgres import Server


def reaper_secret(database: Server, password: str) -> dict[str, object]:
    """Make our role and a role `app` in a server; what leads ours there, verified in full."""
    admin = database.connect()
    admin.run(Path("infra/database/reaper_role.sql").read_text())
    admin.run(f"ALTER ROLE session_reaper PASSWORD '{password}'")
    admin.run(f"CREATE ROLE app LOGIN PASSWORD '{password}'")
    admin.close()
    return {
        "engine": "postgres",
        "host": database.host,
        "port": database.port,
        "username": "session_reaper",
        "password": password,
        "dbname": "postgres",
        "sslmode": "verify-full",
        "sslrootcert": database.tls.authority.read_text() if database.tls else None,
    }
