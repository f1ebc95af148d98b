"""The connection service file: https://www.postgresql.org/docs/current/libpq-pgservice.html."""

from collections.abc import Mapping
from pathlib import Path

from session_reaper.documents import key_label
from session_reaper.errors import ConfigurationError
from session_reaper.targets.connection_options import OPTIONS

from session_reaper_cli.connections.parameters import Parameters


def read_service(name: str, environ: Mapping[str, str], home: Path) -> Parameters:
    """Return the parameters of a service, from the user's file or else the system's.

    Raises ConfigurationError if neither has it.
    """
    own = Path(environ.get("PGSERVICEFILE") or home / ".pg_service.conf")
    folder = environ.get("PGSYSCONFDIR")
    paths = [own, *([Path(folder) / "pg_service.conf"] if folder else [])]
    for path in paths:
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
            raise ConfigurationError(str(path), problem) from None
        except UnicodeDecodeError:
            raise ConfigurationError(str(path), "must be a text file in UTF-8") from None
        found = find_service(text, name, str(path))
        if found is not None:
            return found
    searched = " or ".join(map(str, paths))
    raise ConfigurationError(
        "PGSERVICE", f"unknown service {key_label(name)}; add it to {searched}"
    )


def find_service(text: str, name: str, place: str) -> Parameters | None:
    """Return the parameters of a service in the text of a file, None if it does not have it.

    As in libpq, of two sections with one name, and of two values of one parameter, the first
    counts.
    """
    parameters: dict[str, str] = {}
    is_found = is_inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        if content.startswith("["):
            if is_found:
                return parameters
            is_found = is_inside = content == f"[{name}]"
        elif is_inside:
            key, equals, value = content.partition("=")
            if not equals or key not in OPTIONS or key == "service":
                problem = f"{key_label(key)} is not a connection parameter; write name=value"
                raise ConfigurationError(f"{place}: line {number}", problem)
            parameters.setdefault(key, value)
    return parameters if is_found else None
