from __future__ import annotations

import re
import ssl
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from infra import trust_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

NOW = datetime.now(UTC)
KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
RDS = "Amazon Web Services, Inc."
SHIPPED = trust_store.STORE_FILE.read_text("ascii")
NAME = trust_store.STORE_FILE.name
OLD = "the former content\n"

Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Made:
    """A certificate; by default a valid root of RDS."""

    name: str = "Amazon RDS xx-test-1 Root CA RSA2048 G1"
    organisation: str = RDS
    issuer: str = ""  # by default the name
    signer: ec.EllipticCurvePrivateKey = KEY
    until: datetime = NOW + timedelta(days=1000)
    ca: bool | None = True  # None: without the extension
    serial: int = 1

    @property
    def pem(self) -> str:
        builder = (
            x509.CertificateBuilder()
            .subject_name(self._as_name(self.name))
            .issuer_name(self._as_name(self.issuer or self.name))
            .public_key(KEY.public_key())
            .serial_number(self.serial)
            .not_valid_before(NOW - timedelta(days=1000))
            .not_valid_after(self.until)
        )
        if self.ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(self.ca, None), critical=True)
        certificate = builder.sign(self.signer, hashes.SHA256())
        return certificate.public_bytes(Encoding.PEM).decode("ascii")

    def _as_name(self, common: str) -> x509.Name:
        parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.organisation)]
        return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _read_shipped_roots() -> str:
    """Amazon's roots, which a test cannot create."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the Starfield root has serial number 0
        certificates = x509.load_pem_x509_certificates(SHIPPED.encode())
    return "".join(
        certificate.public_bytes(Encoding.PEM).decode()
        for certificate in certificates
        if certificate.fingerprint(hashes.SHA256()).hex() in trust_store.AMAZON_ROOTS
    )


ROOTS = _read_shipped_roots()
BUNDLE = "".join(
    Made(f"Amazon RDS xx-test-{n} Root CA {kind} G1").pem
    for n in range(30, 0, -1)
    for kind in ("RSA2048", "RSA4096", "ECC384")
)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of the shipped one."""
    file = tmp_path / NAME
    file.write_text(OLD, "ascii")
    monkeypatch.setenv("no_proxy", "*")
    return file


def make(tmp_path: Path, *texts: str, origin: str = "") -> None:
    """Run `make certs` from files with these texts."""
    sources = [tmp_path / f"source-{n}.pem" for n, _ in enumerate(texts)]
    for source, text in zip(sources, texts, strict=True):
        source.write_text(text, "utf-8")
    trust_store.main(["--write", "--origin", origin, "--from", *map(str, sources)], tmp_path / NAME)


