"""Every example of ivy's documentation of adam_update and optimizer_update runs and prints its numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import optgen
from optgen.arrays.printing import set_array_significant_figures

_SPEC = Path(__file__).parent / "spec"

_HEADING = re.compile(r"^(?:- )?((?:ivy|Array|Container)\.\w+)\(.*\)\[source\]#", re.M)
_NUMBER = r"-?\d+\.\d*(?:e[+-]\d+)?"
_TOKEN = re.compile(rf"ivy\.array\(|[ab]:|[\[\]]|{_NUMBER}")
_OUTPUT_LINE = re.compile(rf"(?:\s|[,(){{}}]|{_TOKEN.pattern})*")

#: Significant figures that the page was printed with, and how many examples each of its sections has.
_PAGES = {
    "adam_update": (10, {"ivy.adam_update": 4, "Array.adam_update": 1, "Container.adam_update": 2}),
    "optimizer_update": (
        3,
        {"ivy.optimizer_update": 7, "Array.optimizer_update": 1, "Container.optimizer_update": 3},
    ),
}


@dataclass
class Example:
    """Statements up to a print, and what that prints."""

    output: str = ""
    statements: list[str] = field(default_factory=list)


def _sections(page: str) -> Iterator[tuple[str, list[Example]]]:
    text = (_SPEC / f"{page}.txt").read_text()
    headings = list(_HEADING.finditer(text))
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        yield heading[1], list(_examples(text[heading.end() : following.start() if following else None]))


def _examples(text: str) -> Iterator[Example]:
    example = Example()
    for piece in text.split(">>> ")[1:]:
        printed = re.match(r"print\(\w+\)", piece)
        if not printed:
            # One of the pages has lost its line breaks, but not its prompts.
            example.statements.append(re.sub(r"\s*\.\.\. +", " ", piece).strip())
            continue
        example.statements.append(printed[0])
        lines = []
        for line in piece[printed.end() :].splitlines():
            if not _OUTPUT_LINE.fullmatch(line):
                break
            lines.append(line)
        example.output = "\n".join(lines)
        yield example
        example = Example()
    assert not example.statements


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)


_CASES = [(page, name, examples) for page in _PAGES for name, examples in _sections(page)]


@pytest.fixture
def significant_figures() -> Iterator[None]:
    yield
    set_array_significant_figures(10)


@pytest.mark.usefixtures("significant_figures")
@pytest.mark.parametrize(("page", "name", "examples"), _CASES, ids=[name for _, name, _ in _CASES])
def test_examples_print_their_numbers(page: str, name: str, examples: list[Example]) -> None:
    figures, sections = _PAGES[page]
    assert len(examples) == sections[name]
    optgen.set_array_significant_figures(figures)
    session: dict[str, object] = {"ivy": optgen}  # goes through the section: its examples use one another's names
    for number, example in enumerate(examples):
        printed = io.StringIO()
        with redirect_stdout(printed):
            for statement in example.statements:
                exec(statement, session)
        expected = _tokens(example.output)
        assert any(re.fullmatch(_NUMBER, token) for token in expected)
        assert _tokens(printed.getvalue()) == expected, f"example {number} of {name}:\n{printed.getvalue()}"


def test_every_section_is_there() -> None:
    assert [name for _, name, _ in _CASES] == [name for _, sections in _PAGES.values() for name in sections]


def test_every_number_is_compared() -> None:
    # 2-D rows, three results each for the Adam page; a parser that lost lines would pass with fewer.
    counts = {
        page: sum(len(re.findall(_NUMBER, example.output)) for p, _, found in _CASES if p == page for example in found)
        for page in _PAGES
    }
    assert counts == {"adam_update": 105, "optimizer_update": 52}


def test_prints_as_the_page_does_where_it_kept_its_layout() -> None:
    w = optgen.Container(a=optgen.array([1.0, 2.0]), b={"c": optgen.array([[1.0, 2.5], [3.0, 4.0]])})
    assert repr(w) == (
        "{\n    a: ivy.array([1., 2.]),\n    b: {\n"
        "        c: ivy.array([[1. , 2.5],\n                      [3. , 4. ]])\n    }\n}"
    )
    assert repr((optgen.array([0.05]), w.a)) == "(ivy.array([0.05]), ivy.array([1., 2.]))"
