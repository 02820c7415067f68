"""HTML in, Markdown out: a program of its own, as a hostile page can keep a parser busy for minutes or crash it.

    python -I -S web_page.py  <  {"path": sys.path, "url": …, "seconds": …} and then, from the second line on, the HTML

Prints a JSON list of the page's title and its text, and ends after so many seconds of the processor.
"""

import json
import re
import resource
import sys
from typing import Any

MEMORY = 2_000_000_000  # bytes
BRIEF = 400  # characters: what has fewer is no article, but a form or a notice
LINKS = 60  # that are shown of such a page


def main() -> None:
    plan, _, html = sys.stdin.buffer.read().partition(b"\n")
    asked = json.loads(plan)
    resource.setrlimit(resource.RLIMIT_CPU, (asked["seconds"], asked["seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.path[:] = asked["path"]
    sys.stdout.buffer.write(json.dumps(markdown(html, asked["url"])).encode())


def markdown(html: bytes, url: str) -> tuple[str, str]:
    """The title and the text of an HTML page in UTF-8; where there is no article, all of its text and its links."""
    import trafilatura
    from trafilatura.utils import load_html

    page = html.decode(errors="replace")
    tree = load_html(page)
    if tree is None:
        return "", ""
    title = " ".join((tree.findtext(".//title") or "").split())[:300]
    text = trafilatura.extract(
        page,
        url=url,
        output_format="markdown",
        include_links=True,
        include_tables=True,
        include_comments=False,
        favor_recall=True,
    )
    text = text or ""
    everything = trafilatura.html2txt(page)
    linked = sum(len(anchor.text_content()) for anchor in tree.iter("a"))
    if len(text) < BRIEF or linked > len(everything) / 2:
        text = everything if len(everything) > len(text) + BRIEF else text
        text = "\n\n".join(filter(None, (text, links(tree, url))))
    return title, text


def links(tree: Any, url: str) -> str:
    tree.make_links_absolute(url, handle_failures="ignore")
    found: dict[str, str] = {}
    for anchor in tree.iter("a"):
        target, words = anchor.get("href", ""), " ".join(anchor.text_content().split())[:100]
        if words and re.match("https?://", target):
            found.setdefault(target, words)
        if len(found) == LINKS:
            break
    return (
        "\n".join(["Links:", *(f"- [{words}]({target})" for target, words in found.items())]) if found else ""
    )


if __name__ == "__main__":
    main()
