"""A document's bytes to pages of Markdown, one function per format. Run as a program, it does so within limits that it sets itself.

`documents.py` starts it as a child process and hands it the bytes: a file that crashes a parser, or swallows all the
memory it can have, then takes nothing else down. It imports nothing of ours, so that the child starts fast.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import Any, Final, NamedTuple

PAGE: Final = 4000  # characters of a page, where the format has no pages of its own
_PAGES: Final = 3000  # of one document: what comes after these is left out, and said to be
_CHARACTERS: Final = 20_000_000  # of one document
_UNPACKED: Final = 300_000_000  # bytes that the parts of a zipped document may add up to
_RATIO: Final = 250  # bytes from one: Office files stay below 50, a bomb comes near 1000
_TABLE_SECONDS: Final = 15  # spent on finding tables in a PDF; pages after that are read as text
_CELL: Final = 500  # characters


class Unreadable(Exception):
    """There is no text to be had; the message ends the sentence "'a.pdf' ..."."""


class Parsed(NamedTuple):
    kind: str
    pages: list[tuple[str, str]]  # label, Markdown
    title: str = ""
    notes: list[str] = []  # noqa: RUF012 - never changed


# What a file is: its first bytes say so; a name is only asked about text.


def sniff(data: bytes, mime: str | None, name: str) -> str:
    """The format's name, a key of `FORMATS`. Raises `Unreadable` for what is no document."""
    head = data[:1024]
    if b"%PDF-" in head:
        return "pdf"
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(data)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return _sniff_ole(data)
    if head.lstrip().startswith(b"{\\rtf"):
        return "rtf"
    for magic, what in _NOT_DOCUMENTS.items():
        if head.startswith(magic):
            raise Unreadable(f"is {what}, not a document with text")
    text = decode(head, whole=len(data) <= len(head))
    suffix = name.lower().rpartition(".")[2]
    kind = (mime or "").partition(";")[0].strip().lower()
    if re.match(
        r"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", text, re.I | re.S
    ):
        return "html"
    if suffix in ("html", "htm", "xhtml") or kind in ("text/html", "application/xhtml+xml"):
        return "html"
    if suffix in ("csv", "tsv", "tab") or kind in ("text/csv", "text/tab-separated-values"):
        return "csv"
    return "text"


_NOT_DOCUMENTS: Final = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"II*\x00": "a TIFF image",
    b"\x7fELF": "a program",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"SQLite format 3": "a SQLite database",
}


def _sniff_zip(data: bytes) -> str:
    with _zip(data) as archive:
        names = set(archive.namelist())
        for part, kind in {
            "word/document.xml": "docx",
            "ppt/presentation.xml": "pptx",
            "xl/workbook.xml": "xlsx",
            "xl/workbook.bin": "xlsb",
        }.items():
            if part in names:
                return kind
        mime = _part(archive, "mimetype").strip() if "mimetype" in names else b""
        if mime == b"application/epub+zip" or "META-INF/container.xml" in names:
            return "epub"
        if mime.startswith(b"application/vnd.oasis.opendocument.spreadsheet"):
            return "ods"
        if mime.startswith(b"application/vnd.oasis.opendocument."):
            return "odf"
        if any(n.startswith("word/") for n in names):
            return "docx"
    raise Unreadable("is a zip archive, not a document")


def _sniff_ole(data: bytes) -> str:
    def holds(stream: str) -> bool:
        return stream.encode("utf-16-le") in data

    if holds("EncryptedPackage"):
        raise Unreadable("is protected by a password; save it without one")
    if holds("Workbook") or holds("Book"):
        return "xls"
    old = "Word" if holds("WordDocument") else "PowerPoint" if holds("PowerPoint Document") else "Office"
    raise Unreadable(f"is in an old {old} format; save it as .docx, .pptx or .pdf")


