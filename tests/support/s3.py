"""A real S3-compatible server for tests: S3Proxy, which checks signatures as S3 does; its jars come through Maven."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deskwire_cli.machine.kafka import cache_folder, find_java
from deskwire_cli.machine.ports import HOST
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.process import Process
from support.ports import free_port
from support.servers import running, unavailable

VERSION = "2.6.0"
ACCESS_KEY, SECRET_KEY = "deskwire-tests", "deskwire-tests-secret"
REGION = "us-east-1"

_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>deskwire</groupId><artifactId>s3proxy</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.gaul</groupId><artifactId>s3proxy</artifactId><version>{VERSION}</version></dependency>
  </dependencies>
</project>
"""
_LOGGING = """\
<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d %-5p %c{0} %m%n</pattern></encoder>
  </appender>
  <root level="warn"><appender-ref ref="OUT"/></root>
</configuration>
"""


@dataclass(frozen=True)
class S3Server:
    """A running server; `client` is botocore's."""

    endpoint: str

    def client(self) -> Any:
        from botocore.config import Config
        from botocore.session import Session

        return Session().create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def settings(self, bucket: str) -> dict[str, Any]:
        """Make a bucket, and return chat's settings for it."""
        client = self.client()
        client.create_bucket(Bucket=bucket)
        client.close()
        return {
            "attachments_url": f"s3://{bucket}/desk?endpoint={self.endpoint}&region={REGION}",
            "attachments_access_key": ACCESS_KEY,
            "attachments_secret_key": SECRET_KEY,
        }

    def keys(self, bucket: str) -> list[str]:
        """Return the keys in a bucket."""
        client = self.client()
        found = client.list_objects_v2(Bucket=bucket).get("Contents", [])
        client.close()
        return sorted(each["Key"] for each in found)


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run S3Proxy with its data in a folder while the block runs."""
    home = folder / "s3"
    (home / "data").mkdir(parents=True)
    port = free_port()
    settings = {
        "s3proxy.endpoint": f"http://{HOST}:{port}",
        "s3proxy.authorization": "aws-v4",
        "s3proxy.identity": ACCESS_KEY,
        "s3proxy.credential": SECRET_KEY,
        "jclouds.provider": "filesystem-nio2",
        "jclouds.identity": "none",
        "jclouds.credential": "none",
        "jclouds.filesystem.basedir": home / "data",
    }
    configuration = home / "s3proxy.conf"
    configuration.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    logging = home / "logback.xml"
    logging.write_text(_LOGGING)
    try:
        java, jars = find_java(), _jars()
    except Problem as problem:
        unavailable("S3Proxy", str(problem))
    process = Process(
        name="s3proxy",
        command=[
            java, "-Xms64m", "-Xmx128m", "-XX:+UseSerialGC", f"-Dlogback.configurationFile={logging}",
            "-cp", f"{jars}/*", "org.gaul.s3proxy.Main", "--properties", str(configuration),
        ],
        log=folder / "s3proxy.log",
        grace=3.0,
    )  # fmt: skip
    server = S3Server(f"http://{HOST}:{port}")

    def answers() -> str:
        try:
            with urllib.request.urlopen(server.endpoint, timeout=2):
                return ""
        except urllib.error.HTTPError as error:
            error.close()
            return ""  # it is ready: it asks for a signature
        except OSError as error:
            return str(error)

    with running(process, answers):
        yield server


def _jars() -> Path:
    """Return the folder of its jars; the first time fetch them, all or none."""
    target = cache_folder() / f"s3proxy-{VERSION}"
    if target.is_dir():
        return target
    maven = shutil.which("mvn")
    if maven is None:
        unavailable("S3Proxy", "it comes through Maven, which is not here")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        (folder / "pom.xml").write_text(_POM)
        done = subprocess.run(
            [
                maven, "-B", "-q", "-f", str(folder / "pom.xml"), "dependency:copy-dependencies",
                "-DincludeScope=runtime", f"-DoutputDirectory={folder / 'libs'}",
            ],
            capture_output=True, text=True, check=False, timeout=150,
        )  # fmt: skip
        if done.returncode != 0:
            lines = [line for line in done.stdout.splitlines() if "ERROR" in line]
            unavailable("S3Proxy", f"Maven could not fetch it: {(lines or ['no word why'])[0]}")
        try:
            (folder / "libs").rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target
