"""Documents as text: every format, paging, and files that are broken or meant to do harm."""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentkit import Tool, ToolError
from agentkit_tools.documents import Document, ReadDocument, to_text

for library in (
    "pypdfium2",
    "pdfplumber",
    "docx",
    "pptx",
    "python_calamine",
    "openpyxl",
    "bs4",
    "markdownify",
):
    pytest.importorskip(library, reason="needs: pip install 'agentkit[documents]' openpyxl")

pytestmark = pytest.mark.anyio


def make_pdf(*pages: bytes, outline: str = "", packed: bool = False, extra: str = "") -> bytes:
    """A PDF with one content stream for each page."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {'/Outlines 100 0 R' if outline else ''} >>".encode(),
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, content in enumerate(pages):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * n} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        data = zlib.compress(content, 9) if packed else content
        filters = "/Filter /FlateDecode" if packed else ""
        objects.append(f"<< /Length {len(data)} {filters} >>\nstream\n".encode() + data + b"\nendstream")
    numbered = list(enumerate(objects, 1))
    if outline:
        numbered += [
            (100, b"<< /Type /Outlines /First 101 0 R /Last 101 0 R /Count 1 >>"),
            (101, f"<< /Title ({outline}) /Parent 100 0 R /Dest [4 0 R /Fit] >>".encode()),
        ]
    body, offsets = b"%PDF-1.7\n", {}
    for number, text in numbered:
        offsets[number] = len(body)
        body += f"{number} 0 obj\n".encode() + text + b"\nendobj\n"
    table = b"".join(f"{number} 1\n{offset:010} 00000 n \n".encode() for number, offset in offsets.items())
    size = max(offsets) + 1
    end = f"trailer << /Size {size} /Root 1 0 R {extra} >>\nstartxref\n{len(body)}\n%%EOF".encode()
    return body + b"xref\n0 1\n0000000000 65535 f \n" + table + end


def lines_of(*lines: str, top: int = 720) -> bytes:
    return b"".join(
        f"BT /F1 12 Tf 72 {top - 20 * n} Td ({line}) Tj ET\n".encode() for n, line in enumerate(lines)
    )


def table_of(rows: Sequence[Sequence[str]], top: int = 500) -> bytes:
    """Ruled: each cell a box."""
    return b"".join(
        f"{72 + 120 * c} {top - 24 * (r + 1)} 120 24 re S\n"
        f"BT /F1 12 Tf {78 + 120 * c} {top - 24 * r - 17} Td ({cell}) Tj ET\n".encode()
        for r, row in enumerate(rows)
        for c, cell in enumerate(row)
    )


def saved(document: Any) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def whole(document: Document) -> str:
    return "\n".join(page.text for page in document.pages)


def repacked(data: bytes, **parts: bytes) -> bytes:
    """The zip with some parts (their / written as __) replaced or added."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        replaced = {name.replace("__", "/").replace("_xml", ".xml"): part for name, part in parts.items()}
        for name in old.namelist():
            if name not in replaced:
                new.writestr(name, old.read(name))
        for name, part in replaced.items():
            new.writestr(name, part)
    return buffer.getvalue()


def make_docx() -> bytes:
    import docx

    file = docx.Document()
    file.core_properties.title = "Lease"
    file.add_heading("Termination", 1)
    file.add_paragraph("Either party may end it.")
    file.add_paragraph("in writing", style="List Bullet")
    file.add_paragraph("in time", style="List Bullet")
    table = file.add_table(2, 3)
    for cell, text in zip(
        (c for row in table.rows for c in row.cells), ("a|b", "B", "C", "1", "2", "3"), strict=True
    ):
        cell.text = text
    table.cell(0, 1).merge(table.cell(0, 2))
    file.add_paragraph("After the table.")
    return saved(file)


def make_xlsx(rows: int = 3) -> bytes:
    import openpyxl  # type: ignore[import-untyped]

    book = openpyxl.Workbook()
    sheet: Any = book.active
    sheet.title = "Sales"
    sheet.append(["Month", "Amount"])
    for n in range(rows):
        sheet.append([f"M{n}", n + 0.5])
    sheet.append(["Sum", f"=SUM(B2:B{rows + 1})"])
    book.create_sheet("Costs")["C5"] = "rent"
    return saved(book)


# What is in each format


