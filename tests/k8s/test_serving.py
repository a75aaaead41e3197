"""What the schemas cannot know of the service: flags, ports, names, labels and storage fit each other across files."""

from __future__ import annotations

import json
import os
import re

import pytest
import tyro

from serving.config import ServeConfig
from serving.repository.config import RepositoryConfig
from tests.k8s import manifests
from tests.k8s.validation import faults

GRACE_MARGIN_S = 5
NAMES = {"server": "mvfoul-server", "triton": "mvfoul-triton", "training": "mvfoul-training"}
"""The labels that monitoring, policies and Services select."""


@pytest.fixture(scope="module")
def service():
    return manifests.document("base/serving.yaml", "InferenceService")["spec"]


@pytest.fixture(scope="module")
def triton():
    (container,) = manifests.document("base/serving.yaml", "ServingRuntime")["spec"]["containers"]
    return container


@pytest.fixture(scope="module")
def server(service):
    (container,) = service["transformer"]["containers"]
    return container


def _config(container) -> ServeConfig:
    return tyro.cli(ServeConfig, args=container["args"])


def _ports(container) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def _overlay(name: str) -> dict[str, manifests.Document]:
    return {manifests.where(document): document for document in manifests.render(f"overlays/{name}")}


def _flag(container, name: str) -> str:
    (value,) = (argument.partition("=")[2] for argument in container["args"] if argument.startswith(f"--{name}="))
    return value


def test_the_servers_arguments_are_flags_of_the_command(server):
    assert server["command"] == ["python", "-m", "serving"]
    config = _config(server)
    assert {"http": config.http_port, "grpc": config.grpc_port} == _ports(server)
    assert config.host == "0.0.0.0"  # noqa: S104
    assert config.triton


def test_kserve_finds_the_arguments_that_it_would_add(server):
    """It looks for these spellings at the beginning of an argument (pkg/apis/serving/v1beta1/transformer_custom.go)."""
    for added in ("--model_name", "--predictor_host", "--http_port"):
        assert any(argument.startswith(added) for argument in server["args"]), added
    assert server["name"] == "kserve-container", "it would rename it"


@pytest.mark.parametrize("overlay", ["dev", "plain", "canary", "kserve-knative"])
def test_the_arguments_of_every_overlay_are_flags(overlay):
    containers = [
        container
        for document in manifests.render(f"overlays/{overlay}")
        for _, labels, pod in manifests.pods(document)
        if labels.get("app.kubernetes.io/name") == NAMES["server"]
        for container in pod["containers"]
    ]
    assert containers
    for container in containers:
        config = _config(container)
        assert (config.triton is None) == (overlay == "dev")
        assert (config.canary is not None) == (overlay == "canary")


def test_the_transformer_asks_where_triton_listens(server, triton):
    host, port = _config(server).triton.split(":")
    headless = manifests.document("base/serving.yaml", "Service", host)["spec"]
    assert headless["clusterIP"] == "None", "one address for all would send a connection's calls to one replica"
    (entry,) = headless["ports"]
    assert entry["port"] == entry["targetPort"] == int(port) == int(_flag(triton, "grpc-port")) == _ports(triton)["h2c"]
    assert entry["appProtocol"] == "kubernetes.io/h2c"
    assert headless["selector"] == {"app.kubernetes.io/name": NAMES["triton"]}
    for name, flag in (("http", "http-port"), ("metrics", "metrics-port")):
        assert _ports(triton)[name] == int(_flag(triton, flag))


def test_labels_are_those_that_services_policies_and_monitors_select(service, server):
    for part, name in (("predictor", NAMES["triton"]), ("transformer", NAMES["server"])):
        expected = {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "mvfoul"}
        assert service[part]["labels"] == expected
        budget = manifests.document("base/serving.yaml", "PodDisruptionBudget", name)["spec"]
        assert budget["selector"] == {"matchLabels": {"app.kubernetes.io/name": name}}
        for spread in service[part]["topologySpreadConstraints"]:
            assert spread["labelSelector"] == {"matchLabels": {"app.kubernetes.io/name": name}}
    entries = {
        e["name"]: e for e in manifests.document("base/serving.yaml", "Service", NAMES["server"])["spec"]["ports"]
    }
    assert {name: entry["port"] for name, entry in entries.items()} == _ports(server)


