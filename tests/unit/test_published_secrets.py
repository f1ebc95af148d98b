"""Secrets as tools and manuals publish them: each is read, or its error says what to write."""

from __future__ import annotations

import json
import traceback
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import pytest
from session_reaper.targets.connection_options import OPTIONS
from session_reaper.targets.secret_document import SecretError
from session_reaper.targets.target import Auth, Secret, SslMode, Target

from tests.builders import read_target

NAME = "prod/orders"
ARN = f"arn:aws:secretsmanager:eu-west-1:123456789012:secret:{NAME}-X1y2Z3"
RDS = "orders.abc.eu-west-1.rds.amazonaws.com"
CLUSTER = "orders.cluster-abc.eu-west-1.rds.amazonaws.com"
WORD = "Zq8-CANARY_word"


@dataclass(frozen=True)
class Read:
    """The target that a shape is read as."""

    host: str = RDS
    port: int = 5432
    role: str = "reaper"
    database: str = "orders"
    sslmode: SslMode = SslMode.VERIFY_FULL


LOGIN = {"username": "reaper", "password": WORD}
USER = {"user": "reaper", "password": WORD}
SHORT, LONG = "orders-rw", "orders-rw.shop.svc.cluster.local"

READ: dict[str, tuple[str | dict[str, Any], Read]] = {
    "AWS: rotation template, single user": (
        {"engine": "postgres", "host": RDS, "dbname": "orders", "port": 5432, **LOGIN},
        Read(),
    ),
    "AWS: rotation template, alternating users, without port and database": (
        {"engine": "postgres", "host": RDS, "masterarn": ARN, **LOGIN},
        Read(database="postgres"),
    ),
    "AWS console: credentials for an RDS database": (
        {
            **LOGIN,
            "engine": "postgres",
            "host": RDS,
            "port": 5432,
            "dbInstanceIdentifier": "orders",
        },
        Read(database="postgres"),
    ),
    "CloudFormation and CDK: SecretTargetAttachment of a cluster": (
        {
            "dbClusterIdentifier": "orders",
            "engine": "aurora-postgresql",
            "port": 5432,
            "dbname": "orders",
            "host": CLUSTER,
            **LOGIN,
        },
        Read(host=CLUSTER),
    ),
    "Terraform: aws_db_instance.endpoint as host": (
        {**LOGIN, "engine": "postgres", "host": f"{RDS}:5432", "dbname": "orders"},
        Read(),
    ),
    "Terraform: aws_db_instance.endpoint as host, and its port": (
        {**LOGIN, "engine": "postgres", "host": f"{RDS}:6432", "port": 6432, "dbname": "orders"},
        Read(port=6432),
    ),
    "Terraform: interpolated into text, every value a string": (
        {**LOGIN, "engine": "postgres", "host": RDS, "port": "5432", "dbname": "orders"},
        Read(),
    ),
    "Terraform: optional variables that default to an empty string": (
        {**LOGIN, "engine": "", "host": RDS, "port": "", "dbname": "", "dbInstanceIdentifier": ""},
        Read(database="postgres"),
    ),
    "Terraform: the parts, and a JDBC URL beside them": (
        {**LOGIN, "host": RDS, "dbname": "orders", "url": f"jdbc:postgresql://{RDS}:5432/orders"},
        Read(),
    ),
    "a file that Windows wrote, with a byte order mark": (
        "\ufeff" + json.dumps({**LOGIN, "host": RDS, "dbname": "orders"}),
        Read(),
    ),
    "a URI with a byte order mark and a line end": (
        f"\ufeffpostgres://reaper:{WORD}@{RDS}/orders\r\n",
        Read(),
    ),
    "CloudNativePG: the application's secret": (
        {
            **LOGIN,
            "user": "reaper",
            "host": SHORT,
            "port": "5432",
            "dbname": "orders",
            "uri": f"postgresql://reaper:{WORD}@{SHORT}.shop:5432/orders",
            "jdbc-uri": f"jdbc:postgresql://{SHORT}.shop:5432/orders?password={WORD}&user=reaper",
            "pgpass": f"{SHORT}:5432:orders:reaper:{WORD}\n",
        },
        Read(host=SHORT),
    ),
    "CloudNativePG: the superuser's secret": (
        {
            **LOGIN,
            "host": SHORT,
            "port": "5432",
            "dbname": "*",
            "uri": f"postgresql://reaper:{WORD}@{SHORT}.shop:5432/*",
        },
        Read(host=SHORT, database="postgres"),
    ),
    "Crunchy Data's operator": (
        {
            **USER,
            "dbname": "orders",
            "host": LONG,
            "port": "5432",
            "uri": f"postgresql://reaper:{WORD}@{LONG}:5432/orders",
            "jdbc-uri": f"jdbc:postgresql://{LONG}:5432/orders?password={WORD}&user=reaper",
            "pgbouncer-host": "orders-pgbouncer.shop.svc",
            "verifier": "SCRAM-SHA-256$4096:c2FsdA==$a2V5:a2V5",
        },
        Read(host=LONG),
    ),
    "Service Binding for Kubernetes": (
        {"type": "postgresql", "provider": "x", "host": LONG, **LOGIN, "database": "orders"},
        Read(host=LONG),
    ),
    "DigitalOcean's API": (
        {
            "protocol": "postgresql",
            "uri": f"postgresql://reaper:{WORD}@db.example:25060/orders?sslmode=require",
            "host": "db.example",
            "port": 25060,
            **USER,
            "database": "orders",
            "ssl": True,
        },
        Read(host="db.example", port=25060, sslmode=SslMode.REQUIRE),
    ),
    "Cloud Foundry's service key": (
        {
            "host": "db.example",
            "port": 5432,
            "name": "cf_63f24e83",
            **LOGIN,
            "jdbcUrl": "jdbc:postgresql://db.example:5432/orders",
            "uri": f"postgresql://reaper:{WORD}@db.example:5432/orders",
        },
        Read(host="db.example"),
    ),
    "Laravel: driver pgsql": (
        {**LOGIN, "engine": "pgsql", "host": RDS, "port": "5432", "database": "orders"},
        Read(),
    ),
    "Django: the engine's dotted name": (
        {**USER, "engine": "django.contrib.gis.db.backends.postgis", "host": RDS, "port": ""},
        Read(database="postgres"),
    ),
    "Knex and node-postgres": ({**USER, "host": RDS, "port": 5432, "database": "orders"}, Read()),
    "Prisma: a URI with an ORM's parameters": (
        f"postgresql://reaper:{WORD}@{RDS}:5432/orders?schema=public&connection_limit=5",
        Read(),
    ),
    "SQLAlchemy: a URI that names the driver": (
        {"uri": f"postgresql+psycopg2://reaper:{WORD}@{RDS}:5432/orders"},
        Read(),
    ),
    "Neon: a URI that asks for channel binding": (
        f"postgres://reaper:{WORD}@ep-x.neon.tech/orders?sslmode=require&channel_binding=require",
        Read(host="ep-x.neon.tech", sslmode=SslMode.REQUIRE),
    ),
    "DigitalOcean's API: engine pg": (
        {**LOGIN, "engine": "pg", "host": RDS, "database": "orders"},
        Read(),
    ),
    "Rails: database.yml as JSON": (
        {
            "adapter": "postgresql",
            "encoding": "unicode",
            "pool": 5,
            **LOGIN,
            "host": RDS,
            "database": "orders",
            "prepared_statements": False,
        },
        Read(),
    ),
    "Sequelize": (
        {**LOGIN, "dialect": "postgres", "host": RDS, "database": "orders", "dialectOptions": {}},
        Read(),
    ),
    "RDS Proxy's endpoint": (
        {**LOGIN, "engine": "POSTGRESQL", "host": f"p.proxy-{RDS}", "dbname": "orders"},
        Read(host=f"p.proxy-{RDS}"),
    ),
    "Supabase's pooler": (
        f"postgresql://reaper.abcd:{WORD}@x.pooler.supabase.com:6543/orders?pgbouncer=true",
        Read(host="x.pooler.supabase.com", port=6543, role="reaper.abcd"),
    ),
    "pgx: a URI with a pool's parameters": (
        f"postgres://reaper:{WORD}@{RDS}/orders?sslmode=verify-ca&pool_max_conns=10",
        Read(sslmode=SslMode.VERIFY_CA),
    ),
    "SQLAlchemy: asyncpg": (
        f"postgresql+asyncpg://reaper:{WORD}@{RDS}/orders?prepared_statement_cache_size=0",
        Read(),
    ),
    "Aiven: connection_info of its API": (
        {
            "pg": [f"postgres://reaper:{WORD}@{RDS}:5432/orders?sslmode=require"],
            "pg_params": [{**USER, "host": RDS, "dbname": "orders", "sslmode": "require"}],
        },
        Read(sslmode=SslMode.REQUIRE),
    ),
    "truths as text": ({**LOGIN, "host": RDS, "dbname": "orders", "ssl": "true"}, Read()),
    "an editor of Windows: JSON with CRLF": (
        json.dumps({**LOGIN, "host": RDS, "dbname": "orders"}, indent=1).replace("\n", "\r\n"),
        Read(),
    ),
    "an IPv6 address in brackets": (
        {**LOGIN, "host": "[fd00::7]", "dbname": "orders"},
        Read("fd00::7"),
    ),
    "an IPv6 address in brackets, with a port": (
        {**LOGIN, "host": "[fd00::7]:6543", "dbname": "orders"},
        Read("fd00::7", 6543),
    ),
}