def _zip(data: bytes) -> zipfile.ZipFile:
    """The archive, if what it claims to unpack to is not outrageous. Reading a part never yields more than it claims."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError) as exc:
        raise Unreadable(f"is broken ({exc})") from None
    if len(parts) > 20_000 or sum(p.file_size for p in parts) > _UNPACKED:
        raise Unreadable(f"would unpack to more than {_UNPACKED // 1_000_000} MB and is not read")
    if any(p.file_size > 5_000_000 and p.file_size > _RATIO * max(p.compress_size, 1) for p in parts):
        raise Unreadable("is packed like a zip bomb and is not read")
    if any(p.flag_bits & 1 for p in parts):
        raise Unreadable("is protected by a password; save it without one")
    return archive


def _part(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (KeyError, zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as exc:
        raise Unreadable(f"is broken ({exc})") from None


# Text, and formats that are nearly text.


def decode(data: bytes, whole: bool = True) -> str:
    """Text in whatever encoding it is; if not *whole*, it may end inside of a character. Raises `Unreadable` for what is no text."""
    for bom, encoding in _BOMS.items():
        if data.startswith(bom):
            return data.decode(encoding, "replace")
    if b"\x00" in data[:8192]:
        raise Unreadable("is not text, nor a document of a kind that can be read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        if not whole and len(data) - exc.start < 4:
            return data.decode("utf-8", "ignore")
    if len(data) < 64 and not re.search(rb"[\x80-\xff]{2}", data):
        return data.decode("cp1252", "replace")  # too short to tell; single letters are European ones
    try:
        import charset_normalizer
    except ModuleNotFoundError:
        return data.decode("utf-8", "replace")
    best = charset_normalizer.from_bytes(data[:100_000]).best()
    return data.decode(best.encoding if best else "utf-8", "replace")


_BOMS: Final = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def plain(data: bytes) -> Parsed:
    return Parsed("text", split(clean(decode(data))))


def delimited(data: bytes) -> Parsed:
    text = decode(data)
    first = "\n".join(text[:20_000].splitlines()[:20])
    try:
        dialect: Any = csv.Sniffer().sniff(first, ",;\t|")
    except csv.Error:
        dialect = csv.excel_tab if first.count("\t") > first.count(",") else csv.excel
    csv.field_size_limit(1_000_000)
    try:
        rows = list(islice(csv.reader(io.StringIO(text), dialect), 1_000_000))
    except csv.Error:
        return plain(data)
    return Parsed("table", list(_table_pages(rows, "", 1)) or [("", "")])


def html(data: bytes) -> Parsed:
    from bs4 import BeautifulSoup
    from bs4.dammit import EncodingDetector

    declared = EncodingDetector.find_declared_encoding(data[:4096], is_html=True)
    soup: Any = BeautifulSoup(data, "lxml", from_encoding=declared)
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    return Parsed("HTML", split(_soup_text(soup)), title)


def _soup_text(soup: Any) -> str:
    from markdownify import MarkdownConverter

    for tag in soup.find_all(["script", "style", "noscript", "template", "svg", "nav", "iframe", "title"]):
        tag.decompose()
    for tag in soup.find_all(["a", "img"]):  # addresses cost more than they say
        if tag.name == "a":
            tag.unwrap()
        else:
            tag.replace_with(str(tag.get("alt") or ""))
    try:
        text = MarkdownConverter(heading_style="ATX", bullets="-", escape_misc=False).convert_soup(soup)
    except RecursionError:
        text = soup.get_text("\n", strip=True)
    return clean(str(text))


def rtf(data: bytes) -> Parsed:
    from striprtf.striprtf import rtf_to_text

    text = rtf_to_text(data.decode("latin-1"), errors="ignore")  # type: ignore[no-untyped-call]
    return Parsed("RTF", split(clean(text)))


# PDF


def pdf(data: bytes) -> Parsed:
    import pypdfium2  # type: ignore[import-untyped]

    try:
        file = pypdfium2.PdfDocument(data)
        count = len(file)
    except pypdfium2.PdfiumError as exc:
        if "password" in str(exc).lower():
            raise Unreadable("is protected by a password; save it without one") from None
        raise Unreadable("is a broken PDF") from None
    notes = [] if count <= _PAGES else [f"only the first {_PAGES} of {count} pages were read"]
    headings = _pdf_headings(file)
    tables = _PdfTables(data)
    pages = []
    for n in range(min(count, _PAGES)):
        try:
            page = file[n]
            text = _pdf_page(page, tables, n)
            page.close()
        except pypdfium2.PdfiumError:
            text = "[this page is broken]"
        pages.append((f"page {n + 1}", _mark_headings(text, headings.get(n, {}))))
    if pages and not any(text for _, text in pages):
        raise Unreadable(f"has no text on its {len(pages)} pages: they are pictures (a scan)")
    title = clean(file.get_metadata_dict().get("Title", ""))
    return Parsed("PDF", pages, title, notes)


def _pdf_page(page: Any, tables: _PdfTables, n: int) -> str:
    textpage = page.get_textpage()
    width, height = page.get_size()
    found = tables.on(page, n)
    if not found:
        return _pdf_text(textpage.get_text_range())
    parts, top = [], 0.0  # bands of text between the tables, and what stands beside a table
    for (x0, y0, x1, y1), markdown in found:
        parts.append(_pdf_text(textpage.get_text_bounded(0, height - y0, width, height - top)))
        parts.append(_pdf_text(textpage.get_text_bounded(0, height - y1, x0, height - y0)))
        parts.append(_pdf_text(textpage.get_text_bounded(x1, height - y1, width, height - y0)))
        parts.append(markdown)
        top = y1
    parts.append(_pdf_text(textpage.get_text_bounded(0, 0, width, height - top)))
    return "\n\n".join(part for part in parts if part)


def _pdf_text(text: str) -> str:
    # PDFium marks a hyphen at the end of a line, where the word goes on in the next one
    return clean(re.sub("[\ufffe\x02]\r?\n?", "", text))


class _PdfTables:
    """Finds ruled tables. That is slow, so only pages with lines drawn on them are looked at, and not for long."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._file: Any = None
        self._left = float(_TABLE_SECONDS)

    def on(self, page: Any, n: int) -> list[tuple[tuple[float, float, float, float], str]]:
        """Boxes (left, top, right, bottom, from the upper left corner) and Markdown, from top to bottom."""
        import pypdfium2.raw as raw  # type: ignore[import-untyped]

        if self._left <= 0 or page.get_rotation() or any(page.get_mediabox()[:2]):
            return []
        paths = len(list(islice(page.get_objects(filter=[raw.FPDF_PAGEOBJ_PATH], max_depth=3), 3001)))
        if not 3 <= paths <= 3000:
            return []
        start = monotonic()
        try:
            import pdfplumber

            if self._file is None:
                self._file = pdfplumber.open(io.BytesIO(self._data))
            plumbed = self._file.pages[n]
            found = [(table.bbox, table.extract()) for table in plumbed.find_tables()]
            plumbed.close()
        except Exception:  # whatever it stumbles over, PDFium has the text
            return []
        finally:
            self._left -= monotonic() - start
        kept: list[tuple[tuple[float, float, float, float], str]] = []
        for box, rows in sorted(found, key=lambda table: table[0][1]):
            cells = [cell for row in rows for cell in row]
            real = len(rows) > 1 and len(rows[0]) > 1 and sum(map(bool, cells)) * 2 > len(cells)
            if real and (not kept or box[1] >= kept[-1][0][3] - 1):
                kept.append((box, markdown_table(rows)))
        return kept


