"""The Kubernetes manifest: valid by the published schemas, its parts fit each other, and its command is understood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ff_core.launch.arguments import parse

yaml = pytest.importorskip("yaml")
MANIFEST = Path(__file__).resolve().parents[2] / "configs" / "kubernetes" / "train.yaml"


@pytest.fixture
def documents() -> dict[str, Any]:
    """By kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_it_is_valid_by_the_published_schemas(documents: dict[str, Any], version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install '.[test]': kubernetes-validate")
    for document in documents.values():
        validate.validate(document, version, strict=True)
    wrong = {**documents["Job"], "spec": {**documents["Job"]["spec"], "completionModes": "Indexed"}}
    with pytest.raises(validate.ValidationError):
        validate.validate(wrong, version, strict=True)


def test_its_parts_fit_each_other(
    documents: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, service, secret = documents["Job"], documents["Service"], documents["Secret"]
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    program, command, *words = container["command"]
    assert (program, command) == ("fftrain", "run")
    plan = parse(words)
    nodes = plan.machines
    assert nodes.hosts is None and nodes.rank is None, "the same command in each pod"
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == nodes.least + 1
    assert nodes.address == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] and service["spec"]["ports"][0]["port"] == nodes.port
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels
    (term,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"] == labels
    assert plan.nproc_per_node == container["resources"]["limits"]["nvidia.com/gpu"]
    assert plan.shutdown_timeout_s < pod["terminationGracePeriodSeconds"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert sorted(mounts) == sorted(volume["name"] for volume in pod["volumes"])
    assert plan.ff_config == f"{mounts['secret']}/{next(iter(secret['stringData']))}"
