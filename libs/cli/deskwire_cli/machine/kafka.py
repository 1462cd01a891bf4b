"""Apache Kafka on this machine: one node, KRaft, its jars through Maven.

Measured here: jars 44 MB, metadata answers 2-3 s after the start (also with old data), 350-390 MB resident.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from deskwire_cli.machine.ports import HOST
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.process import Probe, Process

VERSION: Final = "4.3.0"
JAVA: Final = 17
_LOG4J: Final = "2.25.4"  # the version that Kafka itself ships with
JAVA_FOLDERS: Final = Path("/usr/lib/jvm")
READY_SECONDS: Final = 60.0
ADVICE: Final = "install them (Debian: apt-get install openjdk-17-jre-headless maven)"
"""How to get Java and Maven: a part of messages."""

_POM: Final = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>deskwire</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>{_LOG4J}</version>
    </dependency>
  </dependencies>
</project>
"""

_LOGGING: Final = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{yyyy-MM-dd'T'HH:mm:ss.SSS} %-5p %c{1} %m%n
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
logger.config.name = org.apache.kafka.common.config
logger.config.level = warn
logger.values.name = kafka.server.KafkaConfig
logger.values.level = warn
logger.utils.name = org.apache.kafka.common.utils.AppInfoParser
logger.utils.level = warn
"""


def find_java() -> str:
    """The path of a java that can run Kafka. Raises Problem."""
    home = os.environ.get("JAVA_HOME", "")
    candidates = [f"{home}/bin/java"] if home else []
    candidates += [shutil.which("java") or ""]
    candidates += sorted(map(str, JAVA_FOLDERS.glob("*/bin/java")))
    oldest = 0
    for java in candidates:
        if java and os.access(java, os.X_OK):
            found = java_version(java)
            if found >= JAVA:
                return java
            oldest = max(oldest, found)
    found_text = f"only Java {oldest} is here" if oldest else "no Java is here"
    raise Problem(
        f"Apache Kafka needs Java {JAVA} or newer, {found_text}: {ADVICE}, or use --broker dev"
    )


def java_version(java: str) -> int:
    """Return the major version of a java; 0 when it reports none."""
    try:
        answer = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(r'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    return int(match[1]) if match else 0


def cache_folder() -> Path:
    """The folder for downloads, outside of any home: $DESKWIRE_CACHE, else ~/.cache/deskwire."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DESKWIRE_CACHE") or Path(base) / "deskwire")


def jars_folder() -> Path:
    return cache_folder() / f"kafka-{VERSION}"


def available() -> str:
    """ "" when Kafka can be started on this machine, else why not (one line)."""
    try:
        find_java()
    except Problem as problem:
        return str(problem)
    if not (jars_folder() / "libs").is_dir() and shutil.which("mvn") is None:
        return f"Apache Kafka comes through Maven, which is not here: {ADVICE}, or use --broker dev"
    return ""


def fetch(say: Callable[[str], None] = lambda _line: None) -> Path:
    """The folder of Kafka's jars; fetched the first time. Safe to call at once. Raises Problem. Blocks."""
    target = jars_folder()
    if (target / "libs").is_dir():
        return target
    maven = shutil.which("mvn")
    if maven is None:
        raise Problem(
            f"Apache Kafka comes through Maven, which is not here: {ADVICE}, or use --broker dev"
        )
    say(f"fetching Apache Kafka {VERSION} through Maven (46 files, 45 MB) …")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        (folder / "pom.xml").write_text(_POM)
        (folder / "log4j2.properties").write_text(_LOGGING)
        _copy_dependencies(maven, folder, say)
        # Whole or not at all; another process may have been faster.
        try:
            folder.rename(target)
        except OSError:
            if not (target / "libs").is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _copy_dependencies(maven: str, folder: Path, say: Callable[[str], None]) -> None:
    command = [maven, "-B", "-f", str(folder / "pom.xml"), "dependency:copy-dependencies"]
    command += [f"-DoutputDirectory={folder / 'libs'}"]
    output: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None  # noqa: S101 - a pipe was asked for
        copied = 0
        for line in run.stdout:
            output.append(line.rstrip())
            if "Copying " in line:
                copied += 1
                if copied % 15 == 0:
                    say(f"  {copied} jars")
    if run.returncode != 0 or not any((folder / "libs").glob("kafka_2.13-*.jar")):
        why = next(
            (line for line in output if line.startswith("[ERROR]")), output[-1] if output else ""
        )
        raise Problem(f"Maven could not fetch Apache Kafka {VERSION}: {why[:300]}")