@contextmanager
def serve(pages: Mapping[str, str]) -> Iterator[str]:
    """Serve pages on this machine: a URL as a redirect, an unknown page as a 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path, "")
            redirection = page.startswith("http")
            self.send_response(302 if redirection else 200 if page else 404)
            if redirection:
                self.send_header("Location", page.replace("PORT", str(server.server_port)))
            if self.path == "/short.pem":
                self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"" if redirection else page.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


# -- the shipped file -------------------------------------------------------------------------------


def test_the_shipped_file_passes_the_check(store: Path) -> None:
    store.write_text(SHIPPED, "ascii")
    trust_store.main(["--check"], store)


def test_ssl_loads_every_certificate_of_the_shipped_file_as_file_and_as_text(store: Path) -> None:
    store.write_text(SHIPPED, "ascii")
    number = SHIPPED.count("BEGIN CERTIFICATE")
    for context in (
        ssl.create_default_context(cafile=str(store)),
        ssl.create_default_context(cadata=SHIPPED),
    ):
        assert context.cert_store_stats() == {"x509": number, "x509_ca": number, "crl": 0}


def test_the_lines_of_the_shipped_file_are_short() -> None:
    assert max(map(len, SHIPPED.splitlines())) <= 100


# -- writing ----------------------------------------------------------------------------------------


def test_the_written_file_passes_the_check_and_is_sorted(tmp_path: Path, store: Path) -> None:
    make(tmp_path, BUNDLE, ROOTS)
    trust_store.main(["--check"], store)
    names = [line for line in store.read_text("ascii").splitlines() if line.startswith("# Amazon")]
    assert names == sorted(names)
    assert len(names) == 94  # and Starfield's
    assert [path.name for path in tmp_path.glob("aws*")] == [store.name]


def test_a_comment_above_each_certificate_has_name_validity_and_fingerprint(
    tmp_path: Path, store: Path
) -> None:
    make(tmp_path, BUNDLE, ROOTS)
    assert (
        "\n\n# Amazon Root CA 1\n# valid from 2015-05-26 until 2038-01-17\n"
        "# SHA-256 8ecde6884f3d87b1125ba31ac3fcb13d7016de7f57cc904fe1cb97c6ae98196e\n"
        "-----BEGIN CERTIFICATE-----\n"
    ) in store.read_text("ascii")


def test_the_head_has_origin_date_and_number(tmp_path: Path, store: Path) -> None:
    make(tmp_path, BUNDLE, ROOTS, origin="a copy\nof a friend")
    head = store.read_text("ascii").partition("\n\n")[0]
    assert "# Origin: a copy of a friend\n" in head
    assert f"# Made: {datetime.now(UTC):%Y-%m-%d}\n# Certificates: 95" in head


def test_without_an_origin_the_head_names_the_files_without_their_folders(
    tmp_path: Path, store: Path
) -> None:
    make(tmp_path, BUNDLE, ROOTS)
    assert "# Origin: source-0.pem source-1.pem\n" in store.read_text("ascii")


def test_a_url_is_fetched_and_becomes_the_origin(store: Path) -> None:
    with serve({"/bundle.pem": BUNDLE, "/roots.pem": ROOTS}) as url:
        sources = [f"{url}/bundle.pem", f"{url}/roots.pem"]
        trust_store.main(["--write", "--from", *sources], store)
    trust_store.main(["--check"], store)
    assert f"# Origin: {' '.join(sources)}\n" in store.read_text("ascii")


def test_windows_line_ends_are_accepted(tmp_path: Path, store: Path) -> None:
    make(tmp_path, BUNDLE.replace("\n", "\r\n"), ROOTS)
    trust_store.main(["--check"], store)


def test_an_origin_that_is_not_ascii_is_refused(tmp_path: Path, store: Path) -> None:
    with pytest.raises(SystemExit, match="not ASCII"):
        make(tmp_path, BUNDLE, ROOTS, origin="from Zürich")
    assert store.read_text("ascii") == OLD


# -- dropped ----------------------------------------------------------------------------------------

GOOD = Made("Amazon RDS xx-test-31 Root CA RSA2048 G1")


BAD = {
    "expired": (replace(GOOD, until=NOW - timedelta(days=1)), "has expired"),
    "intermediate": (replace(GOOD, name="Amazon RDS CA", issuer="A root"), "issued by A root"),
    "foreign": (replace(GOOD, organisation="Evil"), "is not AWS's: organisation Evil"),
    "not of RDS": (replace(GOOD, name="Some CA"), "is neither a root of RDS nor one of Amazon's"),
    "Amazon's name": (
        Made("Amazon Root CA 1", "Amazon"),
        "is neither a root of RDS nor one of Amazon's",
    ),
    "other Starfield": (
        Made("Starfield Root", "Starfield Technologies, Inc."),
        "is neither a root of RDS",
    ),
    "no CA": (replace(GOOD, ca=False), "is not a CA"),
    "nothing about CA": (replace(GOOD, ca=None), "is not a CA"),
    "other key": (replace(GOOD, signer=OTHER_KEY), "is not signed by its own key"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
def test_a_certificate_that_is_not_a_root_of_aws_is_dropped_with_a_reason(
    tmp_path: Path, store: Path, capsys: Capture, bad: Made, reason: str
) -> None:
    make(tmp_path, BUNDLE, bad.pem, ROOTS)
    assert bad.pem not in store.read_text("ascii")
    assert BUNDLE.count("BEGIN") + 5 == store.read_text("ascii").count("BEGIN")
    out = capsys.readouterr().out
    assert f"dropped  {bad.name}  until {bad.until:%Y-%m-%d}  " in out
    assert reason in out


def test_a_name_cannot_add_a_line(tmp_path: Path, store: Path, capsys: Capture) -> None:
    make(tmp_path, BUNDLE, ROOTS, Made("Amazon RDS a\n-----BEGIN").pem, Made("\x1b[2J", "Evil").pem)
    assert "\n# Amazon RDS a?-----BEGIN\n" in store.read_text("ascii")
    assert "dropped  ?[2J  " in capsys.readouterr().out
    trust_store.main(["--check"], store)


def test_a_certificate_in_two_sources_is_written_once(
    tmp_path: Path, store: Path, capsys: Capture
) -> None:
    make(tmp_path, BUNDLE, ROOTS, BUNDLE)
    assert store.read_text("ascii").count("BEGIN") == 95
    assert capsys.readouterr().out.count("is there twice") == 90


# -- refused ----------------------------------------------------------------------------------------


NOT_WHOLE = {
    "empty": ("", "has no PEM certificate"),
    "page": ("<html>Sign in</html>", "has no PEM certificate"),
    "cut at the end": (BUNDLE[:-100], "source-0.pem has an incomplete or invalid certificate"),
    "cut at the start": (BUNDLE[100:], "source-0.pem has an incomplete or invalid certificate"),
    "cut between two": (BUNDLE[: BUNDLE.index("-----BEGIN", 9000)], r"only \d+ regions of RDS"),
    "no certificate": (BUNDLE.replace("MII", "!!!", 1), "certificate 1 of .* cannot be parsed"),
    "one less": (BUNDLE.partition("-----END CERTIFICATE-----\n")[2], "test-30 lacks RSA2048"),
    "two of a name": (BUNDLE + Made(serial=2).pem, "RSA2048 G1 has 2 different certificates"),
}


@pytest.mark.parametrize(("bundle", "reason"), NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_an_incomplete_bundle_is_refused_in_one_line_and_the_old_file_stays(
    tmp_path: Path, store: Path, bundle: str, reason: str
) -> None:
    with pytest.raises(SystemExit, match=reason) as error:
        make(tmp_path, bundle, ROOTS)
    assert "\n" not in str(error.value)
    assert store.read_text("ascii") == OLD


def test_without_amazons_roots_nothing_is_written(tmp_path: Path, store: Path) -> None:
    first, mark, rest = ROOTS.partition("-----END CERTIFICATE-----\n")
    with pytest.raises(SystemExit, match="is unchanged: Amazon Root CA 1 is missing"):
        make(tmp_path, BUNDLE, rest)
    assert store.read_text("ascii") == OLD
    make(tmp_path, BUNDLE, rest, first + mark)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/no/where.pem", "cannot be read: .*No such file"),
        ("URL/unknown.pem", "unknown.pem cannot be read: HTTP Error 404"),
        ("URL/elsewhere", "http://LOCALHOST:.* is neither https nor on this machine"),
        ("URL/short.pem", "short.pem cannot be read: IncompleteRead"),
        ("http://127.0.0.1:1/a.pem", "cannot be read: .*[Rr]efused"),
        ("http://127.0.0.1.example.com/a.pem", "is neither https nor on this machine"),
        ("ftp://localhost/a.pem", "is neither https nor on this machine"),
        ("https://[/a.pem", "cannot be read: Invalid IPv6 URL"),
    ],
)
def test_a_source_that_cannot_be_read_is_reported_in_one_line_and_the_old_file_stays(
    store: Path, source: str, reason: str
) -> None:
    # LOCALHOST is this machine, but not by its spelling, so it stands for a foreign host.
    pages = {
        "/elsewhere": "http://LOCALHOST:PORT/a.pem",
        "/a.pem": BUNDLE,
        "/short.pem": BUNDLE,
    }
    with serve(pages) as url, pytest.raises(SystemExit, match=reason) as error:
        trust_store.main(["--write", "--from", source.replace("URL", url)], store)
    assert "\n" not in str(error.value)
    assert store.read_text("ascii") == OLD


# -- checking ---------------------------------------------------------------------------------------


def test_each_problem_is_a_line_and_the_last_line_is_the_remedy(store: Path) -> None:
    with pytest.raises(SystemExit) as error:
        trust_store.main(["--check"], store)
    assert str(error.value).splitlines() == [
        "aws_certificates.pem: it has no PEM certificate",
        "Run `make certs` to write the file again.",
    ]


def test_a_missing_or_non_ascii_file_is_reported(store: Path) -> None:
    store.write_text(f"# Zürich\n{SHIPPED}", "utf-8")
    with pytest.raises(SystemExit, match="not ASCII"):
        trust_store.main(["--check"], store)
    store.unlink()
    with pytest.raises(SystemExit, match="cannot be read: No such file"):
        trust_store.main(["--check"], store)


FIRST = SHIPPED.index("-----BEGIN")
SECOND = SHIPPED.index("\n\n", FIRST)


CHANGED = {
    "fingerprint": (SHIPPED.replace("256 8ecde", "256 8ecdf"), "comment above Amazon Root CA 1"),
    "name": (SHIPPED.replace("# Amazon Root CA 1", "# Evil"), "comment above Amazon Root CA 1"),
    "date": (SHIPPED.replace("2038-01-17", "2039-01-17"), "comment above Amazon Root CA 1"),
    "only a comment": (SHIPPED[:FIRST] + SHIPPED[SECOND:], "its head says 113, but it has 112"),
    "number": (
        SHIPPED.replace("# Certificates: 1", "# Certificates: 2"),
        "its head says 213, but it has 113",
    ),
    "no number": (
        SHIPPED.replace("# Certificates", "# Number"),
        "its head says nothing, but it has 113",
    ),
    "twice": (SHIPPED + SHIPPED[SECOND:], "Amazon Root CA 1 is there twice"),
    "one of three": (SHIPPED + GOOD.pem, "xx-test-31 lacks RSA4096, ECC384"),
    "foreign": (SHIPPED + replace(GOOD, organisation="Evil").pem, "is not AWS's"),
    "cut": (SHIPPED[:-100], "it has an incomplete or invalid certificate"),
    "one less": (SHIPPED[: SHIPPED.index("# Starfield")], "Starfield .* is missing"),
    "roots only": (SHIPPED[SHIPPED.index("# Amazon Root CA 1") :], "only 0 regions of RDS"),
}


@pytest.mark.parametrize(("text", "complaint"), CHANGED.values(), ids=CHANGED)
def test_a_changed_file_is_reported(text: str, complaint: str) -> None:
    assert re.search(complaint, "\n".join(trust_store.list_complaints(text, NOW)))


@pytest.mark.parametrize(
    ("day", "complaint"),
    [
        ("2037-10-02", ""),
        ("2037-10-03", "Starfield .* expires on 2037-12-31"),
        ("2037-12-31", "Starfield .* expires on 2037-12-31"),
        ("2038-01-02", "Starfield .* has expired"),
    ],
)
def test_the_check_fails_90_days_before_a_certificate_expires(day: str, complaint: str) -> None:
    found = "\n".join(trust_store.list_complaints(SHIPPED, datetime.fromisoformat(f"{day}T00:00Z")))
    assert re.search(complaint, found)
    assert found.count("Starfield") == bool(complaint)
