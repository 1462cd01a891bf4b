"""The chart: rendered with Helm's own library, validated strictly against Kubernetes' schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from support.deploy import SERVICES, setting_names

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "k8s" / "deskwire"

Manifest = dict[str, Any]

#: Where one chat pod is: a migration has no such place.
OF_ONE_POD = {"DESKWIRE_SHARD_NAME", "POD_IP", "DESKWIRE_ADVERTISE", "DESKWIRE_PEER_NAME"}

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "tls": {"tls": {"enabled": True}},
    "ingress": {
        "websocket": {
            "service": {"annotations": {"example.com/class": "internal"}},
            "ingress": {
                "enabled": True,
                "host": "chat.example.com",
                "className": "nginx",
                "tlsSecret": "chat-tls",
                "annotations": {"nginx.ingress.kubernetes.io/proxy-read-timeout": "3600"},
            },
        }
    },
    "large": {
        "image": {
            "registry": "registry.example.com/deskwire",
            "tag": "1.2.3",
            "pullSecrets": ["registry"],
        },
        "services": {
            "gateway": {"replicas": 12},
            "chat": {"replicas": 4},
            "tickets": {"replicas": 3},
            "events": {"replicas": 4},
            "cdc": {"replicas": 1},
        },
        "kafka": {"bootstrap": "kafka-0:9092,kafka-1:9092"},
        "telemetry": {"otlpEndpoint": "collector:4317", "traceSampleRatio": 0.001},
        "networkPolicy": {
            "clients": [{"podSelector": {"matchLabels": {"app": "desk"}}}],
            "monitoring": [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}],
        },
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "chat", "operator": "Exists", "effect": "NoSchedule"}],
        "podAnnotations": {"owner": "desk"},
        "drainSeconds": 120,
    },
    "bucket": {
        "attachments": {
            "url": "s3://desk?endpoint=https://s3.example.com&region=eu-1",
            "existingSecret": "desk-bucket",
        }
    },
    "folder": {
        "services": {"chat": {"replicas": 2}},
        "attachments": {
            "url": "file:///var/lib/deskwire/attachments",
            "publicUrl": "https://files.example.com",
            "existingClaim": "desk-files",
            "corsOrigins": "https://www.example.com",
            "ingress": {
                "enabled": True,
                "host": "files.example.com",
                "tlsSecret": "files-tls",
                "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "25m"},
            },
        },
    },
    "bare": {
        "networkPolicy": {"enabled": False},
        "metrics": {"annotations": False},
        "websocket": {"service": {"type": "LoadBalancer"}},
    },
}


def render(values: dict[str, Any], name: str = "deskwire") -> list[Manifest]:
    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name=name, namespace="desk")
    texts = [text for path, text in files.items() if not path.endswith("NOTES.txt")]
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def workloads(manifests: list[Manifest]) -> dict[str, Manifest]:
    return {
        manifest["metadata"]["labels"]["app.kubernetes.io/component"]: manifest
        for manifest in of_kind(manifests, "Deployment", "StatefulSet")
    }


def pods(manifests: list[Manifest]) -> list[Manifest]:
    return [
        manifest["spec"]["template"]
        for manifest in of_kind(manifests, "Deployment", "StatefulSet", "Job")
    ]


def environment(pod: Manifest, manifests: list[Manifest]) -> set[str]:
    """The names of all variables that the pod's container sees."""
    (container,) = pod["spec"]["containers"]
    names = {entry["name"] for entry in container.get("env", [])}
    for source in container.get("envFrom", []):
        (config,) = (
            manifest
            for manifest in of_kind(manifests, "ConfigMap")
            if manifest["metadata"]["name"] == source["configMapRef"]["name"]
        )
        names |= set(config["data"])
    return names


def serves_files(manifests: list[Manifest]) -> bool:
    """Whether chat pods serve attachments themselves."""
    (config,) = of_kind(manifests, "ConfigMap")
    return str(config["data"]["DESKWIRE_ATTACHMENTS_URL"]).startswith("file:")


@pytest.fixture(params=VARIANTS, name="manifests")
def rendered(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(VARIANTS[request.param])


def test_every_manifest_is_valid_kubernetes(manifests):
    for manifest in manifests:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
        # The oldest that Chart.yaml admits.
        kubernetes_validate.validate(manifest, "1.30", strict=True)


def test_strict_validation_would_notice():
    (account,) = of_kind(render({}), "ServiceAccount")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {**account, "automountToken": False}, kubernetes_validate.latest_version(), strict=True
        )


def test_helm_finds_no_fault():
    findings = helm_python.lint(str(CHART))
    assert findings["errors"] == []


