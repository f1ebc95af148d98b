"""The certificate authorities that are deployed: those of RDS, and Amazon's roots for RDS Proxy.

python -m infra.trust_store --write                      writes aws_certificates.pem from AWS's files
python -m infra.trust_store --write --from a.pem b.pem   from these files or https URLs instead
python -m infra.trust_store --check                      checks that file

A self-signed certificate with AWS's name proves nothing, because anyone can create one. The command
therefore trusts only https connections to AWS or, with --from, the given files. Amazon's five roots
must have the fingerprints below, whatever their source. An incomplete store is never written.
"""

import argparse
import re
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID

STORE_FILE = (
    Path(__file__).parents[1] / "functions" / "session_reaper" / "postgres" / "aws_certificates.pem"
)

AWS_SOURCES = (
    "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem",
    "https://www.amazontrust.com/repository/AmazonRootCA1.pem",
    "https://www.amazontrust.com/repository/AmazonRootCA2.pem",
    "https://www.amazontrust.com/repository/AmazonRootCA3.pem",
    "https://www.amazontrust.com/repository/AmazonRootCA4.pem",
    "https://www.amazontrust.com/repository/SFSRootCAG2.pem",
)

# By SHA-256, as the repository above publishes them and operating systems ship them. Their names
# would also match the Starfield roots of another company.
AMAZON_ROOTS: Mapping[str, str] = {
    "8ecde6884f3d87b1125ba31ac3fcb13d7016de7f57cc904fe1cb97c6ae98196e": "Amazon Root CA 1",
    "1ba5b2aa8c65401a82960118f80bec4f62304d83cec4713a19c39c011ea46db4": "Amazon Root CA 2",
    "18ce6cfe7bf14e60b2e347b8dfe868cb31d02ebb3ada271569f50343b46db3a4": "Amazon Root CA 3",
    "e35d28419ed02025cfa69038cd623962458da5c695fbdea3c22b0bfb25897092": "Amazon Root CA 4",
    "568d6905a2c88708a4b3025190edcfedb1974a606a13c6e5290fcb2ae63edab5": (
        "Starfield Services Root Certificate Authority - G2"
    ),
}
_RDS = "Amazon Web Services, Inc."
_ORGANISATIONS = (_RDS, "Amazon", "Starfield Technologies, Inc.")

# Not those of "Beta us-east-1" and "Preview us-east-2", which RDS may end at any time.
_RDS_ROOT = re.compile(r"Amazon RDS (?P<region>[a-z0-9-]+) Root CA (?P<kind>\w+) G1")
_KINDS = ("RSA2048", "RSA4096", "ECC384")  # RDS lets an instance choose among these
# AWS has 34 regions; a file with far fewer was cut off between two certificates.
_FEWEST_REGIONS = 30

_SOON = timedelta(days=90)
_PATIENCE = 30.0  # seconds for each URL until its next byte
_WIDTH = 100  # columns of the file's head

_PEM = re.compile(
    r"^-----BEGIN CERTIFICATE-----$.*?^-----END CERTIFICATE-----$", re.DOTALL | re.MULTILINE
)
_MARKER = re.compile(r"^-----(?:BEGIN|END) .*$", re.MULTILINE)
_NUMBER = re.compile(r"^# Certificates: (\d+)$", re.MULTILINE)