def _pdf_headings(file: Any) -> dict[int, dict[str, int]]:
    """The outline: page -> title -> level."""
    found: dict[int, dict[str, int]] = {}
    with suppress(Exception):  # outlines are often broken, and never needed
        for item in islice(file.get_toc(max_depth=4), 2000):
            dest = item.get_dest()
            where, title = dest.get_index() if dest else None, " ".join(item.get_title().split())
            if where is not None and title:
                found.setdefault(where, {})[title.casefold()] = min(item.level + 1, 6)
    return found


def _mark_headings(text: str, headings: dict[str, int]) -> str:
    if not headings:
        return text
    lines = text.split("\n")
    for at, line in enumerate(lines):
        level = headings.get(" ".join(line.split()).casefold())
        if level:
            lines[at] = f"\n{'#' * level} {line.strip()}\n"
    return clean("\n".join(lines))


# Office


def docx(data: bytes) -> Parsed:
    _zip(data).close()
    from docx import Document
    from docx.oxml.ns import qn

    file: Any = Document(io.BytesIO(data))
    styles = {style.style_id: _docx_level(style) for style in file.styles if style.type == 1}
    blocks = []
    for block in _docx_blocks(file.element.body, qn):
        if block.tag == qn("w:tbl"):
            blocks.append(_docx_table(block, qn))
            continue
        text = _docx_text(block, qn)
        if not text:
            continue
        properties = block.pPr
        level = styles.get(block.style, 0)
        if level > 0:
            text = f"{'#' * level} {' '.join(text.split())}"
        elif level < 0 or (properties is not None and properties.numPr is not None):
            text = f"- {text}"
        blocks.append(text)
    for kind in ("footnotes", "endnotes"):
        notes = [note for note in _docx_notes(file, kind, qn) if note]
        if notes:
            blocks.append(
                f"## {kind.capitalize()}\n\n" + "\n".join(f"{n}. {t}" for n, t in enumerate(notes, 1))
            )
    return Parsed("Word document", split(_joined(blocks)), _office_title(file))


