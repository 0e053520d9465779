"""What is deployed fits Kubernetes' schemas, the services' settings and the secrets they read."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cli.stack.programs import SECRETS
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


def container(service: str) -> dict[str, Any]:
    (only,) = ALL[f"base/{service}.yaml:Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


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
    assert all(entry["name"].startswith(prefix) for entry in container(service)["env"])


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_gets_the_settings_it_has(service: str) -> None:
    """Every variable is a setting of the service, and every setting without a default is given."""
    module = vars(importlib.import_module(f"services.{service}.main"))
    (settings,) = (
        each
        for each in module.values()
        if isinstance(each, type) and issubclass(each, ServiceSettings) and each is not ServiceSettings
    )
    given = {entry["name"].removeprefix(f"COMITY_{service.upper()}_").lower() for entry in container(service)["env"]}
    assert given <= settings.model_fields.keys()
    assert {name for name, field in settings.model_fields.items() if field.is_required()} <= given


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


@pytest.mark.parametrize("service", SERVICES)
def test_only_what_backends_call_is_reachable_from_outside(service: str) -> None:
    """Each service is under one policy; who is not part of Comity reaches decision and feedback, and public ports."""
    pod = ALL[f"base/{service}.yaml:Deployment"]["spec"]["template"]["metadata"]["labels"]
    (policy,) = (each["spec"] for each in POLICIES if _selects(each, pod["app.kubernetes.io/name"]))
    callers = [rule.get("from") for rule in policy["ingress"] if {"port": "grpc"} in rule["ports"]]
    ours = [{"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": pod["app.kubernetes.io/part-of"]}}}]
    assert callers == ([None] if service in ("decision", "feedback") else [ours])
    public = [rule.get("from") for rule in policy["ingress"] if {"port": "public"} in rule["ports"]]
    assert public == ([None] if service in ("identity", "consent") else [])
    ports = {port["name"] for port in container(service)["ports"]}
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == ports


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_serves_its_public_methods_on_the_public_port(service: str) -> None:
    """Where a service that is not open to backends has methods for them, the port is the one that it listens on."""
    settings = {entry["name"]: entry.get("value") for entry in container(service)["env"]}
    listens = settings.get(f"COMITY_{service.upper()}_PUBLIC_LISTEN")
    (number,) = [port["containerPort"] for port in container(service)["ports"] if port["name"] == "public"] or [None]
    assert listens == (None if number is None else f"[::]:{number}")
    exposed = {port["name"]: port["port"] for port in ALL[f"base/{service}.yaml:Service"]["spec"]["ports"]}
    assert exposed.get("public") == number


def test_backends_may_call_these_methods_and_no_others() -> None:
    """A method that is made public is looked at by whoever changes this list: nobody asks callers who they are."""
    modules = [importlib.import_module(f"comity.{service}.v1.{service}_service_pb2") for service in SERVICES]
    modules.append(importlib.import_module("comity.consent.v1.privacy_service_pb2"))
    public = {
        f"{one.name}/{method.name}"
        for module in modules
        for one in module.DESCRIPTOR.services_by_name.values()
        for method in one.methods
        if is_public(one.full_name, method.name)
    }
    assert public == {"IdentityService/Link"} | {f"ConsentService/{name}" for name in ("Record", "Revoke", "History")}


def _selects(policy: dict[str, Any], name: str) -> bool:
    (expression,) = policy["spec"]["podSelector"]["matchExpressions"]
    return name in expression["values"]


def test_the_image_is_built_from_what_is_there() -> None:
    """Every file that the Dockerfile copies exists for every service, and it runs as nobody in particular."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    sources = re.findall(r"^COPY (?!--from)(\S+)", text, re.MULTILINE)
    assert len(sources) >= 4
    for service in SERVICES:
        missing = [name for name in sources if not (ROOT / name.replace("${SERVICE}", service)).exists()]
        assert missing == []
    assert re.search(r"^USER 65532", text, re.MULTILINE)
