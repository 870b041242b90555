"""A real Flower deployment for tests: SuperLink, SuperNodes and `flwr run` as processes on the loopback interface."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@contextlib.contextmanager
def importable(app: Path) -> Iterator[None]:
    """The modules of a Flower app can be imported inside the block, and are forgotten after it."""
    package = app.name
    sys.path.insert(0, str(app))
    try:
        yield
    finally:
        sys.path.remove(str(app))
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]


def app_config(app: Path, **changes: object) -> dict[str, Any]:
    """An app's own defaults with changes, so that a key that was renamed is noticed."""
    defaults = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert not set(changes) - set(defaults)
    return {**defaults, **changes}


class Deployment:
    """SuperLink and SuperNodes in a Flower home of their own; all processes end with the block.

    Args:
        folder: for logs, the Flower home and a copy of the app.
        app: folder of the Flower app.
        nodes: how many SuperNodes.
        secure: with TLS, and only SuperNodes whose key was registered may take part.
    """

    def __init__(self, folder: Path, app: Path, nodes: int, secure: bool = False) -> None:
        self.folder, self.app = folder, app
        self.processes: list[subprocess.Popen[bytes]] = []
        self.home, self.keys = folder / "home", make_keys(folder / "keys", nodes) if secure else None
        self.home.mkdir()
        self.link, *runtimes = free_ports(nodes + 1)
        trust = f'root-certificates = "{self.keys / "ca.pem"}"' if self.keys else "insecure = true"
        address = f'default = "loop"\n\n[superlink.loop]\naddress = "127.0.0.1:{self.link}"\n{trust}\n'
        (self.home / "config.toml").write_text(f"[superlink]\n{address}")
        self.runtimes = runtimes
        path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        self.environment = {
            **os.environ,
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": path,
            "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")]),
        }

    def __enter__(self) -> Deployment:
        server, keys = ["--insecure"], self.keys
        if keys:
            server = ["--ssl-ca-certfile", f"{keys}/ca.pem", "--ssl-certfile", f"{keys}/server.pem",
                      "--ssl-keyfile", f"{keys}/server.key", "--enable-supernode-auth"]  # fmt: skip
        self.start("flower-superlink", *server, "--host", "127.0.0.1", "--port", str(self.link),
                   "--disable-runtime-dependency-installation")  # fmt: skip
        self.wait_for_port(self.link, 60.0)
        for index, port in enumerate(self.runtimes):
            trust = ["--insecure"]
            if keys:
                self.flwr("supernode", "register", f"{keys}/node{index}.pub", "loop")
                trust = ["--root-certificates", f"{keys}/ca.pem",
                         "--auth-supernode-private-key", f"{keys}/node{index}"]  # fmt: skip
            node = f"partition-id={index} num-partitions={len(self.runtimes)}"
            self.start("flower-supernode", *trust, "--superlink", f"127.0.0.1:{self.link}",
                       "--port", str(port), "--node-config", node)  # fmt: skip
        return self

    def flwr(self, *words: str) -> None:
        """A short command of Flower's own."""
        subprocess.run([str(BIN / "flwr"), *words], env=self.environment, check=True, capture_output=True, timeout=60)

    def start(self, program: str, *arguments: str) -> None:
        log = (self.folder / f"{program}-{len(self.processes)}.log").open("w")
        command = [str(BIN / program), *arguments]
        process = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        log.close()
        self.processes.append(process)

    def flwr_run(self, run_config: str, seconds: float) -> int:
        """`flwr run` on a copy of the app, waited for; its output goes to a log."""
        copy = self.folder / "app"
        shutil.copytree(self.app, copy, ignore=shutil.ignore_patterns("__pycache__"))
        command = [str(BIN / "flwr"), "run", str(copy), "loop", "--stream", "--run-config", run_config]
        with (self.folder / "flwr-run.log").open("w") as log:
            process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            self.processes.append(process)
            try:
                return process.wait(timeout=max(seconds, 1.0))
            except subprocess.TimeoutExpired:
                return -1

    def wait_for(self, path: Path, seconds: float) -> bool:
        end = time.monotonic() + max(seconds, 1.0)
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.2)
        return path.exists()

    def wait_for_port(self, port: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.2)
        raise AssertionError(f"the SuperLink did not open its port:\n{self.logs()}")

    def logs(self) -> str:
        """The end of every log, without colours."""
        parts = [f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log"))]
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(parts))

    def __exit__(self, *_: object) -> None:
        for signal_ in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(self.processes):
                try:
                    os.killpg(process.pid, signal_)  # each leads a group of its own, with its children
                except ProcessLookupError:
                    continue
            end = time.monotonic() + 5.0
            while any(process.poll() is None for process in self.processes) and time.monotonic() < end:
                time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def make_keys(folder: Path, nodes: int) -> Path:
    """A certificate authority, the SuperLink's certificate for the loopback address, and a key pair a SuperNode."""
    folder.mkdir()
    authority, server = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "federation")])
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "superlink")])
    here = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    basics = x509.BasicConstraints(ca=True, path_length=None)
    for name, holder, key, extension in (("ca", issuer, authority, basics), ("server", subject, server, here)):
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(issuer, holder, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        certificate = builder.add_extension(extension, critical=True).sign(authority, hashes.SHA256())
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    plain = NoEncryption()
    (folder / "server.key").write_bytes(server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, plain))
    for index in range(nodes):
        key = ec.generate_private_key(ec.SECP384R1())
        (folder / f"node{index}").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, plain))
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        (folder / f"node{index}.pub").write_bytes(public)
    return folder