def _joined(blocks: Sequence[str]) -> str:
    """Items of a list follow each other without a blank line."""
    text = ""
    for block in blocks:
        tight = block.startswith("- ") and text.rpartition("\n")[2].startswith("- ")
        text += ("\n" if tight else "\n\n" if text else "") + block
    return clean(text)


def _docx_level(style: Any) -> int:
    """1 to 6 for a heading, -1 for an item of a list, 0 for text."""
    seen = 0
    while style is not None and seen < 10:  # styles based on styles, in a file perhaps in a circle
        name = (style.name or "").lower()
        if name == "title":
            return 1
        if match := re.fullmatch(r"heading (\d)", name):
            return min(int(match[1]), 6)
        if name.startswith("list "):
            return -1
        style, seen = style.base_style, seen + 1
    return 0


def _docx_blocks(element: Any, qn: Callable[[str], str]) -> Iterator[Any]:
    """Paragraphs and tables, also those in content controls and text boxes."""
    paragraph, table, skipped = (
        qn("w:p"),
        qn("w:tbl"),
        "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback",
    )
    stack = list(reversed(element))
    while stack:
        node = stack.pop()
        if node.tag == paragraph:
            yield node
            stack += reversed(list(node.iter(qn("w:txbxContent"))) if b"txbx" in _tags(node) else [])
        elif node.tag == table:
            yield node
        elif node.tag != skipped and isinstance(node.tag, str):
            stack += reversed(node)


def _tags(node: Any) -> bytes:
    return b" ".join(n.tag.encode() for n in node.iter() if isinstance(n.tag, str))


def _docx_text(element: Any, qn: Callable[[str], str]) -> str:
    """Text as it stands: inserted text is in it, deleted text is not, a text box's comes on its own."""
    parts: list[str] = []
    breaks = {qn("w:tab"): "\t", qn("w:br"): "\n", qn("w:cr"): "\n", qn("w:noBreakHyphen"): "-"}
    stack = list(reversed(element))
    while stack:
        node = stack.pop()
        if node.tag == qn("w:t"):
            parts.append(node.text or "")
        elif node.tag in breaks:
            parts.append(breaks[node.tag])
        elif node.tag == qn("w:p"):
            parts.append("\n")
            stack += reversed(node)
        elif isinstance(node.tag, str) and not node.tag.endswith(
            ("}txbxContent", "}Fallback", "}pPr", "}rPr")
        ):
            stack += reversed(node)
    return "".join(parts).strip()


def _docx_table(table: Any, qn: Callable[[str], str]) -> str:
    rows = []
    for row in table.iter(qn("w:tr")):
        cells = []
        for cell in row.iterchildren(qn("w:tc"), qn("w:sdt")):
            cells.append(_docx_text(cell, qn))
            span = cell.find(f"{qn('w:tcPr')}/{qn('w:gridSpan')}")
            width = span.get(qn("w:val"), "1") if span is not None else "1"
            cells += [""] * (min(int(width), 60) - 1 if width.isdigit() else 0)
        rows.append(cells)
    return markdown_table(rows)


def _docx_notes(file: Any, kind: str, qn: Callable[[str], str]) -> list[str]:
    for relation in file.part.rels.values():
        if relation.reltype.endswith(f"/{kind}") and not relation.is_external:
            root = _xml(relation.target_part.blob)
            return [_docx_text(note, qn) for note in root if note.get(qn("w:type")) is None]
    return []


def _office_title(file: Any) -> str:
    try:
        title = str(file.core_properties.title or "")
    except Exception:  # it may have none, or a broken one
        return ""
    return "" if title in ("PowerPoint Presentation", "Word Document") else title