def properties(data: Path, port: int, controller_port: int) -> str:
    """The broker's configuration."""
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        # Not a stored quorum: the same data may be used on other ports.
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": data,
        "num.partitions": 4,
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        "offsets.topic.num.partitions": 4,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        # For this long a killed broker keeps its successor out.
        "broker.heartbeat.interval.ms": 1000,
        "broker.session.timeout.ms": 4000,
        "group.initial.rebalance.delay.ms": 0,
        "log.segment.bytes": 64 * 1024 * 1024,
        "log.index.size.max.bytes": 1024 * 1024,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "controlled.shutdown.max.retries": 1,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def process(
    folder: Path,
    *,
    port: int,
    controller_port: int,
    log: Path,
    pid_file: Path | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Process:
    """A broker with its data in `folder`, formatted if it is new; not started. Raises Problem. Blocks."""
    java = find_java()
    jars = fetch(say)
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data"
    configuration = folder / "server.properties"
    configuration.write_text(properties(data, port, controller_port))
    # Only the quick compiler (C1): the thorough one takes a quarter of a core for the first minutes, which are most of
    # a development broker's life.
    run = [java, "-Xms256m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    run += ["-XX:+ExitOnOutOfMemoryError"]
    run += [f"-Dlog4j2.configurationFile={jars / 'log4j2.properties'}", "-Dlog4j2.disable.jmx=true"]
    run += ["-cp", f"{jars / 'libs'}/*"]
    if not (data / "meta.properties").exists():
        identity = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        if identity.startswith("-"):  # it would be read as an option
            identity = "A" + identity[1:]
        _format(
            [*run, "kafka.tools.StorageTool", "format", "-t", identity, "-c", str(configuration)]
        )
    return Process(
        name="kafka",
        command=[*run, "kafka.Kafka", str(configuration)],
        log=log,
        pid_file=pid_file,
        grace=20.0,
    )


def _format(command: list[str]) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        words = (answer.stderr or answer.stdout).strip().splitlines() or ["no word why"]
        why = next((line for line in words if "Exception" in line or "rror" in line), words[-1])
        raise Problem(f"Kafka's storage could not be formatted: {why[:300]}")


def _silent(_error: KafkaError) -> None:
    """Ignore connection errors: a probe waits until they end."""


def probe(bootstrap: str) -> Probe:
    """Ready when the broker answers a metadata request with itself in it."""
    client: list[AdminClient] = []

    def ask() -> str:
        if not client:
            client.append(
                AdminClient(
                    {
                        "bootstrap.servers": bootstrap,
                        "log_level": 0,
                        "error_cb": _silent,  # type: ignore[dict-item]  # its stub knows values only
                        "reconnect.backoff.ms": 50,
                        "reconnect.backoff.max.ms": 200,
                    }
                )
            )
        try:
            metadata = client[0].list_topics(timeout=1.0)
        except KafkaException as error:
            return f"no metadata from {bootstrap} ({error.args[0].name()})"
        return "" if metadata.brokers else f"no broker at {bootstrap}"

    return ask


def main() -> None:
    """Fetch the jars: set-up does this, so that the first start needs no network."""
    try:
        find_java()
        fetch(lambda line: print(line, file=sys.stderr))
    except Problem as problem:
        print(problem, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
