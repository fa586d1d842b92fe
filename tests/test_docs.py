"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from aigw_middleware.denial import STATUSES
from aigw_middleware.keys import TOKEN_PATTERN
from aigw_middleware.providers import CATALOGUE

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

_spec = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
assert _spec is not None
assert _spec.loader is not None
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)


@pytest.mark.parametrize("name", build.PAGES)
def test_a_page_is_drawn_from_its_docstring(name: str) -> None:
    """A reference page is what `docs/build.py` writes from the code."""
    assert (DOCS / f"{build.PAGES[name]}.md").read_text() == build.page(name)


def test_every_public_name_has_a_page() -> None:
    """Whatever can be imported from the top is documented."""
    import aigw_middleware

    assert set(aigw_middleware.__all__) - {"StoreUnavailable"} == set(build.PAGES)


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda p: p.name
)
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link of a page is a file or folder that is there."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_table_of_refusals_is_the_codes() -> None:
    """Every code is in the table with its status, and no other one."""
    text = (DOCS / "refusals.md").read_text()
    told = {}
    for codes, statuses in re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \| ([\d, ]+) \|", text, re.MULTILINE
    ):
        told |= dict(zip(re.findall(r"\w+", codes), re.findall(r"\d+", statuses), strict=True))
    assert {code: int(status) for code, status in told.items()} == STATUSES


def test_the_scanners_pattern_is_published() -> None:
    """SECURITY.md shows the pattern of tokens as it is."""
    assert TOKEN_PATTERN in (ROOT / "SECURITY.md").read_text()


def test_the_settings_name_every_variable() -> None:
    """Each variable that the gateway reads is in the table of settings."""
    text = (DOCS / "run-a-gateway.md").read_text()
    for entry in CATALOGUE.values():
        for name in (*entry.key_variables, entry.base_variable):
            assert name in text


def test_every_flag_of_serve_is_documented() -> None:
    """`aigw serve` has no option that the page does not tell of."""
    from aigw_middleware.cli.serve import serve

    text = (DOCS / "run-a-gateway.md").read_text()
    for parameter in serve.params:
        name = parameter.opts[0]
        assert (name if name.startswith("-") else name.upper()) in text


def test_the_picture_of_the_modules_is_true() -> None:
    """Every module and room that the README draws is there, and none is missing."""
    text = (ROOT / "README.md").read_text()
    picture = text[text.index("    aigw_middleware/") : text.index("## Where it stands")]
    drawn = set(re.findall(r"\b_?[a-z_0-9]+(?:\.py|/(?=\s))", picture)) | {"__init__.py"}
    package = ROOT / "aigw_middleware"
    there = {p.name for p in package.glob("*.py")} | {
        f"{p.name}/" for p in package.iterdir() if p.is_dir() and p.name != "__pycache__"
    }
    assert there - drawn - {"__main__.py"} == set()
    assert drawn - there - {"__init__.py", "aigw_middleware/"} == set()