def test_every_monitor_finds_its_pods_and_their_port():
    pods = [
        (labels, {port["name"] for container in manifests.containers(pod) for port in container.get("ports", [])})
        for source in (manifests.documents("train-job.yaml"), manifests.render("overlays/plain"))
        for document in source
        for _, labels, pod in manifests.pods(document)
    ]
    for monitor in manifests.documents("monitoring/pod-monitor.yaml"):
        wanted = dict(monitor["spec"]["selector"]["matchLabels"])
        wanted.pop("batch.kubernetes.io/job-completion-index", None)  # Kubernetes adds it
        asked = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        matching = [ports for labels, ports in pods if wanted.items() <= labels.items()]
        assert matching, monitor["metadata"]["name"]
        assert all(len(asked & ports) == 1 for ports in matching), monitor["metadata"]["name"]


def test_probes_ask_what_answers(server, triton):
    assert server["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": _config(server).http_port}
    assert server["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": _config(server).http_port}
    model = f"/v2/models/{_config(server).triton_name}_encoder/ready"
    assert triton["readinessProbe"]["httpGet"] == {"path": model, "port": int(_flag(triton, "http-port"))}
    assert triton["startupProbe"]["httpGet"] == triton["readinessProbe"]["httpGet"]
    # The transformer may be up before Triton, and is not killed for its delay.
    assert server["startupProbe"]["httpGet"] == server["livenessProbe"]["httpGet"]


def test_decoders_are_as_many_as_the_cpus_asked_for(server):
    """Not as many as the node has: nothing tells a container that it got fewer."""
    assert _config(server).decode_workers == int(server["resources"]["requests"]["cpu"])