_HOST_HINT = "Write the value of {} as host."
_INNER_HINT = "Store the content of {} as the secret itself."
REFUSED: dict[str, tuple[str | dict[str, Any], str, str]] = {
    "CDK: generated credentials before they are attached": (
        LOGIN,
        "host is missing",
        "Add host to the secret.",
    ),
    "Zalando's operator: a login without a server": (
        {**LOGIN},
        "host is missing",
        "Add host to the secret.",
    ),
    "Terraform: an application's environment": (
        {"DB_HOST": RDS, "DB_PORT": "5432", "DB_USERNAME": "reaper", "DB_PASSWORD": WORD},
        "host is missing",
        _HOST_HINT.format("DB_HOST"),
    ),
    "libpq's environment": (
        {"PGHOST": RDS, "PGUSER": "reaper", "PGPASSWORD": WORD, "PGDATABASE": "orders"},
        "host is missing",
        _HOST_HINT.format("PGHOST"),
    ),
    "Crossplane: endpoint": (
        {**LOGIN, "endpoint": RDS, "port": "5432"},
        "host is missing",
        _HOST_HINT.format("endpoint"),
    ),
    "ECS, Heroku, Rails: DATABASE_URL": (
        {"DATABASE_URL": f"postgres://reaper:{WORD}@{RDS}:5432/orders"},
        "host is missing",
        "Write the value of DATABASE_URL as uri.",
    ),
    "Spring Boot's properties": (
        {
            "spring.datasource.url": f"jdbc:postgresql://{RDS}:5432/orders",
            "spring.datasource.username": "reaper",
            "spring.datasource.password": WORD,
        },
        "host is missing",
        "Write the host of spring.datasource.url, a JDBC URL, as host.",
    ),
    "AWS Glue": (
        {
            "USERNAME": "reaper",
            "PASSWORD": WORD,
            "JDBC_CONNECTION_URL": f"jdbc:postgresql://{RDS}/o",
        },
        "host is missing",
        "Write the host of JDBC_CONNECTION_URL, a JDBC URL, as host.",
    ),
    "Terraform: the module rds-aurora's outputs": (
        {"cluster_endpoint": RDS, "cluster_master_password": WORD},
        "host is missing",
        _HOST_HINT.format("cluster_endpoint"),
    ),
    "Terraform: output -json": (
        {"db_host": {"value": RDS}, "db_password": {"value": WORD, "sensitive": True}},
        "host is missing",
        _HOST_HINT.format("db_host"),
    ),
    "Azure": (
        {"fullyQualifiedDomainName": "db.example", "administratorLogin": "reaper"},
        "host is missing",
        _HOST_HINT.format("fullyQualifiedDomainName"),
    ),
    "Django: DATABASES": (
        {"default": {"ENGINE": "django.db.backends.postgresql", "HOST": RDS, "PASSWORD": WORD}},
        "host is missing",
        _INNER_HINT.format("default"),
    ),
    "Rails: an environment of database.yml": (
        {"production": {"adapter": "postgresql", "url": f"postgres://reaper:{WORD}@{RDS}/orders"}},
        "host is missing",
        _INNER_HINT.format("production"),
    ),
    "Kubernetes: a manifest": (
        {"kind": "Secret", "stringData": {**LOGIN, "host": RDS}},
        "host is missing",
        _INNER_HINT.format("stringData"),
    ),
    "AWS CLI: the answer of get-secret-value": (
        {"Name": NAME, "SecretString": json.dumps({**LOGIN, "host": RDS})},
        "host is missing",
        _INNER_HINT.format("SecretString"),
    ),
    "Aiven: service get": (
        {"connection_info": {"pg": [f"postgres://reaper:{WORD}@{RDS}/orders"]}},
        "host is missing",
        _INNER_HINT.format("connection_info"),
    ),
    "Aiven: a list of URIs": (
        {"pg": [f"postgres://reaper:{WORD}@{RDS}/orders"]},
        "host is missing",
        "Write the value of pg as uri.",
    ),
    **{
        f"a password as {name}, which must not become a login with IAM": (
            {"host": RDS, "username": "reaper", name: value},
            "password is missing",
            f"Write the value of {name} as password.",
        )
        for name, value in {
            "user_password": WORD,
            "masterUserPassword": WORD,
            "administrator_login_password": WORD,
            "DB_PASSWORD": 31_337,
        }.items()
    },
    "Supabase: a placeholder": (
        f"postgresql://postgres:[{WORD}]@db.abcd.supabase.co:5432/postgres",
        "uri is invalid",
        "Write : / ? # [ ] @ % in user and password as %3A %2F %3F %23 %5B %5D %40 %25; write one host.",
    ),
    "Neon: the endpoint as an option": (
        f"postgres://reaper:{WORD}@ep.neon.tech/d?options=endpoint%3Dep-x",
        "connection option options holds an unsupported value",
        OPTIONS["options"].hint,
    ),
    "R2DBC": (
        {"uri": f"r2dbc:postgresql://reaper:{WORD}@{RDS}/orders"},
        "uri must be a URI that begins with postgres://",
        "Write postgres://user:password@host:port/dbname.",
    ),
    "a shell: a value that ends with a line end": (
        {**LOGIN, "host": f"{RDS}\n"},
        "host must be a host name or an IP address",
        "Write only the name or the address, or one with :port.",
    ),
    "base64": (
        b64encode(json.dumps({**LOGIN, "host": RDS}).encode()).decode(),
        "the text must be JSON or a URI that begins with postgres://",
        'Store an object such as {"host": …, "username": …, "password": …}.',
    ),
    "Docker's environment": (
        {"host": RDS, "POSTGRES_USER": "reaper", "POSTGRES_PASSWORD": WORD},
        "username is missing",
        "Write the value of POSTGRES_USER as username.",
    ),
    "a password under another name, which must not become a login with IAM": (
        {"host": RDS, "username": "reaper", "pass": WORD},
        "password is missing",
        "Write the value of pass as password.",
    ),
    "Terraform: endpoint as host, and another port": (
        {**LOGIN, "host": f"{RDS}:6432", "port": 5432},
        "the port in host is not the one in port",
        "Write the host without a port, or the same port in both.",
    ),
    "several servers in host": (
        {**LOGIN, "host": f"{RDS}:5432,{CLUSTER}:5432"},
        "host must be a host name or an IP address",
        "Write only the name or the address, or one with :port.",
    ),
    "JDBC": (
        f"jdbc:postgresql://{RDS}:5432/orders?user=reaper&password={WORD}",
        "the text must be JSON or a URI that begins with postgres://",
        'Store an object such as {"host": …, "username": …, "password": …}.',
    ),
    "libpq: keywords and values": (
        f"host={RDS} port=5432 user=reaper password={WORD} dbname=orders",
        "the text must be JSON or a URI that begins with postgres://",
        'Store an object such as {"host": …, "username": …, "password": …}.',
    ),
    "Npgsql": (
        f"Host={RDS};Port=5432;Username=reaper;Password={WORD};Database=orders",
        "the text must be JSON or a URI that begins with postgres://",
        'Store an object such as {"host": …, "username": …, "password": …}.',
    ),
    "asyncpg: ssl in a URI": (
        f"postgresql+asyncpg://reaper:{WORD}@{RDS}/orders?ssl=require",
        "connection option ssl holds an unsupported value",
        "Remove it, and write sslmode (verify-full, verify-ca, require or disable).",
    ),
    "node-postgres: ssl as an object": (
        {**USER, "host": RDS, "ssl": {"rejectUnauthorized": False}},
        "connection option ssl holds an unsupported value",
        "Remove it, and write sslmode (verify-full, verify-ca, require or disable).",
    ),
    "a password that JSON keeps as a number": (
        {"host": RDS, "username": "reaper", "password": 31_337},
        "password must be text",
        "Write password as a JSON string.",
    ),
}


