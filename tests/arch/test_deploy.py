"""What is deployed fits Kubernetes' schemas, the services' settings and the secrets they read."""

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from google.protobuf import descriptor_pool

from cli.stack.programs import SECRETS, Surroundings, environment
from services.chassis.rpc_guard import is_public
from services.chassis.settings import ServiceSettings
from tests.arch.code import ROOT, SERVICES

K8S = ROOT / "deploy" / "k8s"
KUBERNETES_VERSION = "1.37.0"


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of every manifest; kustomizations are not Kubernetes objects."""
    for path in sorted(K8S.rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            for document in yaml.safe_load_all(path.read_text()):
                yield f"{path.relative_to(K8S)}:{document['kind']}", document


ALL = dict(manifests())
POLICIES = [document for _, document in manifests() if document["kind"] == "NetworkPolicy"]
GENERATED = {
    str(path.parent.relative_to(K8S)): yaml.safe_load(path.read_text())["configMapGenerator"]
    for path in K8S.rglob("kustomization.yaml")
}


def container(service: str) -> dict[str, Any]:
    (only,) = ALL[f"base/{service}.yaml:Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def settings_of(service: str) -> type[ServiceSettings]:
    """The class of the service's settings."""
    module = vars(importlib.import_module(f"services.{service}.main"))
    (settings,) = (
        each
        for each in module.values()
        if isinstance(each, type) and issubclass(each, ServiceSettings) and each is not ServiceSettings
    )
    return settings


@pytest.mark.parametrize("manifest", [pytest.param(document, id=name) for name, document in manifests()])
def test_manifest_is_what_kubernetes_takes(manifest: dict[str, Any]) -> None:
    """Every object passes its schema, and has no field that the schema does not know."""
    kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


