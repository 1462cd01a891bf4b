"""`python -m deskwire_common.probe`: does the service in this container serve?

Asks grpc.health.v1 on the port of DESKWIRE_GRPC_LISTEN, with the service's own certificate where
TLS is set. Exit codes: 0 it serves; 1 it doesn't, with its answer in one line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2

TIMEOUT = 4.0  # seconds; below the timeout of the system that runs the probe


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Blocks for at most TIMEOUT seconds."""
    listen = environ.get("DESKWIRE_GRPC_LISTEN", "127.0.0.1:7401")
    target = f"127.0.0.1:{listen.rpartition(':')[2]}"
    with open_channel(target, environ) as channel:
        try:
            answer = ask(channel)
        except grpc.RpcError as error:
            print(f"{target} doesn't answer: {error.code().name}", file=sys.stderr)
            return 1
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return 0
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(f"{target} answers {status}", file=sys.stderr)
    return 1


def ask(channel: grpc.Channel) -> health_pb2.HealthCheckResponse:
    """The health of the server as a whole; raises grpc.RpcError when there is no answer."""
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)


def open_channel(target: str, environ: Mapping[str, str]) -> grpc.Channel:
    """Plaintext, or mTLS like other services; the certificate names a host that isn't 127.0.0.1."""
    certificate_file = environ.get("DESKWIRE_TLS_CERT", "")
    if not certificate_file:
        return grpc.insecure_channel(target)
    certificate = Path(certificate_file).read_bytes()
    credentials = grpc.ssl_channel_credentials(
        root_certificates=Path(environ["DESKWIRE_TLS_CA"]).read_bytes(),
        private_key=Path(environ["DESKWIRE_TLS_KEY"]).read_bytes(),
        certificate_chain=certificate,
    )
    options = (("grpc.ssl_target_name_override", host_of(certificate)),)
    return grpc.secure_channel(target, credentials, options=options)


def host_of(certificate: bytes) -> str:
    """The first DNS name of a PEM certificate; `localhost` when it has none."""
    names = x509.load_pem_x509_certificate(certificate).extensions
    try:
        alternatives = names.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "localhost"
    return next(iter(alternatives.get_values_for_type(x509.DNSName)), "localhost")


if __name__ == "__main__":
    sys.exit(main())
