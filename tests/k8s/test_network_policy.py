"""Who may talk to whom, worked out from the policies as a network plugin does: all that is needed, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

import pytest

from tests.k8s import manifests

OURS = {"app.kubernetes.io/part-of": "mvfoul"}
PODS = {
    name: {**OURS, "app.kubernetes.io/name": f"mvfoul-{name}"}
    for name in ("server", "triton", "training", "data", "export", "repository")
}
OTHERS = {
    "client": ({"mvfoul.example.com/client": "true"}, {}),
    "gateway": ({}, {"mvfoul.example.com/client": "true"}),
    "prometheus": ({}, {"kubernetes.io/metadata.name": "monitoring"}),
    "dns": ({}, {"kubernetes.io/metadata.name": "kube-system"}),
    "activator": ({}, {"kubernetes.io/metadata.name": "knative-serving"}),
    "kourier": ({}, {"kubernetes.io/metadata.name": "kourier-system"}),
    "stranger": ({}, {}),
    "openshift dns": ({}, {"kubernetes.io/metadata.name": "openshift-dns"}),
    "node's dns": ("169.254.20.10", None),
    "internet": ("203.0.113.7", None),
}
OUR_PORTS = (8080, 8081, 8001, 8000, 8002, 9400, 29400)
QUEUE_PROXY_PORTS = (8012, 8013, 8022, 9090, 9088)
PORTS = (*OUR_PORTS, *QUEUE_PROXY_PORTS, 443, 53, 5353)
WANTED = {
    *(("client", "server", 8080), ("client", "server", 8081), ("gateway", "server", 8080), ("gateway", "server", 8081)),
    *(("prometheus", "server", 8080), ("prometheus", "triton", 8002), ("prometheus", "training", 9400)),
    *(("server", "triton", 8001), ("repository", "triton", 8001)),
    *(("training", "training", port) for port in PORTS),
    *((name, dns, 53) for name in ("server", "training", "data", "repository") for dns in ("dns", "node's dns")),
    *((name, "openshift dns", 5353) for name in ("server", "training", "data", "repository")),
    # Whatever has this port: Kinetics weights and the data set come from outside.
    *((name, other, 443) for name in ("training", "data") for other in (*OTHERS,)),
}
KNATIVE = {
    # Requests, and Knative's own metrics for scaling; 9088 is for Prometheus alone.
    *(
        (source, target, port)
        for source in ("activator", "kourier")
        for target in ("server", "triton")
        for port in QUEUE_PROXY_PORTS
        if port != 9088
    ),
    *(("prometheus", target, 9088) for target in ("server", "triton")),
    # The transformer asks Triton through Knative, on whatever port its gateway has.
    *((source, other, port) for source in ("server", "triton") for other in ("activator", "kourier") for port in PORTS),
}
DEV = {triple for triple in WANTED if "triton" not in triple}
"""The embedded server asks nobody; names may be looked up, as in the base."""
BY_OVERLAY = {
    "base": WANTED,
    "overlays/prod": WANTED,
    "overlays/plain": WANTED,
    "overlays/kserve-knative": WANTED | KNATIVE,
    "overlays/dev": DEV,
}


def _selects(selector: Mapping[str, object] | None, labels: Mapping[str, str]) -> bool:
    selector = selector or {}
    wanted = selector.get("matchLabels", {})
    if not wanted.items() <= labels.items():
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def _peer(peer: Mapping[str, object], pod: Mapping[str, str] | str, namespace: Mapping[str, str] | None) -> bool:
    """`pod` is an address where it is none; `namespace` is None for a pod of the same one."""
    assert set(peer) <= {"podSelector", "namespaceSelector"} or set(peer) == {"ipBlock"}
    if "ipBlock" in peer or isinstance(pod, str):
        cidr = peer.get("ipBlock", {"cidr": "0.0.0.0/32"})["cidr"]
        return isinstance(pod, str) and ip_address(pod) in ip_network(cidr)
    if "namespaceSelector" in peer:
        return (
            namespace is not None
            and _selects(peer["namespaceSelector"], namespace)
            and (_selects(peer.get("podSelector"), pod))
        )
    return namespace in (None, {}) and _selects(peer["podSelector"], pod)


def _open(policies, mine, direction: str, other, port: int) -> bool:
    """Whether the policies that select `mine` let it receive from, or send to, `other`."""
    selecting = [p["spec"] for p in policies if _selects(p["spec"]["podSelector"], mine)]
    selecting = [spec for spec in selecting if direction in spec["policyTypes"]]
    if not selecting:
        return True
    key, side = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    for rule in [rule for spec in selecting for rule in spec.get(key, [])]:
        ports = {entry["port"] for entry in rule.get("ports", [])}
        if (not ports or port in ports) and (side not in rule or any(_peer(p, *other) for p in rule[side])):
            return True
    return False


def _may(policies, source: str, target: str, port: int) -> bool:
    if source in PODS and not _open(
        policies, PODS[source], "Egress", OTHERS.get(target, (PODS.get(target), None)), port
    ):
        return False
    return target not in PODS or _open(
        policies, PODS[target], "Ingress", OTHERS.get(source, (PODS.get(source), None)), port
    )


def _policies(overlay: str) -> list[manifests.Document]:
    return [document for document in manifests.render(overlay) if document["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize("overlay", BY_OVERLAY)
def test_only_what_must_talk_may_talk(overlay):
    policies, ends = _policies(overlay), [*PODS, *OTHERS]
    allowed = {
        (source, target, port)
        for source in ends
        for target in ends
        for port in PORTS
        if (source in PODS or target in PODS) and _may(policies, source, target, port)
    }
    assert sorted(allowed - BY_OVERLAY[overlay]) == [], "may talk and need not"
    assert sorted(BY_OVERLAY[overlay] - allowed) == [], "must talk and may not"


def test_every_overlay_with_policies_is_worked_out():
    found = {overlay for overlay in manifests.OVERLAYS if _policies(overlay)}
    assert found - {"overlays/canary"} == set(BY_OVERLAY)
    assert _policies("overlays/canary") == _policies("overlays/prod")


@pytest.mark.parametrize("overlay", BY_OVERLAY)
def test_every_pod_of_the_platform_is_closed_first(overlay):
    (deny,) = (p["spec"] for p in _policies(overlay) if p["metadata"]["name"] == "mvfoul-default-deny")
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(deny)
    for name in manifests.FILES:
        for document in manifests.documents(name):
            for place, labels, _ in manifests.pods(document):
                if document["kind"] != "ServingRuntime":  # its pods have the labels of the InferenceService
                    assert _selects(deny["podSelector"], labels), place


def test_the_ports_are_those_of_the_manifests():
    text = "".join((manifests.K8S / name).read_text() for name in ("base/serving.yaml", "train-job.yaml"))
    for port in OUR_PORTS:
        assert f"containerPort: {port}" in text, port
