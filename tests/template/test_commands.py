"""The commands in the documents: they run as printed, and name parameters that exist."""

from __future__ import annotations

import re

import pytest

from tests.template.sources import ROOT, TEMPLATES, read_template

DOCUMENTS = {
    path.name: re.sub(r"(?ms)^```.*?^```", "", path.read_text())
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
}
PARAMETERS = {name for path in TEMPLATES for name in read_template(path)["Parameters"]}
OF_AWS_CLI = {"Key", "Name", "Value"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_parameter_that_a_document_sets_exists(document: str) -> None:
    named = set(re.findall(r"\b([A-Z][a-z]\w*)=", DOCUMENTS[document]))
    assert named <= PARAMETERS | OF_AWS_CLI


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_command_is_followed_by_a_comment(document: str) -> None:
    # zsh, the shell of macOS, passes it to the command.
    assert re.findall(r"(?m)^ {4}.*\S +# .*", DOCUMENTS[document]) == []
