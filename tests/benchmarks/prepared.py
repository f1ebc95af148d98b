"""The preparation of a server for the benchmarks."""

from pathlib import Path

from infra.local.postgres import Server


def reaper_secret(database: Server, password: str) -> dict[str, object]:
    """Create our role and a role `app`; return a secret of ours with sslmode verify-full."""
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