class TrustStoreError(Exception):
    """A trust store cannot be made or is invalid; each line of the message is one problem."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate, with the description that the store and messages show."""

    certificate: x509.Certificate

    @property
    def name(self) -> str:
        """The subject's common name."""
        return _get_part(self.certificate.subject, NameOID.COMMON_NAME) or "(without a name)"

    @property
    def fingerprint(self) -> str:
        """The SHA-256 digest in lower-case hexadecimal digits."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def until(self) -> datetime:
        """The end of its validity, in UTC."""
        return self.certificate.not_valid_after_utc

    @property
    def comment(self) -> str:
        """The comment above the certificate in the store."""
        since = self.certificate.not_valid_before_utc
        return (
            f"# {self.name}\n"
            f"# valid from {since:%Y-%m-%d} until {self.until:%Y-%m-%d}\n"
            f"# SHA-256 {self.fingerprint}\n"
        )

    @property
    def pem(self) -> str:
        """The certificate as text."""
        return self.certificate.public_bytes(Encoding.PEM).decode("ascii")


@dataclass(frozen=True, slots=True)
class Dropped:
    """A certificate that the store leaves out, with the reason."""

    authority: Authority
    reason: str


def main(arguments: Sequence[str], store: Path = STORE_FILE) -> None:
    """Write or check the store; exits with a message if that fails."""
    parser = argparse.ArgumentParser(prog="python -m infra.trust_store")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help=f"write {store.name} again")
    what.add_argument("--check", action="store_true", help=f"check {store.name}")
    parser.add_argument(
        "--from", nargs="+", default=AWS_SOURCES, metavar="SOURCE", dest="sources", help="PEM files"
    )
    parser.add_argument(
        "--origin", default="", help="the origin of the sources, for the first lines"
    )
    options = parser.parse_args(arguments)
    now = datetime.now(UTC)
    try:
        if options.write:
            write(store, options.sources, options.origin, now)
        else:
            check(store, now)
    except TrustStoreError as error:
        sys.exit(str(error))


# -- making -----------------------------------------------------------------------------------------


def write(store: Path, sources: Sequence[str], origin: str, now: datetime) -> None:
    """Write the store from the sources, and print the certificates that it leaves out.

    Raises TrustStoreError, and leaves the file unchanged, if a source cannot be read or a
    certificate is missing.
    """
    found = list(
        chain.from_iterable(_parse_authorities(_read_text(source), source) for source in sources)
    )
    taken, dropped = choose(found, now)
    print(*_write_table(dropped), sep="\n", end="\n" if dropped else "")
    if problems := list(_list_missing(taken)):
        raise TrustStoreError(f"{store.name} is unchanged: {'; '.join(problems)}.")
    names = [source if _is_url(source) else Path(source).name for source in sources]
    head = _write_head(origin or " ".join(names), len(taken), now)
    made = head + "".join(map(_write_entry, taken))
    if not made.isascii():  # ssl would accept it as a file, but not as text
        raise TrustStoreError("The origin has a character that is not ASCII.")
    beside = store.with_suffix(".new")
    beside.write_text(made, "ascii")
    beside.replace(store)
    print(f"{store.name}: {len(taken)} certificates of {len(_map_regions(taken))} regions")


def choose(
    found: Sequence[Authority], now: datetime
) -> tuple[tuple[Authority, ...], tuple[Dropped, ...]]:
    """Choose the authorities to trust; return them by name, and the others in their order."""
    taken: dict[str, Authority] = {}
    dropped: list[Dropped] = []
    for authority in found:
        reason = next(_list_objections(authority, now), "")
        if authority.fingerprint in taken:
            reason = "is there twice"
        if reason:
            dropped.append(Dropped(authority, reason))
        else:
            taken[authority.fingerprint] = authority
    in_order = sorted(taken.values(), key=lambda authority: (authority.name, authority.fingerprint))
    return tuple(in_order), tuple(dropped)


def _list_objections(authority: Authority, now: datetime) -> Iterator[str]:
    """List the reasons not to trust an authority, the most important first."""
    certificate = authority.certificate
    if authority.until < now:
        yield "has expired"
    if certificate.issuer != certificate.subject:
        yield f"is not a root: issued by {_get_part(certificate.issuer, NameOID.COMMON_NAME)}"
    organisation = _get_part(certificate.subject, NameOID.ORGANIZATION_NAME)
    if organisation not in _ORGANISATIONS:
        yield f"is not AWS's: organisation {organisation or 'unknown'}"
    is_rds = organisation == _RDS and authority.name.startswith("Amazon RDS ")
    if not is_rds and authority.fingerprint not in AMAZON_ROOTS:
        yield "is neither a root of RDS nor one of Amazon's"
    if not _is_ca(certificate):
        yield "is not a CA"
    if not _is_self_signed(certificate):
        yield "is not signed by its own key"


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):  # ValueError: cannot be parsed
        return False


def _is_self_signed(certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, TypeError, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _list_missing(authorities: Sequence[Authority]) -> Iterator[str]:
    """List what a store lacks or has in two versions."""
    regions = _map_regions(authorities)
    if len(regions) < _FEWEST_REGIONS:
        yield f"has only {len(regions)} regions of RDS (cut off?)"
    for region, kinds in regions.items():
        if lacking := [kind for kind in _KINDS if kind not in kinds]:
            yield f"{region} lacks {', '.join(lacking)}"
    fingerprints = {authority.fingerprint for authority in authorities}
    for fingerprint, name in AMAZON_ROOTS.items():
        if fingerprint not in fingerprints:
            yield f"{name} is missing"
    names = dict.fromkeys((authority.name, authority.fingerprint) for authority in authorities)
    for name, count in Counter(name for name, _ in names).items():
        if count > 1:  # a new key under an old name needs a review
            yield f"{name} has {count} different certificates"


def _map_regions(authorities: Sequence[Authority]) -> dict[str, set[str]]:
    regions: dict[str, set[str]] = {}
    for authority in authorities:
        if match := _RDS_ROOT.fullmatch(authority.name):
            regions.setdefault(match["region"], set()).add(match["kind"])
    return regions


def _write_head(origin: str, number: int, now: datetime) -> str:
    paragraphs = (
        "The certificate authorities of Amazon RDS and Aurora and, for RDS Proxy, Amazon's roots.",
        "Made by `make certs`, checked by `make check`. Do not edit it.",
        f"Origin: {origin}",
        f"Made: {now:%Y-%m-%d}",
        f"Certificates: {number}",
    )
    filled = (
        textwrap.fill(
            text,
            _WIDTH,
            initial_indent="# ",
            subsequent_indent="#   ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for text in paragraphs
    )
    return "\n".join(filled) + "\n"


def _write_entry(authority: Authority) -> str:
    return f"\n{authority.comment}{authority.pem}"


def _write_table(dropped: Sequence[Dropped]) -> Iterator[str]:
    width = max((len(one.authority.name) for one in dropped), default=0)
    for one in dropped:
        until = f"{one.authority.until:%Y-%m-%d}"
        yield f"dropped  {one.authority.name:{width}}  until {until}  {one.reason}"


# -- checking ---------------------------------------------------------------------------------------


def check(store: Path, now: datetime) -> None:
    """Check the store. Raises TrustStoreError with all problems and the remedy."""
    try:
        text = store.read_bytes().decode("ascii")
    except OSError as error:
        problems = [f"cannot be read: {error.strerror}"]
    except UnicodeDecodeError:
        problems = ["has a character that is not ASCII"]
    else:
        problems = list(list_complaints(text, now))
    if problems:
        lines = [f"{store.name}: {problem}" for problem in problems]
        raise TrustStoreError("\n".join([*lines, "Run `make certs` to write the file again."]))


def list_complaints(text: str, now: datetime) -> Iterator[str]:
    """List the problems of a store's text."""
    try:
        authorities = _parse_authorities(text, "it")
    except TrustStoreError as error:
        yield str(error)
        return
    number = _NUMBER.search(text)
    if number is None or int(number[1]) != len(authorities):
        said = number[1] if number else "nothing"
        yield f"its head says {said}, but it has {len(authorities)} certificates"
    for authority in authorities:
        if _write_entry(authority) not in text:
            yield f"the comment above {authority.name} is not what the certificate says"
    for one in choose(authorities, now)[1]:
        yield f"{one.authority.name} {one.reason}"
    for authority in authorities:
        if now <= authority.until < now + _SOON:
            yield f"{authority.name} expires on {authority.until:%Y-%m-%d}"
    yield from _list_missing(authorities)


