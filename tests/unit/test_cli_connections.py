"""The server that the command connects to: URI, DATABASE_URL, libpq's environment and files."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

import pytest
from session_reaper.errors import ConfigurationError
from session_reaper.targets.target import AuthMethod, ChannelBinding, SslMode
from session_reaper_cli.connections.parameters import parse_pairs, parse_uri
from session_reaper_cli.connections.passfile import Login, find_password, read_password
from session_reaper_cli.connections.service_file import find_service
from session_reaper_cli.connections.target import FoundTarget, find_target

if TYPE_CHECKING:
    from pathlib import Path

CA = "-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def find(home: Path, uri: str = "", **environ: str) -> FoundTarget:
    return find_target(uri, environ, home)


def refusal(home: Path, uri: str = "", **environ: str) -> str:
    with pytest.raises(ConfigurationError) as error:
        find(home, uri, **environ)
    return str(error.value)


# -- URIs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgres://db", {"host": "db"}),
        (
            "postgresql://u@db:6000/shop",
            {"user": "u", "host": "db", "port": "6000", "dbname": "shop"},
        ),
        ("postgres://u:p%40ss%2F@db", {"user": "u", "password": "p@ss/", "host": "db"}),
        ("postgres://u:a:b@db", {"user": "u", "password": "a:b", "host": "db"}),
        ("postgres://u:a@b@db", {"user": "u", "password": "a@b", "host": "db"}),
        ("postgres://[2001:db8::7]:6000/", {"host": "2001:db8::7", "port": "6000"}),
        ("postgres://%2Frun%2Fpg:6000/shop", {"host": "/run/pg", "port": "6000", "dbname": "shop"}),
        ("postgres:///shop?host=/run", {"host": "/run", "dbname": "shop"}),
        ("postgres://db/shop?user=u&dbname=other", {"host": "db", "user": "u", "dbname": "other"}),
        ("postgres://db?sslmode=require&sslmode_=x", {"host": "db", "sslmode": "require"}),
        ("postgres://db?application_name=a+b", {"host": "db", "application_name": "a+b"}),
    ],
)
def test_a_uri_has_the_parts_that_libpq_sees(uri: str, expected: dict[str, str]) -> None:
    assert parse_uri(uri, "URI")[0] == expected


@pytest.mark.parametrize(
    "uri",
    [
        "postgres://u:s3cret/x@db",
        "postgres://u:s3cret#x@db",
        "postgres://u:s3cret?x@db",
        "postgres://u:s3cret@db,db2",
        "postgres://u:s3cret@db:port:port",
        "postgres://u:%ff@db",
        "postgres://u:s3cret@db?sslmode=require&sslmode=disable",
        "mysql://u:s3cret@db",
        "u:s3cret@db",
        "host=db password=s3cret s3cret",
        "host=db password='s3cret",
        "host=db s3cret=x",
        "host=db password=s3cret password=x",
    ],
)
def test_an_invalid_uri_is_refused_without_being_shown(home: Path, uri: str) -> None:
    problem = refusal(home, uri)
    assert problem.startswith("URI")
    assert "s3cret" not in problem
    assert "s3cret" not in refusal(home, DATABASE_URL=uri)


def test_parameters_of_a_driver_are_ignored_and_named(home: Path) -> None:
    found = find(home, "postgres://u:p@db?schema=x&pool_timeout=3")
    assert found.target.ignored_options == ("schema", "pool_timeout")


# -- name=value pairs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host=db dbname=shop user=u", {"host": "db", "dbname": "shop", "user": "u"}),
        ("  host = db\tport\n=\n6000 ", {"host": "db", "port": "6000"}),
        ("host=db password='a b=c'", {"host": "db", "password": "a b=c"}),
        (r"host=db password='it\'s \\ x'", {"host": "db", "password": r"it's \ x"}),
        (r"host=db password=a\ b\'c\\", {"host": "db", "password": r"a b'c" + "\\"}),
        ("host=db password='' dbname=", {"host": "db"}),
        ("host='db'user=u", {"host": "db", "user": "u"}),
        ("host=db password=p@ss:/w%20rd'", {"host": "db", "password": "p@ss:/w%20rd'"}),
        ("host=/run/postgresql", {"host": "/run/postgresql"}),
    ],
)
def test_pairs_are_read_by_the_rules_of_libpq(text: str, expected: dict[str, str]) -> None:
    assert parse_pairs(text, "URI") == expected


def test_pairs_are_taken_as_argument_and_from_database_url(home: Path) -> None:
    pairs = "host=db user=u password='p w' dbname=shop sslmode=require service=orders"
    (home / ".pg_service.conf").write_text("[orders]\nport=6001\nuser=service\n")
    for found in (find(home, pairs), find(home, DATABASE_URL=pairs)):
        target = found.target
        assert (target.host, target.port, target.role) == ("db", 6001, "u")
        assert (target.password, target.database) == ("p w", "shop")
        assert target.sslmode is SslMode.REQUIRE


# -- precedence ------------------------------------------------------------------------------------


def test_a_uri_argument_comes_before_database_url_and_both_before_the_environment(
    home: Path,
) -> None:
    environ = {"DATABASE_URL": "postgres://second", "PGHOST": "third", "PGUSER": "u"}
    assert find(home, "postgres://first", **environ).target.host == "first"
    assert find(home, **environ).target.host == "second"
    assert find(home, **(environ | {"DATABASE_URL": ""})).target.host == "third"


def test_what_a_uri_lacks_comes_from_the_service_and_then_from_the_environment(home: Path) -> None:
    (home / ".pg_service.conf").write_text("[orders]\nport=6001\ndbname=shop\nuser=service\n")
    environ = {"PGSERVICE": "orders", "PGPORT": "6002", "PGPASSWORD": "p", "PGUSER": "u"}
    target = find(home, "postgres://me@db", **environ).target
    assert (target.role, target.port, target.database) == ("me", 6001, "shop")
    assert target.password == "p"  # noqa: S105


def test_every_variable_of_libpq_arrives(home: Path) -> None:
    (home / "ca.pem").write_text(CA)
    target = find(
        home,
        PGHOST="db",
        PGPORT="6000",
        PGUSER="u",
        PGPASSWORD="p",
        PGDATABASE="shop",
        PGSSLMODE="verify-ca",
        PGSSLROOTCERT=str(home / "ca.pem"),
        PGCHANNELBINDING="require",
        PGREQUIREAUTH="scram-sha-256",
    ).target
    assert (target.host, target.port, target.role, target.database) == ("db", 6000, "u", "shop")
    assert target.password == "p"  # noqa: S105
    assert (target.sslmode, target.sslrootcert) == (SslMode.VERIFY_CA, CA)
    assert target.channel_binding is ChannelBinding.REQUIRE
    assert target.allowed_auth == {AuthMethod.SCRAM_SHA_256}


def test_the_defaults_are_the_users_name_the_database_postgres_and_verified_tls(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "alice")  # peer authentication does not look at it
    target = find(home, "postgres://db").target
    user = pwd.getpwuid(os.geteuid()).pw_name
    assert (target.role, target.database, target.port) == (user, "postgres", 5432)
    assert target.sslmode is SslMode.VERIFY_FULL
    assert target.password == ""


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"PGSSLMODE": "prefer"}, "PGSSLMODE: prefer and allow are refused"),
        ({"PGSSLMODE": "none"}, "PGSSLMODE: write one of"),
        ({"PGPORT": "70000"}, "PGPORT: must be 1 to 65535"),
        ({"PGHOST": "a,b"}, "PGHOST: names several servers"),
        ({"PGSSLCERT": "/x"}, "PGSSLCERT: unsupported value"),
        ({"PGHOSTADDR": "10.0.0.1"}, "PGHOSTADDR: unsupported value"),
        ({"PGOPTIONS": "-c x=y"}, "PGOPTIONS: unsupported value"),
        ({"PGREQUIREAUTH": "magic"}, "PGREQUIREAUTH: write a comma-separated list"),
        (
            {"PGCHANNELBINDING": "require", "PGSSLMODE": "disable"},
            "PGCHANNELBINDING: require needs",
        ),
        ({"PGSSLROOTCERT": "/nowhere"}, "PGSSLROOTCERT: /nowhere cannot be read"),
        ({"PGHOST": "a b"}, "PGHOST: must be a host name"),
        ({"PGSERVICE": "nowhere"}, "unknown service nowhere"),
    ],
)
def test_what_cannot_be_honoured_is_an_error_that_names_it(
    home: Path, environ: dict[str, str], words: str
) -> None:
    assert words in refusal(home, **({"PGHOST": "db", "PGUSER": "u"} | environ))


@pytest.mark.parametrize("mode", SslMode)
def test_every_sslmode_that_never_falls_back_to_plaintext_is_taken(
    home: Path, mode: SslMode
) -> None:
    assert find(home, "postgres://db", PGSSLMODE=mode).target.sslmode is mode
    assert find(home, f"host=db sslmode={mode}", PGSSLMODE="allow").target.sslmode is mode


def test_an_error_names_the_source_of_the_parameter(home: Path) -> None:
    (home / ".pg_service.conf").write_text("[orders]\nhost=a,b\n")
    environ = {"PGSERVICE": "orders", "PGSSLMODE": "allow"}
    assert refusal(home, **environ).startswith("service orders: host: names several")
    assert refusal(home, "postgres://db", **environ).startswith("PGSSLMODE: prefer and allow")
    assert refusal(home, "host=db sslmode=none", **environ).startswith("URI: sslmode: write one of")
    problem = refusal(home, DATABASE_URL="host=db,db2")
    assert problem.startswith("DATABASE_URL: host: names several")


def test_without_a_server_the_error_lists_the_ways_to_name_one(home: Path) -> None:
    problem = refusal(home, PGPORT="1")
    for way in ("postgres://", "DATABASE_URL", "PGSERVICE", "--secret"):
        assert way in problem


# -- certificates ----------------------------------------------------------------------------------


def test_the_users_own_authorities_are_trusted_but_not_for_rds(home: Path) -> None:
    (home / ".postgresql").mkdir()
    (home / ".postgresql" / "root.crt").write_text(CA)
    rds = "postgres://x.abc.eu-west-1.rds.amazonaws.com"
    assert find(home, "postgres://db").target.sslrootcert == CA
    assert find(home, rds).target.sslrootcert is None
    assert find(home, "postgres://db?sslrootcert=system").target.sslrootcert is None
    assert find(home, "postgres://db?sslmode=require").target.sslrootcert is None


def test_a_file_that_is_no_certificate_is_refused(home: Path) -> None:
    (home / "ca.pem").write_text("x")
    assert "must be a PEM file" in refusal(home, f"postgres://db?sslrootcert={home}/ca.pem")


# -- Unix sockets ----------------------------------------------------------------------------------


def test_a_socket_is_never_encrypted_and_so_never_verified(home: Path) -> None:
    target = find(home, "postgres:///shop?host=/tmp", PGSSLMODE="prefer").target
    assert target.sslmode is SslMode.VERIFY_FULL
    assert not target.is_encrypted
    assert not target.is_verified


# -- the service file ------------------------------------------------------------------------------

SERVICES = """\
# comment
[orders]
host=db
port = 6000

