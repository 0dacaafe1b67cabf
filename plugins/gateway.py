"""The gateway for unchanged fal clients: `--fal-gateway PORT` (contract 7.10, way B).

fal's clients have fal's host names built in. With `HTTPS_PROXY` set they ask this proxy to connect
them; for fal's hosts it connects them to this server, on a TLS port of its own with a certificate
for those names, and the Host header says which part of fal is meant. Everything else is passed
through. It listens on loopback only: whoever can reach it can reach what we can. The authority
that signed the certificate stays in the data folder; only clients that are told of it trust it.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import msgspec

from ..schemas.problems import ConfigError
from ..schemas.settings import Settings
from .logs import get_logger

log = get_logger("runner.gateway")

Serve = Callable[[Settings, socket.socket], Awaitable[None]]

DOMAINS = ("fal.run", "fal.ai", "fal.media", "falrun.com")  # the last is where clients turn when the first is down
LONGEST_HEAD = 16 * 1024
HEAD_SECONDS = 10.0
CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 5.0
AUTHORITY_DAYS, CERTIFICATE_DAYS = 3650, 300
CHUNK = 64 * 1024


def is_fals(host: str) -> bool:
    host = host.rstrip(".").lower()
    return any(host == domain or host.endswith(f".{domain}") for domain in DOMAINS)


@asynccontextmanager
async def gateway(settings: Settings, serve: Serve) -> AsyncIterator[None]:
    """Let fal's clients in while the block runs. `serve` answers connections on a socket until the server stops."""
    files = await anyio.to_thread.run_sync(Certificates(Path(settings.data_dir) / "gateway").make)
    inner = socket.socket()
    inner.bind(("127.0.0.1", 0))
    inner.setblocking(False)
    inner_port: int = inner.getsockname()[1]
    secure = msgspec.structs.replace(settings, tls_cert=str(files["cert"]), tls_key=str(files["key"]))
    try:
        listener = await asyncio.start_server(
            lambda reader, writer: _connected(reader, writer, inner_port), "127.0.0.1", settings.fal_gateway, limit=LONGEST_HEAD
        )
    except OSError as error:
        inner.close()
        raise ConfigError(f"--fal-gateway {settings.fal_gateway}: {error.strerror}; 0 picks a free port") from None
    serving = asyncio.ensure_future(serve(secure, inner))
    port = listener.sockets[0].getsockname()[1]
    log.info("gateway.listening", url=f"http://127.0.0.1:{port}", authority=str(files["authority"]))
    _say(f"export HTTPS_PROXY=http://127.0.0.1:{port}", f"export SSL_CERT_FILE={files['authority']}", "export FAL_KEY=any:thing")
    try:
        yield
    finally:
        listener.close()
        await asyncio.wait([serving], timeout=CLOSE_SECONDS)  # it hears of the end as we do
        serving.cancel()


def _say(*lines: str) -> None:
    """To the real stdout, where the lines can be copied from."""
    if sys.__stdout__ is not None:
        with suppress(OSError, ValueError):
            sys.__stdout__.write("".join(f"{line}\n" for line in lines))
            sys.__stdout__.flush()


# --- the proxy


async def _connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, inner_port: int) -> None:
    try:
        asked = await _asked(reader)
        if asked is None:
            writer.write(b"HTTP/1.1 405 Method Not Allowed\r\nallow: CONNECT\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return
        host, port = ("127.0.0.1", inner_port) if is_fals(asked[0]) else asked
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                there, to_there = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await asyncio.gather(_pass_on(reader, to_there), _pass_on(there, writer))
        finally:
            to_there.close()
    finally:
        with suppress(OSError):
            writer.close()


async def _asked(reader: asyncio.StreamReader) -> tuple[str, int] | None:
    """Host and port of a CONNECT; None for anything else."""
    try:
        async with asyncio.timeout(HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, OSError):
        return None
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3 or words[0] != "CONNECT":
        return None
    host, _, port = words[1].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        return None
    return host.strip("[]"), int(port)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(CHUNK):
            writer.write(chunk)
            await writer.drain()
    with suppress(OSError):
        writer.write_eof() if writer.can_write_eof() else writer.close()


# --- the certificates


class Certificates:
    """An authority that is kept, and a certificate for fal's hosts made anew at each start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self) -> dict[str, Path]:
        """The files `authority` (ours and the public ones), `cert` and `key`. Raises ConfigError when they cannot be."""
        try:
            from cryptography import x509  # noqa: F401
        except ImportError:
            raise ConfigError("--fal-gateway needs the package cryptography; pip install cryptography") from None
        try:
            return self._make()
        except OSError as error:
            raise ConfigError(f"--fal-gateway: {error.strerror}: {self._folder}; give another --data-dir") from None

    def _make(self) -> dict[str, Path]:
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder = self._folder.resolve()  # callers are told of it, in folders of their own
        files = {name: self._folder / f"{name}.pem" for name in ("authority", "cert", "key", "own", "own-key")}
        if not files["own"].exists() or not files["own-key"].exists():
            own_key = ec.generate_private_key(ec.SECP256R1())
            _write(files["own-key"], _pem(own_key))
            own = _certificate("runner's own authority", own_key, None, None, AUTHORITY_DAYS)
            _write(files["own"], own.public_bytes(serialization.Encoding.PEM))
        authority_key: Any = serialization.load_pem_private_key(files["own-key"].read_bytes(), None)
        authority = x509.load_pem_x509_certificate(files["own"].read_bytes())
        key = ec.generate_private_key(ec.SECP256R1())
        issued = _certificate("fal.run", key, authority, authority_key, CERTIFICATE_DAYS)
        _write(files["key"], _pem(key))
        _write(files["cert"], issued.public_bytes(serialization.Encoding.PEM))
        _write(files["authority"], files["own"].read_bytes() + _public_authorities())
        return files


def _certificate(name: str, key: Any, authority: Any, authority_key: Any, days: int) -> Any:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now, is_authority = datetime.datetime.now(datetime.UTC), authority is None
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if is_authority else authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    signer = key if is_authority else authority_key
    signer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = builder.add_extension(signer_id, critical=False)
    if is_authority:
        usage = _usage(key_cert_sign=True, crl_sign=True)
        names = [x509.DNSName(domain) for domain in DOMAINS]  # it is good for these names and no others
        builder = builder.add_extension(x509.NameConstraints(names, None), critical=True)
    else:
        usage = _usage(digital_signature=True)
        names = [x509.DNSName(name) for domain in DOMAINS for name in (domain, f"*.{domain}")]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.add_extension(usage, critical=True).sign(signer, hashes.SHA256())


def _usage(**allowed: bool) -> Any:
    from cryptography import x509

    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))


def _public_authorities() -> bytes:
    """So that a client which trusts this file alone still reaches the rest of the world."""
    try:
        import certifi
    except ImportError:
        return b""
    return b"\n" + Path(certifi.where()).read_bytes()


def _write(file: Path, content: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644 if file.stem in ("authority", "cert", "own") else 0o600)
    with open(descriptor, "wb") as opened:
        opened.write(content)