def test_transformers_drain_before_triton_ends(service, server, triton):
    """All pods of a node, or of a deleted service, are told at once."""
    before = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    drained = before + _config(server).grace_s
    assert service["transformer"]["terminationGracePeriodSeconds"] >= drained + GRACE_MARGIN_S
    waits = triton["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert waits >= drained + GRACE_MARGIN_S
    leaves = waits + int(_flag(triton, "exit-timeout-secs"))
    assert service["predictor"]["terminationGracePeriodSeconds"] >= leaves + GRACE_MARGIN_S


def test_an_artifact_goes_from_export_to_repository_to_both_servers(service, server, triton):
    export = manifests.document("export-job.yaml", "Job")["spec"]["template"]["spec"]["containers"][0]
    repository = manifests.document("repository-job.yaml", "Job")["spec"]["template"]["spec"]
    (writer,) = repository["containers"]
    assert writer["command"] == ["python", "-m", "serving.repository"]
    config = tyro.cli(RepositoryConfig, args=writer["args"])
    assert _flag(export, "output") == str(config.artifact) == str(_config(server).artifact)
    text = (manifests.K8S / "repository-job.yaml").read_text()
    (asked,) = re.findall(r"# - (--triton=\S+)", text)  # as its head says: with sed, for a Triton that runs
    assert tyro.cli(RepositoryConfig, args=[*writer["args"], asked]).triton == _config(server).triton
    claim, _, folder = service["predictor"]["model"]["storageUri"].removeprefix("pvc://").partition("/")
    (mount,) = (m for m in writer["volumeMounts"] if m["mountPath"] == "/artifacts")
    volume = next(v for v in repository["volumes"] if v["name"] == mount["name"])
    assert volume["persistentVolumeClaim"]["claimName"] == claim
    assert str(config.output) == f"{mount['mountPath']}/{folder}"
    assert _flag(triton, "model-repository") == "/mnt/models", "where KServe mounts the storage of a predictor"
    assert _flag(triton, "model-control-mode") == "poll"


def test_one_file_pins_tensorrt_for_export_and_serving(repo_root, service, triton):
    versions = manifests.K8S / "versions.env"
    pins = dict(line.split("=", 1) for line in versions.read_text().splitlines() if "=" in line and line[0] != "#")
    assert triton["image"] == pins["TRITON_IMAGE"]
    # And the repository: a release that finds plans of another one in it ends at its start.
    assert service["predictor"]["model"]["storageUri"].endswith(f"/repository-{pins['TRITON_RELEASE']}")
    dockerfile = (repo_root / "Dockerfile").read_text()
    assert f"ARG TENSORRT_BASE={pins['TENSORRT_BASE']}" in dockerfile
    for image in ("TRITON_IMAGE", "TENSORRT_BASE"):
        assert f":{pins['TRITON_RELEASE']}-py3" in pins[image]


def test_the_runtime_speaks_what_the_service_asks_of_it(service):
    runtime = manifests.document("base/serving.yaml", "ServingRuntime")
    model = service["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] == "v2"
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert model["modelFormat"] in runtime["spec"]["supportedModelFormats"]


def test_kserve_leaves_scaling_to_the_scaled_objects_and_both_agree_on_replicas(service):
    annotations = manifests.document("base/serving.yaml", "InferenceService")["metadata"]["annotations"]
    assert annotations["serving.kserve.io/autoscalerClass"] == "external"
    for part, name in (("predictor", NAMES["triton"]), ("transformer", NAMES["server"])):
        scaled = manifests.document("base/autoscaling.yaml", "ScaledObject", name)["spec"]
        assert scaled["scaleTargetRef"]["name"] == f"mvfoul-{part}", "KServe's name of the Deployment"
        bounds = (scaled["minReplicaCount"], scaled["maxReplicaCount"])
        assert bounds == (service[part]["minReplicas"], service[part]["maxReplicas"])
        assert scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]
        assert scaled["fallback"]["behavior"] == "currentReplicasIfHigher", "an outage must not shrink what is at work"


@pytest.mark.parametrize(("overlay", "namespace"), [("prod", "mvfoul"), ("canary", "mvfoul"), ("plain", None)])
def test_scaling_asks_for_the_load_of_its_own_namespace_alone(overlay, namespace):
    scaled = [document for document in manifests.render(f"overlays/{overlay}") if document["kind"] == "ScaledObject"]
    assert len(scaled) == 2
    for document in scaled:
        assert document["metadata"].get("namespace") == namespace
        for trigger in document["spec"]["triggers"]:
            assert '{namespace="mvfoul",job="mvfoul-' in trigger["metadata"]["query"], trigger["name"]


def test_an_overlay_in_another_namespace_takes_the_queries_along(tmp_path):
    """As whoever copies overlays/prod does it: by one line."""
    text = (manifests.K8S / "overlays" / "prod" / "kustomization.yaml").read_text()
    text = text.replace("namespace: mvfoul", "namespace: elsewhere").replace("  - namespace.yaml\n", "")
    for folder in ("base", "monitoring", "components/tokens"):
        text = text.replace(f"../../{folder}", os.path.relpath(manifests.K8S / folder, tmp_path.resolve()))
    (tmp_path / "kustomization.yaml").write_text(text)
    scaled = [document for document in manifests.render(str(tmp_path)) if document["kind"] == "ScaledObject"]
    queries = [trigger["metadata"]["query"] for document in scaled for trigger in document["spec"]["triggers"]]
    assert len(queries) == 4
    assert all('{namespace="elsewhere",job="mvfoul-' in query for query in queries), queries


def test_scaling_asks_for_metrics_that_the_monitors_scrape(repo_root):
    ours = (repo_root / "serving" / "metrics.py").read_text()
    jobs = {d["metadata"]["name"] for d in manifests.documents("monitoring/pod-monitor.yaml")}
    for document in manifests.documents("base/autoscaling.yaml"):
        for trigger in document["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            assert query.startswith("sum("), "KEDA divides the answer by the target of one replica"
            assert trigger["metricType"] == "AverageValue"
            optional = trigger["name"] == "busy-gpus"  # not every GPU has this number
            assert trigger["metadata"]["ignoreNullValues"] == str(optional).lower()
            assert set(re.findall(r'job="([^"]+)"', query)) <= jobs
            (metric,) = re.findall(r"(\w+)\{", query)
            assert metric.startswith(("nv_", "mvfoul_", "process_"))
            if metric.startswith("mvfoul_"):
                assert metric.removeprefix("mvfoul_") in ours, metric


@pytest.mark.parametrize(("part", "name"), [("predictor", "triton"), ("transformer", "server")])
def test_the_plain_deployments_have_the_pods_of_the_inference_service(service, triton, part, name):
    """But for what KServe adds to a predictor: runtime and storage."""
    plain = _overlay("plain")[f"Deployment/mvfoul-{part}"]["spec"]
    kserve = json.loads(json.dumps(service[part]))
    pod = plain["template"]["spec"]
    if part == "predictor":
        runtime = manifests.document("base/serving.yaml", "ServingRuntime")["spec"]
        kserve |= {field: runtime[field] for field in ("tolerations", "containers", "volumes")}
        models, *pod["volumes"] = pod["volumes"]
        mount, *pod["containers"][0]["volumeMounts"] = pod["containers"][0]["volumeMounts"]
        claim, _, folder = kserve["model"]["storageUri"].removeprefix("pvc://").partition("/")
        assert models["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}
        assert mount == {"name": models["name"], "mountPath": "/models", "subPath": folder, "readOnly": True}
        assert pod["containers"][0]["args"][0] == "--model-repository=/models"
        pod["containers"][0]["args"][0] = triton["args"][0]
    assert pod["containers"][0]["name"] == name
    pod["containers"][0]["name"] = "kserve-container"
    assert {field: kserve[field] for field in pod} == pod
    assert plain["template"]["metadata"]["labels"] == kserve["labels"]
    assert plain["strategy"] == kserve["deploymentStrategy"]
    assert "replicas" not in plain, "the autoscaler's"


def test_the_dev_overlay_needs_no_gpu_and_no_operator():
    objects = manifests.render("overlays/dev")
    assert all(
        "." not in document["apiVersion"]
        or ".k8s.io" in document["apiVersion"]
        or "/" not in document["apiVersion"]
        or document["apiVersion"].startswith(("apps/", "policy/"))
        for document in objects
    )
    assert "nvidia.com/gpu" not in json.dumps(objects)


def test_prod_takes_its_images_from_one_registry_and_enforces_the_standard():
    objects = _overlay("prod")
    labels = objects["Namespace/mvfoul"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    images = re.findall(r'"image": "([^"]+)"', json.dumps(list(objects.values())))
    assert sorted(image.split("/")[0] for image in images) == ["nvcr.io", "registry.example.com"]


def test_knative_gets_only_what_it_accepts():
    """As its field masks say (pkg/apis/serving/fieldmask.go of Knative Serving 1.19)."""
    objects = _overlay("kserve-knative")
    for _, _, pod in [p for document in objects.values() for p in manifests.pods(document)]:
        refused = {"terminationGracePeriodSeconds", "topologySpreadConstraints", "deploymentStrategy", "subdomain"}
        assert not refused & set(pod)
        for container in manifests.containers(pod):
            assert "lifecycle" not in container
            assert [port["name"] for port in container.get("ports", [])] in ([], ["h2c"])
    service = objects["InferenceService/mvfoul"]
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Knative"
    assert service["spec"]["predictor"]["scaleMetric"] == "concurrency"


def test_knatives_queue_proxy_is_told_where_our_metrics_are(server, triton):
    """As KServe's webhook reads it (metrics_aggregate_injector.go): it opens aggr-metric, 9088."""
    objects = _overlay("kserve-knative")
    service, runtime = objects["InferenceService/mvfoul"], objects["ServingRuntime/mvfoul-triton"]
    annotations = service["metadata"]["annotations"]
    assert annotations["serving.kserve.io/enable-metric-aggregation"] == "true"
    assert annotations["serving.kserve.io/enable-prometheus-scraping"] == "true"
    for found, port in (
        (service["spec"]["transformer"]["annotations"], _config(server).http_port),
        (runtime["spec"]["annotations"], int(_flag(triton, "metrics-port"))),
    ):
        assert (found["prometheus.kserve.io/port"], found["prometheus.kserve.io/path"]) == (str(port), "/metrics")
    for name in ("server", "triton"):
        monitor = manifests.document("monitoring/pod-monitor.yaml", "PodMonitor", NAMES[name])["spec"]
        assert "aggr-metric" in {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]}


def _with_components(overlay, components, tmp_path) -> list[manifests.Document]:
    """Return an overlay with components, as somebody's own overlay takes them."""
    (tmp_path / "kustomization.yaml").write_text(
        json.dumps(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": [os.path.relpath(manifests.K8S / "overlays" / overlay, tmp_path.resolve())],
                "components": [
                    os.path.relpath(manifests.K8S / "components" / name, tmp_path.resolve()) for name in components
                ],
            }
        )
    )
    return manifests.render(str(tmp_path))


@pytest.mark.parametrize("overlay", ["prod", "plain", "dev"])
def test_a_canary_is_tried_wherever_the_server_runs(overlay, tmp_path):
    (container,) = (
        pod["containers"][0]
        for document in _with_components(overlay, ["canary"], tmp_path)
        for _, labels, pod in manifests.pods(document)
        if labels.get("app.kubernetes.io/name") == NAMES["server"]
    )
    assert (str(_config(container).canary), _config(container).canary_share) == ("/artifacts/candidate", 0.05)


@pytest.mark.parametrize("overlay", ["prod", "plain", "dev"])
def test_tokens_and_certificates_come_from_secrets(overlay, tmp_path):
    objects = _with_components(overlay, ["tls"] if overlay == "prod" else ["tls", "tokens"], tmp_path)
    (pod,) = (
        pod
        for document in objects
        for _, labels, pod in manifests.pods(document)
        if labels.get("app.kubernetes.io/name") == NAMES["server"]
    )
    (container,) = pod["containers"]
    config = _config(container)
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    secrets = {volume["name"]: volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert secrets[mounts[str(config.token_file.parent)]] == "mvfoul-tokens"
    assert secrets[mounts[str(config.tls_cert.parent)]] == "mvfoul-tls"
    assert (config.tls_cert.name, config.tls_key.name) == ("tls.crt", "tls.key"), "as kubernetes.io/tls names them"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"
    assert not {manifests.where(document): faults(document) for document in objects if faults(document)}
