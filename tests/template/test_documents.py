"""The documentation: its length, and the targets of its links."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.template.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path

GUIDES = (
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "decisions.md"),
)
DOCUMENTS = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
MOST_WORDS = 10_000


def _without_code(document: Path) -> str:
    return re.sub(r"```.*?```", "", document.read_text("utf-8"), flags=re.DOTALL)


def _words(document: Path) -> int:
    lines = _without_code(document).splitlines()
    return sum(len(line.split()) for line in lines if not line.lstrip().startswith("|"))


def _anchors(document: Path) -> set[str]:
    """Return the fragments of a document, as GitHub names its headings."""
    text = _without_code(document)
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    named = {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}
    return named | set(re.findall(r'<a id="([^"]+)"', text))


def test_readme_and_guides_stay_within_their_budget_of_words() -> None:
    counted = {document.name: _words(document) for document in GUIDES}
    assert sum(counted.values()) <= MOST_WORDS, counted


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_of_a_document_leads_to_a_file_and_a_heading_that_exist(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", _without_code(document))
    broken = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (
            anchor and target.suffix == ".md" and anchor not in _anchors(target)
        ):
            broken.append(link)
    assert broken == []


def test_every_guide_is_linked_from_another_document() -> None:
    texts = {document: document.read_text("utf-8") for document in DOCUMENTS}
    for guide in GUIDES[1:]:
        others = (text for document, text in texts.items() if document != guide)
        assert any(re.search(rf"\((docs/)?{guide.name}[#)]", text) for text in others), guide.name