[billing]
host=other
host=ignored
[orders]
host=later
"""


def test_a_service_has_the_parameters_of_its_first_section() -> None:
    with pytest.raises(ConfigurationError, match="line 4: port "):
        find_service(SERVICES, "orders", "file")
    sound = SERVICES.replace("port = 6000", "port=6000")
    assert find_service(sound, "orders", "file") == {"host": "db", "port": "6000"}
    assert find_service(sound, "billing", "file") == {"host": "other"}
    assert find_service(sound, "shop", "file") is None


def test_the_systems_service_file_is_used_if_the_users_lacks_the_service(home: Path) -> None:
    (home / "pg_service.conf").write_text("[orders]\nhost=db\n")
    found = find(home, PGSERVICE="orders", PGSYSCONFDIR=str(home), PGUSER="u")
    assert (found.target.host, found.target.name) == ("db", "orders")
    own = home / "own"
    own.write_text("[orders]\nhost=own\n")
    found = find(
        home, PGSERVICE="orders", PGSYSCONFDIR=str(home), PGSERVICEFILE=str(own), PGUSER="u"
    )
    assert found.target.host == "own"


# -- the password file -----------------------------------------------------------------------------

LOGIN = Login(host="db", port="5432", database="shop", role="app")


@pytest.mark.parametrize(
    ("text", "password"),
    [
        ("db:5432:shop:app:secret", "secret"),
        ("*:*:*:*:secret", "secret"),
        ("other:5432:shop:app:wrong\ndb:*:*:app:secret\n*:*:*:*:late", "secret"),
        (r"db:5432:shop:app:se\:cr\\et", r"se:cr\et"),
        ("db:5432:shop:app:secret:more", "secret"),
        ("#db:5432:shop:app:secret", ""),
        ("db:5432:shop:app", ""),
        (r"d\b:5432:shop:app:secret", "secret"),
        (r"\*:5432:shop:app:secret", ""),
        ("db:5432:shop:ap:secret", ""),
        ("db:5432:shop:app:", ""),
        ("", ""),
    ],
)
def test_the_first_line_that_matches_gives_the_password(text: str, password: str) -> None:
    assert find_password(text, LOGIN) == password


def test_a_colon_in_a_name_is_escaped() -> None:
    login = Login(host="2001:db8::7", port="5432", database="a:b", role="app")
    assert find_password(r"2001\:db8\:\:7:5432:a\:b:app:secret", login) == "secret"


@pytest.mark.parametrize("folder", ["/tmp", "/var/run/postgresql"])  # noqa: S108
def test_a_default_socket_counts_as_localhost(folder: str) -> None:
    login = Login(host=folder, port="5432", database="shop", role="app")
    assert find_password("localhost:5432:shop:app:secret", login) == "secret"


def test_a_password_file_that_others_may_read_is_ignored_with_a_warning(home: Path) -> None:
    path = home / ".pgpass"
    path.write_text("*:*:*:*:secret\n")
    path.chmod(0o640)
    found = find(home, "postgres://app@db")
    assert found.target.password == ""
    assert "chmod 0600" in found.warning
    path.chmod(0o600)
    assert find(home, "postgres://app@db").target.password == "secret"  # noqa: S105


def test_a_password_file_that_is_a_folder_is_ignored_with_a_warning(home: Path) -> None:
    assert read_password(home, LOGIN) == ("", f"{home} is ignored: it is not a plain file")
    assert read_password(home / "nowhere", LOGIN) == ("", "")


def test_pgpassfile_names_another_file(home: Path) -> None:
    path = home / "passwords"
    path.write_text("*:*:*:*:secret\n")
    path.chmod(0o600)
    found = find(home, "postgres://app@db", PGPASSFILE=str(path))
    assert found.target.password == "secret"  # noqa: S105
    assert find(home, "postgres://app:own@db", PGPASSFILE=str(path)).target.password == "own"  # noqa: S105