def test_pages_of_a_pdf_keep_their_numbers_and_ruled_tables_become_markdown() -> None:
    table = table_of([["Item", "Price"], ["Bolt", "12"], ["Nut", "3"]])
    data = make_pdf(
        lines_of("Introduction", "first words") + table + lines_of("below the table", top=300),
        b"",
        lines_of("last words"),
        outline="Introduction",
    )
    document = to_text(data)
    assert [page.label for page in document.pages] == ["page 1", "page 2", "page 3"]
    assert document.pages[0].text == (
        "# Introduction\n\nfirst words\n\n| Item | Price |\n| --- | --- |\n| Bolt | 12 |\n| Nut | 3 |\n\nbelow the table"
    )
    assert (document.kind, document.pages[1].text, document.pages[2].text) == ("PDF", "", "last words")


def test_headings_lists_and_tables_of_word_keep_their_order() -> None:
    document = to_text(make_docx())
    assert document.title == "Lease"
    assert document.pages[0].text == (
        "# Termination\n\nEither party may end it.\n\n- in writing\n- in time\n\n"
        "| a\\|b | B C |  |\n| --- | --- | --- |\n| 1 | 2 | 3 |\n\nAfter the table."
    )


def test_sheets_are_tables_with_values_or_else_formulas() -> None:
    document = to_text(make_xlsx())
    assert [page.label for page in document.pages] == ["sheet 'Sales', rows 1-5", "sheet 'Costs', rows 5-5"]
    assert document.pages[0].text.startswith("| Month | Amount |\n| --- | --- |\n| M0 | 0.5 |")
    assert "| Sum | =SUM(B2:B4) |" in document.pages[0].text and "never calculated" in document.notes[0]


def test_a_calculated_formula_is_its_value() -> None:
    data = make_xlsx()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sheet = archive.read("xl/worksheets/sheet1.xml")
    calculated, changed = re.subn(rb"</f><v ?(/>|></v>)", b"</f><v>4.5</v>", sheet)
    assert changed == 1
    document = to_text(repacked(data, xl__worksheets__sheet1_xml=calculated))
    assert "| Sum | 4.5 |" in document.pages[0].text and document.notes == ()


def test_slides_have_titles_text_tables_and_notes() -> None:
    import pptx

    file = pptx.Presentation()
    slide = file.slides.add_slide(file.slide_layouts[1])
    slide.shapes.title.text = "Plan"
    slide.placeholders[1].text = "one\ntwo"
    slide.notes_slide.notes_text_frame.text = "speak slowly"
    table = file.slides.add_slide(file.slide_layouts[6]).shapes.add_table(2, 2, 0, 0, 9999999, 999999).table
    for cell, text in zip(table.iter_cells(), "ABCD", strict=True):
        cell.text = text
    document = to_text(saved(file))
    assert document.pages[0].text == "# Plan\n\n- one\n- two\n\nNotes: speak slowly"
    assert document.pages[1].text == "| A | B |\n| --- | --- |\n| C | D |"


def test_html_is_markdown_in_whatever_encoding_it_declares() -> None:
    page = (
        "<html><head><meta charset=gbk><title>年报</title><script>evil()</script></head><body><nav>menu</nav>"
        "<h2>收入</h2><p>see <a href='https://x.example'>here</a></p><table><tr><th>a<th>b<tr><td>1<td>2</table>"
    )
    document = to_text(page.encode("gbk"))
    assert document.title == "年报"
    assert whole(document) == "## 收入\n\nsee here\n\n| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize("text", ["a;b\n1;x\n2;y\n", "a\tb\n1\tx\n2\ty\n", 'a,b\n1,"x"\n2,y\n'])
def test_a_csv_is_a_table_whatever_separates_its_columns(text: str) -> None:
    document = to_text(text.encode(), None, "t.csv")
    assert document.pages[0].text == "| a | b |\n| --- | --- |\n| 1 | x |\n| 2 | y |"


def test_a_book_is_read_in_its_order() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as book:
        book.writestr("mimetype", "application/epub+zip")
        book.writestr(
            "META-INF/container.xml",
            "<container><rootfiles><rootfile full-path='o/p.opf'/></rootfiles></container>",
        )
        book.writestr(
            "o/p.opf",
            "<package xmlns:dc='http://purl.org/dc/elements/1.1/'><metadata><dc:title>Tale</dc:title></metadata>"
            "<manifest><item id='b' href='b.html'/><item id='a' href='a%201.html'/></manifest>"
            "<spine><itemref idref='a'/><itemref idref='b'/><itemref idref='gone'/></spine></package>",
        )
        book.writestr("o/b.html", "<p>second</p>")
        book.writestr("o/a 1.html", "<h1>First</h1>")
    document = to_text(buffer.getvalue())
    assert (document.title, [p.text for p in document.pages]) == ("Tale", ["# First", "second"])


