"""The names in the templates that refer to the code: a rename could break them silently."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import tomllib
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from session_reaper import observability
from session_reaper.deadline import Deadline
from session_reaper.report.model import Outcome

from tests.builders import a_decision, a_report, a_result, a_target_report
from tests.template.sources import ROOT, TEMPLATES, compose_template, read_template

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = ROOT / "functions" / "session_reaper"


RESOURCES = [
    (name, resource)
    for path in TEMPLATES
    for name, resource in read_template(path)["Resources"].items()
]
STACK = read_template("template.yaml")["Resources"]
MONITORING = read_template("infra/monitoring.yaml")["Resources"]


def _properties(kind: str) -> dict[str, dict[str, Any]]:
    return {name: one["Properties"] for name, one in RESOURCES if one["Type"] == kind}


FUNCTIONS = _properties("AWS::Serverless::Function")
ALARMS = _properties("AWS::CloudWatch::Alarm")
# With Sub's escapes undone: ${!PROP('…')} is text for CloudWatch.
_BODY = MONITORING["Dashboard"]["Properties"]["DashboardBody"]["Sub"].replace("${!", "${")
WIDGETS = json.loads(_BODY)["widgets"]


def _variables(function: str) -> dict[str, Any]:
    variables: dict[str, Any] = FUNCTIONS[function]["Environment"]["Variables"]
    return variables


# -- size ------------------------------------------------------------------------------------------


def test_the_template_stays_small_enough_to_read() -> None:
    template = read_template("template.yaml")
    assert len(template["Parameters"]) <= 18
    assert len(template["Conditions"]) <= 10
    assert len((ROOT / "template.yaml").read_text().splitlines()) <= 750
    assert "AWS::CloudFormation::Stack" not in {one["Type"] for one in STACK.values()}


def _policies(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value in ("PolicyDocument", "KeyPolicy", "AssumeRolePolicyDocument"):
                yield value
            else:
                yield from _policies(value)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _policies(each)


@pytest.mark.parametrize("path", TEMPLATES)
def test_every_policy_fits_one_screen(path: str) -> None:
    for policy in _policies(compose_template(path)):
        assert policy.end_mark.line - policy.start_mark.line <= 50, policy.start_mark


# -- functions -------------------------------------------------------------------------------------


def _constants(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / module).read_text())
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {node.value for node in nodes if isinstance(node.value, str)}


def test_the_template_sets_the_variables_that_are_read_and_no_others() -> None:
    named = {text for text in _constants("settings.py") if re.fullmatch(r"[A-Z][A-Z_]+", text)}
    read = {name for name in named if not name.startswith("AWS_")}  # Lambda sets those
    given = {name for function in FUNCTIONS for name in _variables(function)}
    # Powertools reads the others.
    assert read == {name for name in given if not name.startswith("POWERTOOLS_")}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_handler_of_the_template_exists(function: str) -> None:
    module, _, name = FUNCTIONS[function]["Handler"].rpartition(".")
    assert callable(getattr(import_module(module), name))


def test_every_function_has_a_make_target_that_builds_it() -> None:
    makefile = (ROOT / "infra" / "artifact" / "Makefile").read_text()
    assert set(re.findall(r"(?m)^build-(\w+):", makefile)) == set(FUNCTIONS)
    for name, resource in RESOURCES:
        if name in FUNCTIONS:
            assert resource["Metadata"]["BuildMethod"] == "makefile"


def test_the_table_has_the_key_attributes_that_are_written() -> None:
    table = STACK["Memory"]["Properties"]
    keys = {key["AttributeName"] for key in table["KeySchema"]}
    assert {*keys, table["TimeToLiveSpecification"]["AttributeName"]} <= _constants(
        "aws/dynamodb.py"
    )


def test_the_versions_of_the_functions_are_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for properties in FUNCTIONS.values():
        assert properties["Tags"]["version"] == project["version"]


def test_the_stacks_beside_it_take_its_outputs_as_parameters_of_the_same_name() -> None:
    outputs = read_template("template.yaml")["Outputs"]
    for path in TEMPLATES[1:]:
        for name, parameter in read_template(path)["Parameters"].items():
            text = " ".join(parameter["Description"].split())
            assert (f"Output {name} of session-reaper's stack" in text) == (name in outputs), name


# -- metrics ---------------------------------------------------------------------------------------

Metric = tuple[str, tuple[str, ...]]  # its name, the names of its dimensions


def _read_published(capsys: pytest.CaptureFixture[str]) -> set[Metric]:
    """All metrics of a run with every outcome."""
    results = [a_result(outcome) for outcome in Outcome]
    target = a_target_report(*results, oldest_idle_in_transaction=901.2)
    observability.emit_target_metrics(target)
    observability.emit_run_metrics(a_report(target), 1.5)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    published: set[Metric] = set()
    for line in lines:
        for directive in line["_aws"]["CloudWatchMetrics"]:
            assert directive["Namespace"] == "SessionReaper"
            for dimensions in directive["Dimensions"]:
                names = tuple(sorted(dimensions))
                published |= {(metric["Name"], names) for metric in directive["Metrics"]}
    return published


def _list_watched() -> Iterator[Metric]:
    for alarm in ALARMS.values():
        if alarm["Namespace"] == "SessionReaper":
            dimensions = tuple(sorted(each["Name"] for each in alarm["Dimensions"]))
            yield alarm["MetricName"], dimensions
    for widget in WIDGETS:
        for metric in widget["properties"].get("metrics", []):
            if isinstance(metric[0], dict):
                found = re.fullmatch(
                    r"""SEARCH\('\{SessionReaper,([\w,]+)\} service="\$\{Service\}" """
                    r"""MetricName="(\w+)"', '\w+', 300\)""",
                    metric[0]["expression"],
                )
                assert found, metric
                yield found[2], tuple(sorted(found[1].split(",")))
            else:
                namespace, name, *pairs = (part for part in metric if isinstance(part, str))
                assert namespace == "SessionReaper"
                yield name, tuple(sorted(pairs[::2]))