def read(shape: str | dict[str, Any]) -> Target:
    text = shape if isinstance(shape, str) else json.dumps(shape)
    return read_target(Secret(name=NAME, arn=ARN, text=text))


@pytest.mark.parametrize(("shape", "expected"), READ.values(), ids=READ)
def test_a_published_shape_is_read(shape: str | dict[str, Any], expected: Read) -> None:
    found = read(shape)
    read_as = Read(found.host, found.port, found.role, found.database, found.sslmode)
    assert (read_as, found.password, found.auth) == (expected, WORD, Auth.PASSWORD)


@pytest.mark.parametrize(("shape", "problem", "hint"), REFUSED.values(), ids=REFUSED)
def test_the_error_of_a_published_shape_says_what_to_write(
    shape: str | dict[str, Any], problem: str, hint: str
) -> None:
    with pytest.raises(SecretError) as caught:
        read(shape)
    assert caught.value.message == f"secret {NAME}: {problem}"
    assert caught.value.hint == hint
    assert WORD not in "".join(traceback.format_exception(caught.value)) + repr(caught.value) + hint


@pytest.mark.parametrize(
    "host",
    [
        "h:",
        ":5432",
        "h:port",
        "h:0",
        "h:65536",
        "h:5432:1x]",
        "[]",
        "[h]",
        "[h]:1",
        "[::1]:x",
        "[::1",
    ],
)
def test_a_host_with_an_invalid_port_is_refused(host: str) -> None:
    with pytest.raises(SecretError, match="host"):
        read({**LOGIN, "host": host})


@pytest.mark.parametrize("key", [f"postgres://u:{WORD}@h/d", WORD, f"{WORD}1password"])
def test_a_key_that_may_be_a_credential_is_not_named(key: str) -> None:
    with pytest.raises(SecretError) as caught:
        read({key: f"mysql://u:{WORD}@h/d", "host": RDS})
    assert WORD not in caught.value.message + caught.value.hint