def test_five_services_and_a_migration_for_each_that_owns_data(manifests):
    found = workloads(manifests)
    assert set(found) == set(SERVICES)
    assert found["chat"]["kind"] == "StatefulSet"
    jobs = of_kind(manifests, "Job")
    assert {job["metadata"]["name"] for job in jobs} == {
        f"deskwire-{service}-migrate" for service in SERVICES if service != "gateway"
    }
    for job in jobs:
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["migrate"]


def test_migrations_need_nothing_that_the_release_makes(manifests):
    """They run before install: a ConfigMap or ServiceAccount of the release isn't there yet."""
    for job in of_kind(manifests, "Job"):
        spec = job["spec"]["template"]["spec"]
        assert "serviceAccountName" not in spec
        assert "envFrom" not in spec["containers"][0]


def test_migrations_see_the_same_settings_as_their_service(manifests):
    servers = {
        service: environment(workload["spec"]["template"], manifests)
        for service, workload in workloads(manifests).items()
    }
    for job in of_kind(manifests, "Job"):
        service = job["spec"]["template"]["spec"]["containers"][0]["image"].split("/")[-1]
        expected = servers[service.split(":")[0]] - OF_ONE_POD
        assert environment(job["spec"]["template"], manifests) == expected


def test_every_variable_is_a_setting_of_a_service(manifests):
    """One ConfigMap serves all, so each variable must be known to one of them at least."""
    known = {"POD_IP"}.union(*(setting_names(service) for service in SERVICES))
    for pod in pods(manifests):
        assert environment(pod, manifests) <= known


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_service_needs_is_set(service):
    manifests = render({})
    seen = environment(workloads(manifests)[service]["spec"]["template"], manifests)
    assert setting_names(service, required=True) <= seen
    # A default that is right on a laptop is wrong in a pod.
    places = {
        name
        for name in setting_names(service)
        if name.endswith(("_TARGET", "_LISTEN", "_URL", "_KAFKA", "_KEYS_FILE"))
    }
    assert places <= seen