def pptx(data: bytes) -> Parsed:
    _zip(data).close()
    from pptx import Presentation

    file: Any = Presentation(io.BytesIO(data))
    pages = []
    for n, slide in enumerate(islice(file.slides, _PAGES), 1):
        title = slide.shapes.title
        parts = (
            [f"# {' '.join(title.text_frame.text.split())}"]
            if title and title.text_frame.text.strip()
            else []
        )
        shapes = [s for s in _pptx_shapes(slide.shapes) if title is None or s.shape_id != title.shape_id]
        parts += [text for shape in shapes if (text := _pptx_shape(shape))]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            notes = slide.notes_slide.notes_text_frame.text.strip()
            parts += [f"Notes: {notes}"] if notes else []
        pages.append((f"slide {n}", clean("\n\n".join(parts))))
    return Parsed("presentation", pages, _office_title(file))


def _pptx_shapes(shapes: Any) -> Iterator[Any]:
    """As one reads them: from top to bottom, then from left to right; groups stay together."""
    for shape in sorted(shapes, key=lambda s: ((s.top or 0) // 100_000, s.left or 0)):
        if shape.shape_type == 6:  # a group
            yield from _pptx_shapes(shape.shapes)
        else:
            yield shape


def _pptx_shape(shape: Any) -> str:
    if shape.has_text_frame:
        paragraphs = [p for p in shape.text_frame.paragraphs if p.text.strip()]
        if len(paragraphs) == 1:
            return str(paragraphs[0].text).strip()
        return "\n".join(f"{'  ' * p.level}- {' '.join(p.text.split())}" for p in paragraphs)
    if getattr(shape, "has_table", False):
        return markdown_table([[cell.text for cell in row.cells] for row in shape.table.rows])
    if getattr(shape, "has_chart", False):
        with suppress(Exception):  # its data may be of any shape
            plot = shape.chart.plots[0]
            series = list(plot.series)
            rows = [["", *(s.name for s in series)]]
            rows += [[str(c), *(s.values[i] for s in series)] for i, c in enumerate(plot.categories)]
            return markdown_table(rows)
    return ""


def workbook(data: bytes) -> Parsed:
    formulas: dict[str, dict[tuple[int, int], str]] = {}
    if data.startswith(b"PK"):
        with _zip(data) as archive:
            formulas = _formulas_without_values(archive)
    import python_calamine

    try:
        file = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
    except python_calamine.CalamineError as exc:
        if "password" in str(exc).lower():
            raise Unreadable("is protected by a password; save it without one") from None
        raise Unreadable(f"is a broken spreadsheet ({exc})") from None
    pages: list[tuple[str, str]] = []
    notes = []
    for name in file.sheet_names:
        try:
            sheet = file.get_sheet_by_name(name)
        except python_calamine.CalamineError:
            continue  # a chart, or a sheet that is broken
        top, left = sheet.start or (0, 0)
        unknown = formulas.get(name, {})
        rows: list[list[Any]] = sheet.to_python()
        if unknown:
            top, left = min(top, *(r for r, _ in unknown)), min(left, *(c for _, c in unknown))
            rows = _with_formulas(sheet.to_python(skip_empty_area=False), unknown, top, left)
            notes.append(f"formulas in sheet {name!r} were never calculated, so they are shown")
        pages += list(_table_pages(rows, f"sheet {name!r}, ", top + 1)) or [(f"sheet {name!r}", "(empty)")]
        if len(pages) > _PAGES:
            notes.append(f"only the first {_PAGES} pages of rows were read")
            break
    return Parsed("spreadsheet", pages[:_PAGES], "", notes)


def _with_formulas(
    rows: list[list[Any]], formulas: dict[tuple[int, int], str], top: int, left: int
) -> list[list[Any]]:
    height = max(len(rows), *(r + 1 for r, _ in formulas))
    width = max(max(map(len, rows), default=0), *(c + 1 for _, c in formulas))
    if height * width > 5_000_000:
        return rows
    grid = [row + [""] * (width - len(row)) for row in rows]
    grid += [[""] * width for _ in range(height - len(rows))]
    for (r, c), formula in formulas.items():
        grid[r][c] = grid[r][c] or f"={formula}"
    return [row[left:] for row in grid[top:]]


def _formulas_without_values(archive: zipfile.ZipFile) -> dict[str, dict[tuple[int, int], str]]:
    """Sheet -> (row, column) -> formula, for cells that no spreadsheet program has calculated: they have no value to show."""
    from lxml import etree  # type: ignore[import-untyped]

    if "xl/workbook.xml" not in archive.namelist():
        return {}
    main = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    relation = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
    found: dict[str, dict[tuple[int, int], str]] = {}
    with suppress(KeyError, etree.XMLSyntaxError, Unreadable):
        targets = {r.get("Id"): r.get("Target") for r in _xml(archive.read("xl/_rels/workbook.xml.rels"))}
        for sheet in _xml(archive.read("xl/workbook.xml")).iter(f"{main}sheet"):
            target = str(targets[sheet.get(relation)])
            source = io.BytesIO(archive.read(target[1:] if target.startswith("/") else f"xl/{target}"))
            cells: dict[tuple[int, int], str] = {}
            for _, cell in etree.iterparse(
                source, tag=f"{main}c", resolve_entities=False, no_network=True, recover=True
            ):
                formula, value = cell.find(f"{main}f"), cell.find(f"{main}v")
                at = re.fullmatch(r"([A-Z]{1,3})(\d{1,7})", cell.get("r", ""))
                if formula is not None and formula.text and at and (value is None or not value.text):
                    column = 0
                    for letter in at[1]:
                        column = column * 26 + ord(letter) - 64
                    cells[int(at[2]) - 1, column - 1] = formula.text
                cell.clear()
                if len(cells) > 50_000:
                    break
            if cells:
                found[str(sheet.get("name"))] = cells
    return found


def odf(data: bytes) -> Parsed:
    text = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"
    table = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
    with _zip(data) as archive:
        root = _xml(_part(archive, "content.xml"))
    blocks: list[str] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if node.tag == f"{text}h":
            level = node.get(f"{text}outline-level", "1")
            blocks.append(f"{'#' * (int(level) if level in list('123456') else 1)} {_all_text(node)}")
        elif node.tag == f"{text}p":
            blocks.append(_all_text(node))
        elif node.tag == f"{text}list-item":
            blocks.append(f"- {_all_text(node)}")
        elif node.tag == f"{table}table":
            rows = [
                [_all_text(c) for c in r.iter(f"{table}table-cell")] for r in node.iter(f"{table}table-row")
            ]
            blocks.append(markdown_table(rows))
        elif isinstance(node.tag, str):
            stack += reversed(node)
    return Parsed("OpenDocument", split(_joined([b for b in blocks if b.strip("#- ")])))


def _all_text(node: Any) -> str:
    return " ".join("".join(node.itertext()).split())


def epub(data: bytes) -> Parsed:
    import posixpath
    from urllib.parse import unquote

    from bs4 import BeautifulSoup

    with _zip(data) as archive:
        root = next(_xml(_part(archive, "META-INF/container.xml")).iter("{*}rootfile"), None)
        place = str(root.get("full-path", "")) if root is not None else ""
        package = _xml(_part(archive, place))
        files = {item.get("id"): item.get("href", "") for item in package.iter("{*}item")}
        title = next((e.text or "" for e in package.iter("{http://purl.org/dc/elements/1.1/}title")), "")
        pages: list[tuple[str, str]] = []
        names = set(archive.namelist())
        for n, reference in enumerate(package.iter("{*}itemref"), 1):
            href = unquote(str(files.get(reference.get("idref"), "")))
            name = posixpath.normpath(posixpath.join(posixpath.dirname(place), href))
            if name in names:
                text = _soup_text(BeautifulSoup(_part(archive, name), "lxml"))
                pages += [(f"chapter {n}", page) for _, page in split(text) if page]
    return Parsed("EPUB", pages[:_PAGES] or [("", "")], title)


def _xml(data: bytes) -> Any:
    """Parsed without expanding entities or opening anything else."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        return etree.fromstring(data, parser)
    except etree.XMLSyntaxError as exc:
        raise Unreadable(f"is broken ({exc.msg})") from None


FORMATS: Final[dict[str, Callable[[bytes], Parsed]]] = {
    "pdf": pdf,
    "docx": docx,
    "pptx": pptx,
    "xlsx": workbook,
    "xlsb": workbook,
    "xls": workbook,
    "ods": workbook,
    "odf": odf,
    "epub": epub,
    "rtf": rtf,
    "html": html,
    "csv": delimited,
    "text": plain,
}
HARMLESS: Final = frozenset(
    {"csv", "text"}
)  # read by the standard library, in time that grows with their size


# Markdown


def markdown_table(rows: Iterable[Sequence[Any]]) -> str:
    """The rows, the first one as the header; rows and columns that are empty are left out."""
    cells = [[_cell(value) for value in row] for row in rows]
    cells = [row for row in cells if any(row)]
    width = max(map(len, cells), default=0)
    cells = [row + [""] * (width - len(row)) for row in cells]
    used = [i for i in range(width) if any(row[i] for row in cells)]
    lines = [f"| {' | '.join(row[i] for i in used)} |" for row in cells]
    if lines:
        lines.insert(1, "|" + " --- |" * len(used))
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    text = "" if value is None else " ".join(str(value).split()).replace("|", "\\|")
    return text if len(text) <= _CELL else text[:_CELL] + "…"


def _table_pages(rows: Sequence[Sequence[Any]], label: str, first: int) -> Iterator[tuple[str, str]]:
    """Pages of a long table, each with the header; *first* is the number of the first row."""
    numbered = [(n, row) for n, row in enumerate(rows, first) if any(_cell(v) for v in row)]
    if not numbered:
        return
    header, begin, size, batch = numbered[0][1], numbered[0][0], 0, [numbered[0][1]]
    last = begin
    for n, row in numbered[1:]:
        length = sum(min(len(str(v)), _CELL) + 3 for v in row)
        if size and size + length > PAGE:
            yield f"{label}rows {begin}-{last}", markdown_table(batch)
            begin, size, batch = n, 0, [header]
        batch.append(row)
        size, last = size + length, n
    yield f"{label}rows {begin}-{last}", markdown_table(batch)


def clean(text: str) -> str:
    """Without characters that print nothing, spaces at the ends of lines, and more than one blank line in a row."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    text = re.sub("[\x00-\x08\x0b-\x1f\x7f\u00ad\u200b\ufeff\ufffe]|[\ud800-\udfff]", "", text)
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def split(text: str, size: int = PAGE) -> list[tuple[str, str]]:
    """Pages of about *size* characters, cut where the text allows: before a heading, else between paragraphs, lines, sentences."""
    pages = []
    start = 0
    while len(text) - start > size:
        window = text[start : start + size]
        cut = max(window.rfind("\n# ", size // 2), window.rfind("\n## ", size // 2))
        for mark in ("\n\n", "\n", "。", ". ", " "):
            if cut < size // 2:
                cut = window.rfind(mark, size // 2)
                cut = cut + len(mark) if cut >= 0 and not mark.startswith("\n") else cut
        cut = cut if cut > 0 else size
        pages.append(text[start : start + cut].strip("\n"))
        start += cut
    pages.append(text[start:].strip("\n"))
    return [(f"page {n}", page) for n, page in enumerate(pages, 1)]


def parse(data: bytes, mime: str | None, name: str) -> dict[str, Any]:
    """What `Document` is made of, or {"error": …} that ends a sentence about the file, or {"missing": a library}."""
    try:
        found = FORMATS[sniff(data, mime, name)](data)
    except Unreadable as exc:
        return {"error": str(exc)}
    except ModuleNotFoundError as exc:
        return {"missing": exc.name}
    except (MemoryError, RecursionError):
        return {"error": "takes too much memory to read"}
    except Exception as exc:  # a parser's own words for a broken file; they are of every type
        return {"error": f"is broken ({type(exc).__name__}: {str(exc)[:100]})"}
    pages, notes, left = [], list(found.notes), _CHARACTERS
    for label, text in found.pages:
        if left <= 0:
            notes.append("what comes after the last page shown was too much to read")
            break
        pages.append((label, text[:left]))
        left -= len(text)
    return {"kind": found.kind, "title": " ".join(found.title.split())[:200], "pages": pages, "notes": notes}


def _main() -> None:
    import resource
    import signal

    plan = json.loads(sys.stdin.buffer.readline())
    signal.alarm(plan["seconds"] * 2)  # for when whoever started this is gone
    for which, limit in (
        (resource.RLIMIT_CPU, plan["seconds"]),
        (resource.RLIMIT_AS, plan["memory"]),
        (resource.RLIMIT_FSIZE, 4 * _CHARACTERS),  # the answer goes to a file
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(which)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (value, value))
    sys.path[:] = plan["path"]
    answer = parse(sys.stdin.buffer.read(), plan["mime"], plan["name"])
    sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _main()