def test_rtf_and_old_text_encodings_are_read() -> None:
    assert whole(to_text(rb"{\rtf1\ansi Caf\'e9 \b bold\b0\par next}")) == "Café bold\nnext"
    assert whole(
        to_text("Das Gebäude gehört der Behörde, für die wir die Räume prüfen.".encode("cp1252"))
    ).startswith("Das Geb")
    assert whole(
        to_text("合同的终止条款在第三章，甲方和乙方可以协商解除合同。".encode("gb18030"))
    ).startswith("合同的终止条款")
    for text in ("Un très bon café", "café"):
        assert whole(to_text(text.encode("latin-1"))) == text
    assert whole(to_text("Grüße".encode("utf-16"))) == "Grüße"


@pytest.mark.parametrize("name", ["report.txt", "report.docx", "report", "report.html"])
def test_the_bytes_and_not_the_name_say_what_it_is(name: str) -> None:
    assert to_text(make_pdf(lines_of("hello")), "text/plain", name).kind == "PDF"


# Hostile and broken files


def zip_bomb(kind: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as bomb:
        bomb.writestr(kind, b"0" * 20_000_000)
    return buffer.getvalue()


def lying_zip() -> bytes:
    """Its directory claims 100 bytes of what unpacks to 20 MB."""
    data = zip_bomb("word/document.xml")
    return data.replace((20_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))


def entity_bomb() -> bytes:
    entities = "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 10))
    document = f"<!DOCTYPE d [<!ENTITY a0 'ha'>{entities}]><w:document xmlns:w='http://schemas.openxmlformats.org/wordprocessingml/2006/main'><w:body><w:p><w:r><w:t>&a9;</w:t></w:r></w:p></w:body></w:document>"
    return repacked(make_docx(), word__document_xml=document.encode())


def outside_entity(path: Path) -> bytes:
    document = f"<!DOCTYPE d [<!ENTITY x SYSTEM 'file://{path}'>]><w:document xmlns:w='http://schemas.openxmlformats.org/wordprocessingml/2006/main'><w:body><w:p><w:r><w:t>a&x;b</w:t></w:r></w:p></w:body></w:document>"
    return repacked(make_docx(), word__document_xml=document.encode())


def many_cells() -> bytes:
    """Two cells as far from each other as can be: a parser that makes room for those between needs 100 GB."""
    sheet = (
        "<worksheet xmlns='http://schemas.openxmlformats.org/spreadsheetml/2006/main'><sheetData>"
        "<row r='1'><c r='A1'><v>1</v></c></row><row r='1048576'><c r='XFD1048576'><v>2</v></c></row></sheetData></worksheet>"
    )
    return repacked(make_xlsx(), xl__worksheets__sheet1_xml=sheet.encode())


def locked_office() -> bytes:
    return b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600 + "EncryptedPackage".encode("utf-16-le")


LOCK = f"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <{'41' * 32}> /U <{'42' * 32}> >> /ID [<00> <00>]"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "bomb.docx": (zip_bomb("word/document.xml"), "like a zip bomb"),
    "bomb.xlsx": (zip_bomb("xl/workbook.xml"), "like a zip bomb"),
    "lying.docx": (lying_zip(), "broken"),
    "cells.xlsx": (many_cells(), "memory|within|broken"),
    "locked.xlsx": (locked_office(), "protected by a password"),
    "locked.pdf": (make_pdf(lines_of("x"), extra=LOCK), "protected by a password"),
    "old.doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "WordDocument".encode("utf-16-le"), "save it as"),
    "scan.pdf": (make_pdf(b"0 0 9 9 re f", b""), "no text on its 2 pages"),
    "cut.docx": (make_docx()[:2000], "broken"),
    "cut.xlsx": (make_xlsx()[:-400], "broken"),
    "broken.pdf": (b"%PDF-1.7\n" + os.urandom(3000), "broken"),
    "photo.docx": (b"\x89PNG\r\n\x1a\n" + b"\0" * 90, "PNG image"),
    "random.bin": (b"\x01\x00" * 900, "not text"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(name: str) -> None:
    data, why = HOSTILE[name]
    with pytest.raises(ToolError, match=why) as refusal:
        to_text(data, None, name, memory=700_000_000)
    assert str(refusal.value).startswith(f"'{name}' ") and "\n" not in str(refusal.value)


@pytest.mark.e2e
def test_entities_are_not_expanded_nor_is_anything_read_for_them(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    for data in (entity_bomb(), outside_entity(tmp_path / "secret")):
        try:
            text = whole(to_text(data))
        except ToolError as refusal:
            text = str(refusal)
        assert "hunter2" not in text and len(text) < 1000


@pytest.mark.e2e
def test_a_stream_that_unpacks_to_more_than_there_is_takes_nothing_down() -> None:
    block = zlib.compressobj(1)
    bomb = b"".join(block.compress(b" " * 10_000_000) for _ in range(40)) + block.flush()
    data = make_pdf(lines_of("x"))
    start, end = data.index(b"stream\n") + 7, data.index(b"\nendstream")
    data = data[:start] + bomb + data[end:]
    data = data.replace(b"/Length", f"/Filter /FlateDecode /Length {len(bomb)} /Was".encode(), 1)
    try:
        text = whole(to_text(data, None, "b.pdf", memory=300_000_000, seconds=10))
    except ToolError as refusal:
        text = str(refusal)
    assert len(text) < 1000


def test_pages_that_contain_themselves_do_not_go_on_for_ever() -> None:
    data = (
        make_pdf(lines_of("x"))
        .replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]")
        .replace(b"/Count 1", b"/Count 9999999")
    )
    try:
        text = whole(to_text(data, None, "l.pdf", seconds=10))
    except ToolError as refusal:
        text = str(refusal)
    assert len(text) < 200_000


@pytest.mark.e2e
def test_html_may_be_nested_without_end() -> None:
    assert whole(to_text(b"<html>" + b"<div>" * 20_000 + b"deep")) == "deep"


def test_who_gives_up_does_not_wait_for_the_parser() -> None:
    with pytest.raises(ToolError):
        to_text(make_docx(), cancelled=lambda: True)


# The tool


async def tool_for(root: Path, **options: Any) -> Tool:
    async with ReadDocument(root, **options).open(print) as tools:
        return tools[0]


async def reading(root: Path, max_chars: int = 8000, **arguments: Any) -> str:
    async with ReadDocument(root, max_chars).open(print) as tools:
        return (await tools[0].handler(arguments)).content


async def test_it_declares_that_it_reads(tmp_path: Path) -> None:
    tool = await tool_for(tmp_path)
    assert (tool.name, tool.effects) == ("read_document", frozenset({"reads"}))


async def test_a_long_document_is_read_page_by_page(tmp_path: Path) -> None:
    (tmp_path / "r.pdf").write_bytes(
        make_pdf(*(lines_of(*[f"p{n} line {i} of words" for i in range(30)]) for n in range(1, 6)))
    )
    first = await reading(tmp_path, 1300, path="r.pdf")
    assert first.startswith("r.pdf: PDF, 5 pages\n\n[page 1 of 5]\np1 line 0") and "p2 line 29" in first
    assert first.endswith("[The document goes on: read_document with page=3]") and "p3" not in first
    last = await reading(tmp_path, 1300, path="r.pdf", page=5)
    assert "p5 line 29" in last and last.endswith("[End of the document]")
    with pytest.raises(ToolError, match="5 pages; there is no page 6"):
        await reading(tmp_path, path="r.pdf", page=6)


async def test_a_long_page_is_read_in_parts(tmp_path: Path) -> None:
    (tmp_path / "r.pdf").write_bytes(make_pdf(lines_of(*[f"line {i} of words" for i in range(35)])))
    first = await reading(tmp_path, 500, path="r.pdf")
    assert "[page 1 of 1, part 1 of 2]" in first and first.endswith("with page=1, part=2]")
    assert "line 34" in await reading(tmp_path, 500, path="r.pdf", page=1, part=2)
    with pytest.raises(ToolError, match="has 2 parts"):
        await reading(tmp_path, 500, path="r.pdf", page=1, part=3)


async def test_a_workbook_says_where_its_sheets_begin(tmp_path: Path) -> None:
    (tmp_path / "b.xlsx").write_bytes(make_xlsx(600))
    text = await reading(tmp_path, path="b.xlsx")
    assert "Sheets: 'Sales' on page 1, 'Costs' on page " in text
    assert text.count("| Month | Amount |") == text.count("[page ")  # the header is on every page


@pytest.mark.parametrize(
    "path", ["../secret.csv", "link.csv", "/etc/passwd", "missing.pdf", "folder", ".env", "pipe"]
)
async def test_nothing_but_files_below_the_root_is_read(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "secret.csv").write_text("a,b")
    (root / ".env").write_text("KEY=1")
    (root / "link.csv").symlink_to(tmp_path / "secret.csv")
    os.mkfifo(root / "pipe")
    with pytest.raises(ToolError):
        await reading(root, path=path)


async def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    async with ReadDocument(tmp_path).open(print) as tools:
        for words in ("before", "after!"):
            (tmp_path / "a.csv").write_text(f"h\n{words}\n")
            assert words in (await tools[0].handler({"path": "a.csv"})).content
