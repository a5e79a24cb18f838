"""XML from a stranger: elements with their lines, and nothing that can expand, include or fetch.

A document type declaration is refused, so there are no entities but the five of XML itself; depth and size are
bounded before anything is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from scantling.data.findings import refuse
from scantling.data.io import describe_content, read_bytes

MAX_BYTES = 32_000_000
MAX_DEPTH = 64


@dataclass(slots=True)
class Element:
    """One element: its tag, the line where it begins, its own text and its children."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def find(self, tag: str) -> Element | None:
        """The first child with this tag."""
        return next((child for child in self.children if child.tag == tag), None)

    def all(self, tag: str) -> list[Element]:
        """All children with this tag."""
        return [child for child in self.children if child.tag == tag]

    def text_of(self, tag: str) -> str:
        """Text of the first child with this tag, without white space around it; empty if there is none."""
        child = self.find(tag)
        return child.text.strip() if child else ""


def read_xml(path: Path) -> Element:
    """The root element of an XML file.

    Raises:
        DataError: Missing, empty, too large, not XML (with line and column), too deep, or with a document type
            declaration.
    """
    data, file = read_bytes(path), str(path)
    if len(data) > MAX_BYTES:
        refuse("xml-syntax", file, f"{len(data)} bytes are more than any annotation file has")
    builder = _ElementBuilder(file)
    try:
        builder.parser.Parse(data, True)
    except expat.ExpatError as error:
        looks = describe_content(data[:512])
        words = (
            f"not XML but {looks}" if looks and looks != "an XML document" else expat.ErrorString(error.code)
        )
        place = f"line {error.lineno} column {error.offset + 1}"
        refuse("xml-syntax", file, f"not valid XML: {words}", path=place)
    return builder.root


class _ElementBuilder:
    """Builds elements from the parser's events."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root = Element("", 0)
        self.open: list[Element] = [self.root]
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._refuse_doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text

    def _refuse_doctype(self, *_: object) -> None:
        place = f"line {self.parser.CurrentLineNumber}"
        refuse("xml-doctype", self.file, "a document type declaration is not accepted", path=place)

    def _start(self, tag: str, _attributes: object) -> None:
        if len(self.open) > MAX_DEPTH:
            refuse("xml-syntax", self.file, f"nested deeper than {MAX_DEPTH} levels")
        element = Element(tag, self.parser.CurrentLineNumber)
        if len(self.open) == 1:
            self.root = element
        else:
            self.open[-1].children.append(element)
        self.open.append(element)

    def _end(self, _tag: str) -> None:
        self.open.pop()

    def _text(self, text: str) -> None:
        self.open[-1].text += text