def test_alarms_and_dashboard_use_published_metrics_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert set(_list_watched()) <= _read_published(capsys)


@pytest.mark.parametrize("alarm", ALARMS)
def test_every_alarm_explains_itself_and_notifies_the_topic(alarm: str) -> None:
    properties = ALARMS[alarm]
    assert 100 < len(properties["AlarmDescription"]["Sub"]) < 900  # CloudWatch keeps 1024
    [topic] = properties["AlarmActions"]
    assert topic["Ref"] in ("Topic", "AlarmTopicArn")
    assert properties["AlarmName"]["Sub"].endswith(f"}}-{alarm}")


@pytest.mark.parametrize("alarm", [name for name in ALARMS if name in STACK | MONITORING])
def test_every_alarm_of_the_reaper_is_on_its_dashboard(alarm: str) -> None:
    shown = next(widget for widget in WIDGETS if widget["type"] == "alarm")
    text = " ".join(shown["properties"]["alarms"])
    assert f"${{{alarm}.Arn}}" in text or f":${{Service}}-{alarm}" in text


# -- queries in the log ----------------------------------------------------------------------------

QUERIES = {
    name: resource["Properties"]["QueryString"]
    for name, resource in MONITORING.items()
    if resource["Type"] == "AWS::Logs::QueryDefinition"
} | {
    widget["properties"]["title"]: widget["properties"]["query"]
    for widget in WIDGETS
    if widget["type"] == "log"
}
_COMMANDS = {"source", "fields", "filter", "stats", "sort", "limit"}
_WORDS = {"and", "in", "by", "as", "asc", "desc", "count", "count_distinct", "max"}


def _flat(document: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of a line's fields, as Logs Insights writes them."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key


@pytest.fixture
def logged() -> dict[str, set[str]]:
    """The fields of our log lines, by their message."""
    stream = io.StringIO()
    handler = observability.logger.registered_handler
    assert isinstance(handler, logging.StreamHandler)
    stdout = handler.setStream(stream)
    target = a_target_report(*(a_result(outcome, pid=n) for n, outcome in enumerate(Outcome, 1)))
    with observability.logger.append_context_keys(run_id="4f6c", mode="enforce"):
        observability.log_decision(target, a_decision())
        log = observability.OutcomeLog()
        log.complete(target, Deadline(5))
        observability.log_remaining([log], Deadline(5))
    handler.setStream(stdout)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == 1 + len(Outcome)
    return {line["message"]: set(_flat(line)) for line in lines}


@pytest.mark.parametrize("query", QUERIES)
def test_every_log_query_uses_logged_fields_only(query: str, logged: dict[str, set[str]]) -> None:
    text = re.sub(r"#.*", "", QUERIES[query])
    strings = re.findall(r'"([^"]*)"', text)
    bare = re.sub(r"""'[^']*'|"[^"]*\"""", "", text)
    for command in bare.split("|"):
        assert command.split()[0].lower() in _COMMANDS, command
    named = re.findall(r"as (\w+)", bare)
    names = set(re.findall(r"@?[A-Za-z_][\w.]*", bare)) - _WORDS - {*_COMMANDS, "SOURCE", *named}
    messages = [string for string in strings if string in logged] or list(logged)
    known = set.union(*(logged[message] for message in messages))
    assert names
    assert names <= {*known, "@timestamp"}
    assert set(strings) <= {*logged, *Outcome}
