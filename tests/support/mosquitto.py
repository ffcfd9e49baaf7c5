"""A real Mosquitto on a free port: for everybody, or as deploy/mosquitto sets it up on loopback."""

from __future__ import annotations

import getpass
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from novamesh_proto.broker import Broker
from support.debian_packages import tool
from support.ports import free_port

DEPLOYED: Final = Path(__file__).parent.parent.parent / "deploy" / "mosquitto"
INSIDE: Final = "/mosquitto/config"
READY_S: Final = 20.0


@dataclass
class Mosquitto:
    """One broker in a folder of its own; on the same port whenever it is started again."""

    folder: Path
    accounts: Mapping[str, str] | None = None  # user and password; None lets everybody in, no TLS
    extra: str = ""
    port: int = field(default_factory=free_port)
    host: str = "127.0.0.1"  # where it listens that lets everybody in
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Mosquitto:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = self._open() if self.accounts is None else self._deployed(self.accounts)
        own = f"user {getpass.getuser()}\n"  # else it would look for one of its own
        self.config.write_text(f"{text}{own}{self.extra}")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def config(self) -> Path:
        """What it is set to."""
        return self.folder / "mosquitto.conf"

    @property
    def authority(self) -> Path:
        """The certificate that signed its own."""
        return self.folder / "certs" / "ca.crt"

    def broker(self, account: str = "", user: str = "") -> Broker:
        """Its address, for somebody with an account."""
        if self.accounts is None:
            return Broker(self.host, self.port, False)
        secret = self.folder / f"{account}.password"
        return Broker("127.0.0.1", self.port, True, user, str(secret), str(self.authority))

    def start(self) -> None:
        """Start it, listening when this returns."""
        found = tool("mosquitto")
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [found.path, "-c", self.config], env=found.environment(), stderr=log, stdout=log
            )
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex((self.host, self.port)) == 0:
                    return
            time.sleep(0.02)
        self.kill()
        raise AssertionError(f"mosquitto does not start: {(self.folder / 'log').read_text()}")

    def kill(self) -> None:
        """SIGKILL: every connection breaks."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        """SIGSTOP and SIGCONT: connections stand, nobody answers."""
        assert self._process is not None
        self._process.send_signal(number)

    def _open(self) -> str:
        return f"listener {self.port} {self.host}\nallow_anonymous true\nset_tcp_nodelay true\n"

    def _deployed(self, accounts: Mapping[str, str]) -> str:
        """The files that we ship, with this folder's paths and accounts."""
        write_certificates(self.folder / "certs")
        (self.folder / "acl").write_bytes((DEPLOYED / "acl").read_bytes())
        (self.folder / "acl").chmod(0o600)
        passwords = self.folder / "passwords"
        passwords.touch(mode=0o600)
        maker = tool("mosquitto_passwd", "mosquitto")
        for user, password in accounts.items():
            command = [maker.path, "-b", passwords, user, password]
            subprocess.run(command, env=maker.environment(), check=True, capture_output=True)
            (self.folder / f"{user}.password").write_text(f"{password}\n")
        text = (DEPLOYED / "mosquitto.conf").read_text()
        assert text.count(INSIDE) == 4
        text = text.replace(INSIDE, str(self.folder))
        return text.replace("listener 8883\n", f"listener {self.port} 127.0.0.1\n")


def write_certificates(folder: Path) -> None:
    """An authority, and a certificate of this machine's that it signed."""
    folder.mkdir(parents=True, exist_ok=True)
    authority, own = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's authority")])
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)

    def start(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )

    root = start(issuer, authority).add_extension(x509.BasicConstraints(True, 0), critical=True)
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    leaf = start(named, own).add_extension(x509.SubjectAlternativeName(names), critical=False)
    for name, made in (("ca", root), ("server", leaf)):
        signed = made.sign(authority, hashes.SHA256())
        (folder / f"{name}.crt").write_bytes(signed.public_bytes(Encoding.PEM))
    key = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.key").write_bytes(key)
