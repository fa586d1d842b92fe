"""The forwarder over real TLS: verified, and its end told apart from a broken one."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aigw_middleware import UpstreamForwarder
from aigw_middleware.errors import UpstreamBroken
from aigw_middleware.forwarding.transport import _tls_context

from .support import call, make_environ

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
CLOSING = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


def certificate(directory: Path, name: str) -> Path:
    """Write a certificate for 127.0.0.1 that is its own authority, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{name}.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@contextmanager
def tls_server(certificate: Path, handler: Callable[[ssl.SSLSocket], None]) -> Iterator[int]:
    """Serve TLS connections, one after the other, until the context ends; yield the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            raw.settimeout(20)
            try:
                with context.wrap_socket(raw, server_side=True) as connection:
                    handler(connection)
            except OSError:
                raw.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A certificate that this process trusts for the time of the test."""
    path = certificate(tmp_path, "trusted")
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    _tls_context.cache_clear()
    yield path
    _tls_context.cache_clear()


def answering(*parts: bytes) -> Callable[[ssl.SSLSocket], None]:
    def handler(connection: ssl.SSLSocket) -> None:
        while b"\r\n\r\n" not in connection.recv(65536):
            pass
        for part in parts:
            connection.sendall(part)
        connection.unwrap()

    return handler


def test_a_trusted_certificate_is_spoken_to(trusted: Path) -> None:
    """HTTPS works with an authority of one's own in SSL_CERT_FILE."""
    with tls_server(trusted, answering(CLOSING)) as port:
        answer = call(UpstreamForwarder(upstream=f"https://127.0.0.1:{port}"), "/x")
    assert (answer.status, answer.body) == (200, b"ok")


def test_an_unknown_authority_is_refused(trusted: Path, tmp_path: Path) -> None:
    """A certificate that nobody vouches for is 502, and no request is sent."""
    seen = []
    with tls_server(certificate(tmp_path, "stranger"), seen.append) as port:
        answer = call(UpstreamForwarder(upstream=f"https://127.0.0.1:{port}"), "/x")
    assert (answer.code, seen) == ("upstream_unreachable", [])


def test_a_certificate_of_another_host_is_refused(trusted: Path) -> None:
    """The name in the URL must be the certificate's."""
    with tls_server(trusted, answering(CLOSING)) as port:
        answer = call(UpstreamForwarder(upstream=f"https://localhost:{port}"), "/x")
    assert answer.code == "upstream_unreachable"


def test_plain_text_where_tls_is_due_is_502(trusted: Path) -> None:
    """A peer that speaks no TLS is unreachable."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        connection.sendall(OK)
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    answer = call(
        UpstreamForwarder(upstream=f"https://127.0.0.1:{listener.getsockname()[1]}"), "/x"
    )
    thread.join()
    listener.close()
    assert answer.code == "upstream_unreachable"


def until_the_end(app: Any) -> bytes:
    iterable = app(make_environ("/x"), lambda *args: lambda data: None)
    try:
        return b"".join(iterable)
    finally:
        iterable.close()


ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it"


def test_a_body_that_ends_with_the_connection_needs_a_proper_end_of_tls(trusted: Path) -> None:
    """RFC 9112 §9.8: without close_notify such a body was cut off; with it, it is whole."""

    def abrupt(connection: ssl.SSLSocket) -> None:
        connection.recv(65536)
        connection.sendall(ENDLESS)
        socket.socket.shutdown(connection, socket.SHUT_RDWR)

    with tls_server(trusted, answering(ENDLESS)) as port:
        app = UpstreamForwarder(upstream=f"https://127.0.0.1:{port}")
        assert until_the_end(app) == b"all of it"
    with tls_server(trusted, abrupt) as port:
        app = UpstreamForwarder(upstream=f"https://127.0.0.1:{port}")
        with pytest.raises(UpstreamBroken):
            until_the_end(app)


def test_connections_are_kept_over_tls(trusted: Path) -> None:
    """One handshake serves several requests."""
    handshakes = []

    def handler(connection: ssl.SSLSocket) -> None:
        handshakes.append(1)
        while connection.recv(65536):
            connection.sendall(OK)

    with tls_server(trusted, handler) as port:
        app = UpstreamForwarder(upstream=f"https://127.0.0.1:{port}")
        for _ in range(4):
            assert call(app, "/x").body == b"ok"
        from aigw_middleware.forwarding.transport import shared_transport

        shared_transport().close()
    assert len(handshakes) <= 2  # the first may be spoiled by session tickets that came late


def test_a_silent_handshake_is_504(trusted: Path) -> None:
    """`connect_timeout` bounds TLS as well."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = UpstreamForwarder(
        upstream=f"https://127.0.0.1:{listener.getsockname()[1]}", connect_timeout=0.2
    )
    answer = call(app, "/x")
    listener.close()
    assert (answer.status, answer.code) == (504, "upstream_timeout")


def test_a_large_body_goes_out_over_tls(tmp_path: Path, monkeypatch: Any) -> None:
    """TLS 1.3's session tickets, which come during the upload, are not taken for an answer."""
    path = certificate(tmp_path, "server")
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    _tls_context.cache_clear()
    size = 2 * 1024 * 1024

    def read_all(connection: ssl.SSLSocket) -> None:
        data = b""
        while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < size:
            data += connection.recv(65536)
        connection.sendall(CLOSING)

    with tls_server(path, read_all) as port:
        app = UpstreamForwarder(upstream=f"https://127.0.0.1:{port}", first_byte_timeout=10)
        answer = call(app, "/upload", body=b"x" * size)
    _tls_context.cache_clear()
    assert answer.status == 200