# -- reading ----------------------------------------------------------------------------------------


def _read_text(source: str) -> str:
    try:
        content = _fetch(source) if _is_url(source) else Path(source).read_bytes()
    except (OSError, HTTPException, ValueError) as error:  # ValueError: an invalid URL
        if isinstance(error, HTTPError):
            error.close()  # the error holds an open connection
        raise TrustStoreError(f"{source} cannot be read: {error}") from None
    return content.decode("ascii", "replace")


def _is_url(source: str) -> bool:
    return "://" in source


def _fetch(url: str) -> bytes:
    with urlopen(_require_https(url), timeout=_PATIENCE) as response:  # noqa: S310 -- see _require_https
        _require_https(response.url)  # a redirection may lead elsewhere
        content: bytes = response.read()
        return content


def _require_https(url: str) -> str:
    """Return the URL. Over plain http, an attacker could add an authority to the response."""
    if not re.match(r"https://|http://(?:127\.0\.0\.1|localhost)[:/]", url):
        raise TrustStoreError(f"{url} is neither https nor on this machine")
    return url


def _parse_authorities(text: str, source: str) -> list[Authority]:
    """Parse all certificates of a PEM text; errors name the source. Raises TrustStoreError."""
    blocks = _PEM.findall(text.replace("\r\n", "\n"))
    if not blocks:
        raise TrustStoreError(f"{source} has no PEM certificate")
    if len(_MARKER.findall(text.replace("\r\n", "\n"))) != 2 * len(blocks):
        raise TrustStoreError(f"{source} has an incomplete or invalid certificate")
    return [
        _parse_authority(block, f"certificate {n} of {source}") for n, block in enumerate(blocks, 1)
    ]


def _parse_authority(block: str, place: str) -> Authority:
    try:
        with warnings.catch_warnings():
            # The Starfield root has the serial number 0, which RFC 5280 no longer allows.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            return Authority(x509.load_pem_x509_certificate(block.encode("ascii", "replace")))
    except ValueError:
        raise TrustStoreError(f"{place} cannot be parsed") from None


def _get_part(name: x509.Name, part: x509.ObjectIdentifier) -> str:
    """Return the first such part of a name in printable ASCII, "" if there is none."""
    values = name.get_attributes_for_oid(part)
    return re.sub(r"[^ -~]", "?", str(values[0].value)) if values else ""


if __name__ == "__main__":
    main(sys.argv[1:])