def test_a_misspelt_field_is_caught() -> None:
    """The test above fails on a manifest that Kubernetes would refuse."""
    wrong = {**ALL["base/decision.yaml:Service"], "specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("path", sorted(K8S.rglob("kustomization.yaml")), ids=lambda path: path.parent.name)
def test_kustomization_names_files_that_exist(path: Path) -> None:
    """Every resource and patch of a kustomization is there, and every manifest is a resource of one."""
    content = yaml.safe_load(path.read_text())
    named = {*content["resources"], *(patch["path"] for patch in content.get("patches", ()) if "path" in patch)}
    assert all((path.parent / name).exists() for name in named)
    assert {file.name for file in path.parent.glob("*.yaml")} - {"kustomization.yaml"} <= named


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_gets_the_secrets_it_reads_and_no_others(service: str) -> None:
    """The keys of a service are the same embedded and deployed; no service is handed another's."""
    prefix = f"COMITY_{service.upper()}_"
    given = {entry["name"] for entry in container(service)["env"] if entry["name"].endswith("_FILE")}
    assert given == {prefix + name for name in SECRETS.get(service, {})}
    told = {entry["name"] for entry in container(service)["env"] if "secretKeyRef" in entry.get("valueFrom", {})}
    cache = ["REDIS_URL"] if "redis_url" in settings_of(service).model_fields else ()
    reads = ("DATABASE_URL", "NATS_URL", *cache)
    assert told == {prefix + name for name in reads}
    assert all(entry["name"].startswith(prefix) for entry in container(service)["env"])


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_gets_the_settings_it_has(service: str) -> None:
    """Every variable is a setting of the service, and every setting without a default is given."""
    settings = settings_of(service)
    given = {entry["name"].removeprefix(f"COMITY_{service.upper()}_").lower() for entry in container(service)["env"]}
    assert given <= settings.model_fields.keys()
    assert {name for name, field in settings.model_fields.items() if field.is_required()} <= given


@pytest.mark.parametrize("service", SERVICES)
def test_replicas_of_a_service_are_told_apart(service: str) -> None:
    """Spans name the pod that they are from and its environment; by process id every container is number 1."""
    given = {entry["name"]: entry.get("valueFrom") for entry in container(service)["env"]}
    prefix = f"COMITY_{service.upper()}_"
    assert given[f"{prefix}INSTANCE"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert given[f"{prefix}ENVIRONMENT"] == {"configMapKeyRef": {"name": "comity", "key": "environment"}}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_of_a_stack_gets_the_settings_it_has(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stack hands a service is a setting of it, every required one is there, and nothing is another's."""
    for name in ("COMITY_POSTGRES_URL", "COMITY_DATA_DIR", *(f"COMITY_{one.upper()}_ADDRESS" for one in SERVICES)):
        monkeypatch.setenv(name, "elsewhere")
    secrets = {name: Path(name) for names in SECRETS.values() for name in names.values()}
    urls = dict.fromkeys(SERVICES, "127.0.0.1:1")
    around = Surroundings(urls, urls, "nats://", "redis://", Path("t"), Path("l"), secrets, Path("j"))
    prefix = f"COMITY_{service.upper()}_"
    given = {name for name in environment(service, "127.0.0.1:0", around) if name.startswith("COMITY_")}
    fields = importlib.import_module(f"services.{service}.main").Settings.model_fields
    known = {f"{prefix}{name}".upper() for name in fields}
    assert given <= known
    assert {f"{prefix}{name}".upper() for name, field in fields.items() if field.is_required()} <= given


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_no_privileges(service: str) -> None:
    """A service that is broken into can neither become root nor write to its image nor ask the cluster anything."""
    pod = ALL[f"base/{service}.yaml:Deployment"]["spec"]["template"]["spec"]
    own = container(service)["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}


@dataclass(frozen=True)
class Peer:
    """A pod as network policies see it; one without a namespace is outside of the cluster.

    Args:
        namespace: labels of its namespace.
    """

    labels: Mapping[str, str]
    namespace: Mapping[str, str] | None


HOME = {"kubernetes.io/metadata.name": "comity"}
PART_OF = {"app.kubernetes.io/part-of": "comity"}
PEERS = {
    "own": Peer(PART_OF, HOME),
    # Its labels are its own to choose; those of its namespace are not.
    "stranger": Peer({**PART_OF, "comity-backend": "true"}, {"kubernetes.io/metadata.name": "other"}),
    "neighbour": Peer({}, HOME),
    "backend": Peer({}, {"kubernetes.io/metadata.name": "shop", "comity-backend": "true"}),
    "prometheus": Peer({}, {"kubernetes.io/metadata.name": "monitoring"}),
    "dns": Peer({}, {"kubernetes.io/metadata.name": "kube-system"}),
    "internet": Peer({}, None),
}


def pod(service: str) -> Peer:
    """A replica of the service."""
    return Peer(ALL[f"base/{service}.yaml:Deployment"]["spec"]["template"]["metadata"]["labels"], HOME)


def permits(direction: str, one: Peer, other: Peer, port: Mapping[str, Any]) -> bool:
    """Whether the policies let *one* be called by (ingress), or call (egress), the other on a port that *other* has."""
    specs = [each["spec"] for each in POLICIES]
    of_one = [spec for spec in specs if direction in spec["policyTypes"] and selects(spec["podSelector"], one.labels)]
    side, key = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    return not of_one or any(
        any(matches(peer, other) for peer in rule[key])
        and any(
            each["port"] in port.values() and each.get("protocol", "TCP") == port["protocol"] for each in rule["ports"]
        )
        for spec in of_one
        for rule in spec.get(side, ())
    )


def matches(rule: Mapping[str, Any], peer: Peer) -> bool:
    """Whether the peer is one of those that a rule names; nobody tested here has an address of an ipBlock."""
    if "ipBlock" in rule or peer.namespace is None:
        return False
    near = selects(rule["namespaceSelector"], peer.namespace) if "namespaceSelector" in rule else peer.namespace == HOME
    return near and selects(rule.get("podSelector", {}), peer.labels)


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether the labels are those that the selector asks for."""
    wanted = selector.get("matchLabels", {})
    within = selector.get("matchExpressions", ())
    assert all(each["operator"] == "In" for each in within)
    return wanted.items() <= labels.items() and all(labels.get(each["key"]) in each["values"] for each in within)


def port_of(service: str, name: str) -> dict[str, Any]:
    """A port of the service's container, as a policy may name it; one that does not exist is reached by nobody."""
    numbers = {each["name"]: each["containerPort"] for each in container(service)["ports"]}
    return {"name": name, "number": numbers.get(name), "protocol": "TCP"}


@pytest.mark.parametrize("service", SERVICES)
def test_a_port_is_reached_by_those_it_is_for(service: str) -> None:
    """Comity's own reach the internal port, backends the public one, Prometheus metrics: nobody else anything."""
    reached = {
        name: {who for who, peer in PEERS.items() if permits("Ingress", pod(service), peer, port_of(service, name))}
        for name in ("grpc", "public", "metrics")
        if port_of(service, name)["number"] is not None
    }
    backends = {} if service == "features" else {"public": {"backend"}}
    assert reached == {"grpc": {"own"}, **backends, "metrics": {"prometheus"}}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_calls_what_it_is_told_of_and_nothing_else(service: str) -> None:
    """Nothing leaves a service that is broken into but to the servers and services it works with."""
    server = PEERS["neighbour"]
    ports = {"postgres": 5432, "nats": 4222, "redis": 6379, "otlp": 4317, "http": 80, "https": 443}
    called = {
        name
        for name, number in ports.items()
        if permits("Egress", pod(service), server, {"number": number, "protocol": "TCP"})
    }
    reads_cache = any(entry["name"].endswith("_REDIS_URL") for entry in container(service)["env"])
    assert called == {"postgres", "nats", "otlp", *(["redis"] if reads_cache else [])}
    for protocol in ("TCP", "UDP"):
        assert permits("Egress", pod(service), PEERS["dns"], {"number": 53, "protocol": protocol})
    for number in (53, 443, 5432, 8080):
        assert not permits("Egress", pod(service), PEERS["internet"], {"number": number, "protocol": "TCP"})
    peers = [
        entry["value"].partition(":")[0] for entry in container(service)["env"] if entry["name"].endswith("_ADDRESS")
    ]
    for peer in peers:
        target = pod(peer.removeprefix("comity-"))
        port = port_of(peer.removeprefix("comity-"), "grpc")
        assert permits("Egress", pod(service), target, port)
        assert permits("Ingress", target, pod(service), port)


def test_a_policy_that_lets_everybody_in_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above fail where a rule names nobody, which means everybody, or a direction is left open."""
    wide: dict[str, Any] = {
        "podSelector": {},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": "grpc"}]}],
    }
    monkeypatch.setitem(globals(), "POLICIES", [{"spec": wide}])
    assert permits("Ingress", pod("decision"), PEERS["stranger"], port_of("decision", "grpc"))
    assert permits("Egress", pod("decision"), PEERS["internet"], port_of("decision", "grpc"))


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_serves_its_public_methods_on_the_public_port(service: str) -> None:
    """A service that has methods for backends listens on the port that is theirs; one without has none."""
    settings = {entry["name"]: entry.get("value") for entry in container(service)["env"]}
    listens = settings.get(f"COMITY_{service.upper()}_PUBLIC_LISTEN")
    (number,) = [port["containerPort"] for port in container(service)["ports"] if port["name"] == "public"] or [None]
    assert listens == (None if number is None else f"[::]:{number}")
    exposed = {port["name"]: port["port"] for port in ALL[f"base/{service}.yaml:Service"]["spec"]["ports"]}
    assert exposed.get("public") == number
    assert (number is not None) == any(name.startswith(f"comity.{service}.") for name in public_methods())


def test_backends_may_call_these_methods_and_no_others() -> None:
    """A method that is made public is looked at by whoever changes this list: nobody asks callers who they are."""
    assert {name.partition(".v1.")[2] for name in public_methods()} == {
        "DecisionService/Decide",
        "FeedbackService/Track",
        "IdentityService/Link",
        *(f"ConsentService/{name}" for name in ("Record", "Revoke", "Evaluate", "History")),
    }


def public_methods() -> set[str]:
    """Every method of every service that a public port serves."""
    for path in (ROOT / "protos" / "gen" / "comity").rglob("*_pb2.py"):
        importlib.import_module(
            f"comity.{'.'.join(path.relative_to(ROOT / 'protos/gen/comity').with_suffix('').parts)}"
        )
    files = [
        descriptor_pool.Default().FindFileByName(str(path.relative_to(ROOT / "protos")))
        for path in (ROOT / "protos" / "comity").rglob("*.proto")
    ]
    services = [service for file in files for service in file.services_by_name.values()]
    assert len(services) >= 10
    return {
        f"{service.full_name}/{method.name}"
        for service in services
        for method in service.methods
        if is_public(service.full_name, method.name)
    }


@pytest.mark.parametrize("service", SERVICES)
def test_changed_settings_reach_the_pods(service: str) -> None:
    """Every ConfigMap that a pod reads is generated: changed, it has another name, and the pods are rolled out."""
    generated = {each["name"]: {one.partition("=")[0] for one in each["literals"]} for each in GENERATED["base"]}
    read = [
        entry["valueFrom"]["configMapKeyRef"]
        for entry in container(service)["env"]
        if "valueFrom" in entry and "configMapKeyRef" in entry["valueFrom"]
    ]
    assert read
    assert all(one["key"] in generated[one["name"]] for one in read)
    assert not [name for name, document in manifests() if document["kind"] == "ConfigMap"]
    for each in GENERATED["overlays/dev"]:
        assert each["behavior"] == "merge"
        assert {one.partition("=")[0] for one in each["literals"]} <= generated[each["name"]]


@pytest.mark.parametrize("service", SERVICES)
def test_a_start_is_waited_for_and_an_apply_changes_nothing(service: str) -> None:
    """Migrations and the erasure gate may take up to an hour; what the cluster fills in differs from no manifest."""
    spec = ALL[f"base/{service}.yaml:Deployment"]["spec"]
    probe = container(service)["startupProbe"]
    waited_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert waited_s >= 3600
    assert spec["progressDeadlineSeconds"] > waited_s
    assert spec["strategy"]["type"] == "RollingUpdate"


def test_the_image_is_built_from_what_is_there() -> None:
    """Every file that the Dockerfile copies exists for every service, and it runs as nobody in particular."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    sources = re.findall(r"^COPY (?!--from)(\S+)", text, re.MULTILINE)
    assert len(sources) >= 4
    for service in SERVICES:
        missing = [name for name in sources if not (ROOT / name.replace("${SERVICE}", service)).exists()]
        assert missing == []
    assert re.search(r"^USER 65532", text, re.MULTILINE)