def test_chat_pods_say_who_and_where_they_are(manifests):
    """Each has a name that outlives it, and an address of its own; its certificate has the service's name."""
    pod = workloads(manifests)["chat"]["spec"]["template"]
    entries = {entry["name"]: entry for entry in pod["spec"]["containers"][0]["env"]}
    name = entries["DESKWIRE_SHARD_NAME"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert name == "metadata.name"
    # A variable is known to those after it only.
    assert list(entries).index("POD_IP") < list(entries).index("DESKWIRE_ADVERTISE")
    assert entries["DESKWIRE_ADVERTISE"]["value"] == "$(POD_IP):7401"
    assert entries["DESKWIRE_PEER_NAME"]["value"] == "deskwire-chat"


def test_pods_of_the_hub_reach_each_other(manifests):
    """A stream of a subscription that another pod has is passed on to it."""
    pod = workloads(manifests)["events"]["spec"]["template"]
    entries = {entry["name"]: entry for entry in pod["spec"]["containers"][0]["env"]}
    assert list(entries).index("POD_IP") < list(entries).index("DESKWIRE_ADVERTISE")
    assert entries["DESKWIRE_ADVERTISE"]["value"] == "$(POD_IP):7401"
    assert entries["DESKWIRE_PEER_NAME"]["value"] == "deskwire-events"


def test_images():
    images = {pod["spec"]["containers"][0]["image"] for pod in pods(render(VARIANTS["large"]))}
    assert images == {f"registry.example.com/deskwire/{service}:1.2.3" for service in SERVICES}


def test_pods_are_restricted(manifests):
    """What the Pod Security Standard `restricted` asks, and a read-only file system."""
    for pod in pods(manifests):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"] is True
        assert set(container["resources"]) == {"requests", "limits"}


def test_pods_have_time_to_drain():
    for workload in workloads(render(VARIANTS["large"])).values():
        assert workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 135


def test_no_upgrade_leaves_a_service_without_a_pod():
    manifests = render(VARIANTS["large"])
    found = workloads(manifests)
    assert {name: found[name]["spec"]["replicas"] for name in ("events", "cdc")} == {
        "events": 4,
        "cdc": 1,
    }
    for name in set(found) - {"chat"}:
        assert found[name]["spec"]["strategy"] == {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
        }


def test_probes_ask_for_health(manifests):
    encrypted = "DESKWIRE_TLS_CERT" in of_kind(manifests, "ConfigMap")[0]["data"]
    for workload in workloads(manifests).values():
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        for probe in ("startupProbe", "readinessProbe"):
            # kubelet's gRPC probe speaks no TLS.
            kind = "exec" if encrypted else "grpc"
            assert kind in container[probe]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["grpc"] == 7401


def test_only_the_gateway_is_public(manifests):
    policies = of_kind(manifests, "NetworkPolicy")
    if not policies:
        return
    opened = [
        (policy["spec"]["podSelector"]["matchLabels"], rule["ports"])
        for policy in policies
        for rule in policy["spec"]["ingress"]
        if not rule.get("from")
    ]
    files = serves_files(manifests)
    assert [(where["app.kubernetes.io/component"], ports) for where, ports in opened] == [
        ("gateway", [{"port": "websocket"}]),
        *([("chat", [{"port": "files"}])] if files else []),
    ]
    outside = [
        service["metadata"]["name"]
        for service in of_kind(manifests, "Service")
        if service["spec"].get("clusterIP") != "None"
    ]
    assert sorted(outside) == [*(["deskwire-files"] if files else []), "deskwire-websocket"]


def test_chat_has_what_its_attachments_need():
    manifests = render(VARIANTS["folder"])
    for pod in pods(manifests):
        (container,) = pod["spec"]["containers"]
        claims = [
            each["persistentVolumeClaim"]["claimName"]
            for each in pod["spec"]["volumes"]
            if "persistentVolumeClaim" in each
        ]
        mounted = {each["mountPath"] for each in container["volumeMounts"]}
        is_chat = "/chat:" in container["image"]
        assert claims == (["desk-files"] if is_chat else [])
        assert ("/var/lib/deskwire/attachments" in mounted) == is_chat
    (ingress,) = of_kind(manifests, "Ingress")
    assert ingress["spec"]["rules"][0]["host"] == "files.example.com"
    # The key of a bucket is in chat's pods only.
    manifests = render(VARIANTS["bucket"])
    for pod in pods(manifests):
        is_chat = "/chat:" in pod["spec"]["containers"][0]["image"]
        assert ("DESKWIRE_ATTACHMENTS_SECRET_KEY" in environment(pod, manifests)) == is_chat
    assert not serves_files(manifests)


def test_services_select_the_pods_that_are_there(manifests):
    labels = [pod["metadata"]["labels"] for pod in pods(manifests)]
    for service in of_kind(manifests, "Service"):
        selector = service["spec"]["selector"].items()
        assert sum(selector <= found.items() for found in labels) == 1
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        selector = budget["spec"]["selector"]["matchLabels"].items()
        assert sum(selector <= found.items() for found in labels) == 1


def test_targets_are_services_of_the_release(manifests):
    names = {service["metadata"]["name"] for service in of_kind(manifests, "Service")}
    (config,) = of_kind(manifests, "ConfigMap")
    targets = {value for name, value in config["data"].items() if name.endswith("_TARGET")}
    assert {target.removesuffix(":7401").rpartition("/")[2] for target in targets} <= names


def test_two_releases_share_no_name():
    one, two = ({m["metadata"]["name"] for m in render({}, name=name)} for name in ("one", "two"))
    assert not one & two


def test_notes_tell_where_to_connect():
    with helm_python.Chart.load(str(CHART)) as chart:
        notes = chart.render(VARIANTS["ingress"], name="deskwire", namespace="desk")
    assert "wss://chat.example.com/" in notes["deskwire/templates/NOTES.txt"]


@pytest.mark.parametrize(
    "values",
    [
        {"services": {"chat": {"replicas": 17}}},
        {"services": {"events": {"replicas": 0}}},
        {"services": {"cdc": {"replicas": 101}}},
        {"services": {"gateway": {"replicas": 0}}},
        {"services": {"billing": {"replicas": 1}}},
        {"kafka": {"bootstrap": "kafka"}},
        {"kafka": {"bootstrap": ""}},
        {"databases": {"existingSecret": ""}},
        {"telemetry": {"traceSampleRatio": 2}},
        {"logLevel": "loud"},
        {"websocket": {"ingress": {"enabled": True}}},
        {"websocket": {"service": {"type": "Public"}}},
        {"drainSeconds": "long"},
        {"services": {"chat": {"resources": {"limits": {"memory": "much"}}}}},
        {"attachments": {"url": "file:///var/lib/deskwire/attachments"}},
        {"attachments": {"url": "file:///tmp"}},
        {"attachments": {"url": "ftp://host"}},
        {"imagee": {"tag": "1"}},
    ],
    ids=str,
)
def test_a_bad_value_is_refused(values):
    with helm_python.Chart.load(str(CHART)) as chart, pytest.raises(helm_python.HelmError):
        chart.validate_schema(values)
