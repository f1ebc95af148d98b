"""The stand-in for Lambda works as documented, tested with a toy function."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING

import pytest

from tests.artifact.runtime import InitError, Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOY = """
    import json, os, sys, time

    COLD = [True]

    def handler(event, context):
        cold, COLD[:] = COLD[:], []
        print(json.dumps({"message": "here", "asked": event}))
        match event:
            case {"raise": text}:
                raise ValueError(text)
            case {"sleep": seconds}:
                time.sleep(seconds)
            case {"exit": status}:
                os._exit(status)
            case "environment":
                return dict(os.environ)
            case "imports":
                import boto3
                return {"boto3": boto3.__file__, "path": sys.path}
        return {
            "cold": bool(cold),
            "event": event,
            "left": context.get_remaining_time_in_millis(),
            "arn": context.invoked_function_arn,
            "request_id": context.aws_request_id,
            "pid": os.getpid(),
        }
"""


def function(folder: Path, source: str) -> Path:
    (folder / "toy.py").write_text(textwrap.dedent(source))
    return folder


@pytest.fixture
def runtime(tmp_path: Path, library: Path) -> Iterator[Runtime]:
    with Runtime(
        function(tmp_path, TOY), "toy.handler", library, environment={"GIVEN": "=x y"}
    ) as runtime:
        yield runtime


def payload(runtime: Runtime, event: object, timeout_ms: int = 60_000) -> dict[str, object]:
    answer = runtime.invoke(event, timeout_ms)
    assert answer.error is None
    assert isinstance(answer.payload, dict)
    return answer.payload


def test_the_return_value_is_the_functions(runtime: Runtime) -> None:
    answer = runtime.invoke({"name": "Zoë"}, timeout_ms=3_000)
    assert answer.error is None
    assert isinstance(answer.payload, dict)
    assert answer.payload["event"] == {"name": "Zoë"}
    assert answer.payload["request_id"] == answer.request_id
    assert answer.payload["pid"] == runtime.pid
    assert 2_000 < answer.payload["left"] <= 3_000
    assert answer.payload["arn"] == (
        "arn:aws:lambda:eu-west-1:123456789012:function:session-reaper"
    )


def test_the_process_is_kept_between_invocations(runtime: Runtime) -> None:
    first, second = payload(runtime, 1), payload(runtime, 2)
    assert (first["cold"], second["cold"]) == (True, False)
    assert first["pid"] == second["pid"]


def test_each_invocation_has_its_own_log(runtime: Runtime) -> None:
    for event in (1, 2):
        assert runtime.invoke(event).records == [{"message": "here", "asked": event}]


def test_an_error_is_passed_on_and_the_process_goes_on(runtime: Runtime) -> None:
    answer = runtime.invoke({"raise": "no"})
    assert answer.payload is None
    assert answer.error is not None
    assert answer.error["errorType"] == "ValueError"
    assert answer.error["errorMessage"] == "no"
    assert "toy.py" in str(answer.error["stackTrace"])
    assert payload(runtime, 1)["cold"] is False


def test_an_invocation_that_overruns_is_killed_and_a_new_process_started(runtime: Runtime) -> None:
    answer = runtime.invoke({"sleep": 60}, timeout_ms=300)
    assert answer.error == {
        "errorType": "Sandbox.Timedout",
        "errorMessage": f"RequestId: {answer.request_id} Error: Task timed out after 0.30 seconds",
    }
    assert answer.seconds < 20
    assert runtime.pid is None
    assert payload(runtime, 1)["cold"] is True


def test_a_process_that_ends_is_an_error(runtime: Runtime) -> None:
    answer = runtime.invoke({"exit": 3})
    assert answer.error is not None
    assert answer.error["errorType"] == "Runtime.ExitError"
    assert str(answer.error["errorMessage"]).endswith("Runtime exited with exit status: 3")
    assert payload(runtime, 1)["cold"] is True


@pytest.mark.parametrize(
    ("source", "kind", "text"),
    [
        ("import nothing_of_that_name", "Runtime.ImportModuleError", "nothing_of_that_name"),
        ("raise KeyError('TOPIC_ARN')", "KeyError", "TOPIC_ARN"),
        ("", "Runtime.HandlerNotFound", "handler"),
    ],
)
def test_an_init_error_is_raised(
    tmp_path: Path, library: Path, source: str, kind: str, text: str
) -> None:
    with (
        Runtime(function(tmp_path, source), "toy.handler", library) as runtime,
        pytest.raises(InitError, match=text) as raised,
    ):
        runtime.invoke({})
    assert raised.value.error is not None
    assert raised.value.error["errorType"] == kind


def test_a_process_that_ends_before_it_is_ready_is_an_error(tmp_path: Path, library: Path) -> None:
    with (
        Runtime(function(tmp_path, "import os; os._exit(7)"), "toy.handler", library) as runtime,
        pytest.raises(InitError, match="ended before it asked for work") as raised,
    ):
        runtime.invoke({})
    assert raised.value.error is None


def test_the_environment_of_the_tests_does_not_reach_the_function(
    runtime: Runtime, tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("AWS_PROFILE", "somebody")
    environment = payload(runtime, "environment")
    assert environment["GIVEN"] == "=x y"
    assert environment["LAMBDA_TASK_ROOT"] == str(tmp_path)
    assert not {"PYTHONPATH", "AWS_PROFILE", "HOME", "VIRTUAL_ENV"} & environment.keys()
    imports = payload(runtime, "imports")
    assert str(imports["boto3"]).startswith(f"{library}{os.sep}")
    path = imports["path"]
    assert isinstance(path, list)
    assert path[:2] == [str(tmp_path), str(library)]
    assert not [entry for entry in path[2:] if "site-packages" in entry]
    assert not (library / "pytest").exists()


def test_the_artifact_is_not_modified(runtime: Runtime, tmp_path: Path) -> None:
    payload(runtime, "imports")
    assert [path.name for path in tmp_path.iterdir()] == ["toy.py"]


@pytest.mark.parametrize(
    "source",
    [
        "import pathlib; pathlib.Path(__file__).with_name('x').write_text('')",
        "import pathlib; pathlib.Path(__file__).with_name('x').mkdir()",
        "import other",  # its bytecode would be written
    ],
)
def test_a_write_to_a_read_only_artifact_ends_the_process(
    tmp_path: Path, library: Path, source: str
) -> None:
    (tmp_path / "other.py").touch()
    with (
        Runtime(function(tmp_path, source), "toy.handler", library, read_only=True) as runtime,
        pytest.raises(InitError, match="a write to the task root"),
    ):
        runtime.invoke({})


def test_the_process_ends_with_the_block(tmp_path: Path, library: Path) -> None:
    with Runtime(function(tmp_path, TOY), "toy.handler", library) as runtime:
        pid = payload(runtime, 1)["pid"]
    assert runtime.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(int(str(pid)), 0)
