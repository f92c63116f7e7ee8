"""The Kubernetes manifest, as far as it can be checked without a cluster."""

from typing import Any

import pytest
import typer
import yaml

from study.cli.app import app
from study.config.load import load_config
from study.launchers.base import CHOSEN, SLACK_S
from tests.support.runs import REPOSITORY


@pytest.fixture
def job() -> Any:
    return yaml.safe_load((REPOSITORY / "scripts/kubernetes.yaml").read_text())["spec"]


@pytest.fixture
def pod(job: Any) -> Any:
    return job["template"]["spec"]


def parsed(pod: Any) -> dict[str, Any]:
    """What the real command line makes of the container's command."""
    (container,) = pod["containers"]
    program, name, *arguments = [*container["command"], *container["args"]]
    assert program == "deepfake-study"
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return dict(command.make_context(name, arguments).params)


def test_the_command_line_takes_the_pods_command(
    pod: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    given = parsed(pod)
    config = load_config(given["config"], given["set_"])
    assert str(config.study.checkpoints_dir) == "/study/checkpoints"


def test_a_pod_has_longer_than_its_worker_needs_to_end(pod: Any) -> None:
    assert pod["terminationGracePeriodSeconds"] > parsed(pod)["grace"] + SLACK_S


def test_what_the_worker_writes_is_on_a_volume_that_can_be_written(pod: Any) -> None:
    (container,) = pod["containers"]
    mounts = {
        mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]
    }
    assert mounts == {"/data": True, "/study": False}
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_the_storage_url_comes_from_a_secret(pod: Any) -> None:
    (variable,) = pod["containers"][0]["env"]
    assert variable["name"] == "DEEPFAKE_STUDY_STORAGE"
    assert set(variable["valueFrom"]) == {"secretKeyRef"}


def test_an_end_that_the_worker_chose_for_good_is_not_tried_again(job: Any) -> None:
    disruption, failure = job["podFailurePolicy"]["rules"]
    assert disruption["action"] == "Ignore"
    assert failure["action"] == "FailIndex"
    codes = failure["onExitCodes"]
    assert (codes["operator"], codes["values"]) == ("In", [2, 3])
    assert set(codes["values"]) <= set(CHOSEN)
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["completionMode"] == "Indexed"
