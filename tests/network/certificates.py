"""A certificate for 127.0.0.1 that signs itself: both the server's and the authority to trust."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificate:
    """The files of a certificate and of its private key."""

    certificate: Path
    key: Path


def write_certificate(folder: Path) -> Certificate:
    """Write a certificate for the host 127.0.0.1, valid for a day, and its key to a folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Kiln's tests")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    written = Certificate(folder / "server.pem", folder / "server.key")
    encoding = serialization.Encoding.PEM
    written.certificate.write_bytes(certificate.public_bytes(encoding))
    no_password = serialization.NoEncryption()
    written.key.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no_password))
    return written
