"""certificates.py - authorities, certificates and keys for tests of TLS, written to PEM files."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _build(
    subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, days: int, ca: bool
) -> x509.Certificate:
    """Valid from two days before it ends, or from yesterday."""
    end = datetime.datetime.now(datetime.timezone.utc) + days * DAY
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(end, datetime.datetime.now(datetime.timezone.utc)) - 2 * DAY)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )


@dataclass(frozen=True)
class Authority:
    """A certificate authority whose files lie in a directory."""

    home: Path
    name: str

    def __post_init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        object.__setattr__(self, "_key", key)
        self._write("ca.pem", _build(self.name, self.name, key, key, 30, True))

    def _path(self, file: str) -> Path:
        return self.home / f"{self.name}-{file}"

    def _write(self, file: str, certificate: x509.Certificate) -> str:
        path = self._path(file)
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return str(path)

    @property
    def file(self) -> str:
        """The path of its own certificate."""
        return str(self._path("ca.pem"))

    def issue(self, name: str, days: int = 30) -> tuple[str, str]:
        """Paths of a certificate that ends in so many days (negative: it has ended) and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        signer: ec.EllipticCurvePrivateKey = vars(self)["_key"]
        cert = self._write(f"{name}.pem", _build(name, self.name, key, signer, days, False))
        path = self._path(f"{name}.key")
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert, str(path)
