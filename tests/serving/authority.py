"""Certificates for tests: an authority, a server and clients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Authority:
    """Its certificate and those that it signs lie in a folder."""

    folder: Path
    ca: trustme.CA

    @property
    def cert(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return certificate and key of `name`, valid for 127.0.0.1 too."""
        issued = self.ca.issue_cert("127.0.0.1", "localhost", common_name=name)
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(key))
        return cert, key


def make_authority(folder: Path) -> Authority:
    folder.mkdir(parents=True, exist_ok=True)
    authority = Authority(folder, trustme.CA())
    authority.ca.cert_pem.write_to_path(str(authority.cert))
    return authority
