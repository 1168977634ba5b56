"""Fixtures of the deployment tests: tools on demand, the local endpoint, the deployed stack.

Where a tool cannot be installed they are skipped on a laptop, and fail where CI=true.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tests.deploy.environments import BUILD, ToolMissing, clean_environment, run, tool
from tests.deploy.stack import CERTIFICATE, LOCAL_RUNTIME, Stack

ENDPOINT_START_S = 60


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "deploy: installs tools of its own and deploys to a local endpoint")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.deploy)


@pytest.fixture(scope="session")
def program() -> Callable[[str, str], Path]:
    def find(environment: str, name: str) -> Path:
        try:
            return tool(environment, name)
        except ToolMissing as problem:
            if os.environ.get("CI") == "true":
                pytest.fail(str(problem), pytrace=False)
            pytest.skip(f"DEPLOYMENT NOT TESTED: {problem}")

    return find


@pytest.fixture(scope="session")
def sam(program: Callable[[str, str], Path]) -> Path:
    return program("sam", "sam")


@pytest.fixture(scope="session")
def endpoint(program: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the local endpoint, which enforces IAM; its log is build/deploy/endpoint.log.

    TLS, because bucket and topic refuse everything else.
    """
    python = program("ministack", "python")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"https://127.0.0.1:{port}"
    BUILD.mkdir(parents=True, exist_ok=True)
    certificate = make_certificate()
    settings = clean_environment(
        AUTH="true",
        USE_SSL="1",
        MINISTACK_SSL_CERT=str(certificate),
        MINISTACK_SSL_KEY=str(certificate.with_suffix(".key")),
        AWS_CA_BUNDLE=str(certificate),  # for the functions, which inherit it
        GATEWAY_PORT=str(port),
        BIND_HOST="127.0.0.1",
        MINISTACK_HOST="127.0.0.1",
        IOT_MTLS_ENABLED="0",
        SFTP_ENABLED="0",
        DOCKER_HOST="unix:///nonexistent",  # it must not start containers
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        TMPDIR=str(tmp_path_factory.mktemp("endpoint")),
    )
    with (BUILD / "endpoint.log").open("wb") as log:
        process = subprocess.Popen(
            [python, Path(__file__).parent / "endpoint.py"], env=settings, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_for(port, process)
            yield url
        finally:
            process.kill()  # it waits for connections to close otherwise
            process.wait()


def make_certificate() -> Path:
    """A certificate for 127.0.0.1 that signs itself."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the local endpoint")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    CERTIFICATE.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    CERTIFICATE.with_suffix(".key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return CERTIFICATE


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + ENDPOINT_START_S
    while time.monotonic() < until:
        assert process.poll() is None, f"the endpoint has ended: {(BUILD / 'endpoint.log').read_text()[-3000:]}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"the endpoint did not listen within {ENDPOINT_START_S} s; see build/deploy/endpoint.log")


@pytest.fixture(scope="session")
def stack(sam: Path, endpoint: str) -> Stack:
    """The project's own template, built and deployed unchanged to the endpoint by `sam build` and `sam deploy`.

    The endpoint runs functions with its own Python, so the packages beside them are fetched for that one: this is the
    only difference from what `make deploy` sends to AWS.
    """
    built = BUILD / "local"
    run([sam, "build", "--no-cached", "--build-dir", built], env=clean_environment(**LOCAL_RUNTIME))
    made = Stack(sam, endpoint, built / "template.yaml")
    made.deploy()
    return made
