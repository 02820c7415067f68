"""Tasks about a museum's web site: its pages, tables and links, and a text that comes in parts."""

from __future__ import annotations

import json
from datetime import date

from agentkit.evals.tasks.answers import Date, Name, NotFound, Number, Says, Time
from agentkit.evals.tasks.task import Group, Task

__all__ = ["GROUP"]

HOME = "http://kestrel-museum.example/"
FERRY = "http://sound-ferries.example/"


def _museum(title: str, *blocks: str) -> str:
    menu = "".join(
        f'<li><a href="/{path}">{text}</a></li>'
        for path, text in (
            ("", "Home"),
            ("opening.html", "Opening hours"),
            ("tickets.html", "Tickets"),
            ("collection.html", "Collection"),
            ("events.html", "Events"),
            ("people.html", "People"),
            ("getting-here.html", "Getting here"),
        )
    )
    return _page(title, f"<nav><ul>{menu}</ul></nav>", *blocks)


def _page(title: str, menu: str, *blocks: str) -> str:
    return (
        f"<!doctype html><html><head><title>{title}</title></head><body>{menu}"
        f"<main><h1>{title}</h1>{''.join(blocks)}</main></body></html>"
    )


def _table(header: str, *rows: str) -> str:
    def row(cells: str, kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{c.strip()}</{kind}>" for c in cells.split("|")) + "</tr>"

    return f"<table>{row(header, 'th')}{''.join(row(r, 'td') for r in rows)}</table>"


SHIPS = {  # name: (kind, length in metres, launched)
    "Petrel": ("a pilot cutter", 17.4, 1893),
    "Marigold": ("a steam tug", 24.1, 1911),
    "Solan": ("a herring drifter", 26.8, 1902),
    "Ann Rose": ("a lifeboat", 11.6, 1938),
}


def _ship(name: str) -> str:
    kind, metres, year = SHIPS[name]
    return _museum(
        name,
        f"<p>The {name} is {kind}. She was built at the Kestrel yard and launched in {year}. From stem to stern she "
        f"measures {metres} metres. Volunteers look after her on Saturdays, and in summer her deck is open to "
        "visitors, weather permitting.</p>",
    )


def _path(name: str) -> str:
    return f"ships/{name.lower().replace(' ', '-')}.html"


def _chronicle() -> str:
    """Some 16,000 characters: a page in two parts."""
    cargo = "salt timber coal slate barley wool iron herring".split()
    master = "Abel Brand;Ewan Tait;Moira Lusk;Piers Gow;Ada Finch;Colm Reid".split(";")
    told = {
        1958: " In October the rope store burned down.",
        1931: " The lighthouse was given electric light.",
        1874: " The breakwater was finished.",
    }
    return "".join(
        f"<p>In {year} the harbour counted {210 + year * 37 % 113} ships. Most of them carried "
        f"{cargo[year * 5 % 8]}, and {master[year // 9 % 6]} was the harbour master.{told.get(year, '')}</p>"
        for year in range(1860, 1990)
    )


VISITORS = {
    "January": 1840,
    "February": 2115,
    "March": 2790,
    "April": 4032,
    "May": 5218,
    "June": 6120,
    "July": 8455,
    "August": 8391,
    "September": 5077,
    "October": 3966,
    "November": 2204,
    "December": 1987,
}

PAGES = {
    HOME: _museum(
        "Kestrel Harbour Museum",
        "<p>Four old ships, a rope walk and three hundred years of harbour life, in the old fish market of Kestrel. "
        "On these pages you find when we are open, what a ticket costs and who we are.</p>"
        '<p>Read the <a href="/chronicle.html">chronicle of the harbour</a>, a ship count for each year.</p>',
    ),
    f"{HOME}opening.html": _museum(
        "Opening hours",
        "<p>We are open all year round except on Mondays. Last admission is half an hour before we close. The ships may be "
        "closed to visitors in a storm; the rope walk and the market hall are open all the same. On the long evening of the "
        "week a volunteer shows how ropes are made, with the machines of 1890.</p>",
        _table(
            "Day | Opens | Closes",
            "Tuesday | 10:00 | 17:00",
            "Wednesday | 10:00 | 17:00",
            "Thursday | 12:00 | 20:45",
            "Friday | 10:00 | 17:00",
            "Saturday | 9:30 | 18:00",
            "Sunday | 9:30 | 16:15",
        ),
    ),
    f"{HOME}tickets.html": _museum(
        "Tickets",
        "<p>Tickets are sold at the door and are valid for the whole day, on all ships.</p>",
        _table(
            "Ticket | Price in euros",
            "Adult | 13.50",
            "Child (6 to 15) | 5.25",
            "Child under 6 | 0.00",
            "Student | 9.00",
        ),
        "<p>Groups should write to us some days ahead.</p>",
    ),
    f"{HOME}collection.html": _museum(
        "Collection",
        "<p>These ships lie at our quay, all of them afloat and most of them fit to sail. Each has a page of its own, with "
        "her measures and her story, and with what can be seen on board.</p><ul>",
        *(f'<li><a href="/{_path(name)}">{name}</a>, {ship[0]}</li>' for name, ship in SHIPS.items()),
        "</ul>",
    ),
    **{HOME + _path(name): _ship(name) for name in SHIPS},
    f"{HOME}events.html": _museum(
        "Events",
        "<p>All events take place in the rope walk unless it says otherwise. No booking is needed, but seats are few, so "
        "please come in good time. What we do is free of charge for all who have a ticket for the day. If the weather turns, "
        "look here on the morning itself for news.</p>",
        _table(
            "Date | Event | Led by",
            "12 April 2026 | Splicing for beginners | Ewa Marsh",
            "26 April 2026 | Songs of the sea | Kestrel choir",
            "9 May 2026 | Knots for children | Ewa Marsh",
            "23 May 2026 | Splicing for the advanced | Ewa Marsh",
            "6 June 2026 | Night of the ships | all of us",
        ),
    ),
    f"{HOME}people.html": _museum(
        "People",
        "<p>The museum is run by a small team and some sixty volunteers, who keep the ships afloat, lead visitors round and "
        "look after the archive. Those who would like to join them are welcome on any Saturday morning.</p>",
        _table(
            "Name | Post",
            "Harriet Quill | Director",
            "Bram Oduya | Curator of ships",
            "Ewa Marsh | Education",
            "Silas Thorne | Front of house",
        ),
    ),
    f"{HOME}getting-here.html": _museum(
        "Getting here",
        "<p>The museum is ten minutes on foot from the railway station, along the quay. From the islands take the "
        f'ferry of line 4; its <a href="{FERRY}line4.html">timetable</a> is on the pages of Sound Ferries.</p>',
    ),
    f"{FERRY}line4.html": _page(
        "Line 4: Kestrel and the islands",
        "",
        "<p>Boats leave from the north pier, a few steps from the museum. Bicycles travel free, and so do dogs on a "
        "lead. In a storm the boats may stay in harbour; then a notice hangs at the pier, and tickets keep their value. "
        "This timetable is valid all year round, on holidays as on Sundays.</p>",
        _table(
            "Days | First boat from Kestrel | Last boat from Kestrel",
            "Monday to Friday | 6:40 | 21:25",
            "Saturday | 7:50 | 22:55",
            "Sunday | 8:35 | 19:05",
        ),
    ),
    f"{HOME}chronicle.html": _museum("Chronicle of the harbour", _chronicle()),
    f"{HOME}visitors.json": json.dumps({"year": 2025, "visitors": VISITORS}),
}

TASKS = (
    Task(
        "table",
        f"Until what time is the museum open on Thursdays? See {HOME}opening.html",
        Time(20, 45),
        solution=(("web_fetch", {"url": f"{HOME}opening.html"}),),
    ),
    Task(
        "json",
        f"{HOME}visitors.json has the museum's visitors by month. Which month had the most? Answer with its name.",
        Name("July", tuple(VISITORS)),
        solution=(("web_fetch", {"url": f"{HOME}visitors.json"}),),
    ),
    Task(
        "price",
        f"What do tickets for two adults and three children of 8, 10 and 13 cost in all? The prices are at "
        f"{HOME}tickets.html",
        Number(42.75),
        solution=(
            ("web_fetch", {"url": f"{HOME}tickets.html"}),
            ("calculator", {"expression": "2 * 13.50 + 3 * 5.25"}),
        ),
    ),
    Task(
        "event",
        f"When does the museum have an event for children? Look at {HOME}events.html and give the date as YYYY-MM-DD.",
        Date(date(2026, 5, 9)),
        solution=(("web_fetch", {"url": f"{HOME}events.html"}),),
    ),
    Task(
        "person",
        f"Who is the curator of ships at the museum? Its web site begins at {HOME}",
        Name("Bram Oduya", ("Harriet Quill", "Ewa Marsh", "Silas Thorne")),
        solution=(("web_fetch", {"url": HOME}), ("web_fetch", {"url": f"{HOME}people.html"})),
    ),
    Task(
        "ferry",
        f"When does the last ferry leave Kestrel on a Sunday? Begin at {HOME}getting-here.html and follow the link "
        "to the timetable.",
        Time(19, 5),
        solution=(
            ("web_fetch", {"url": f"{HOME}getting-here.html"}),
            ("web_fetch", {"url": f"{FERRY}line4.html"}),
        ),
    ),
    Task(
        "longest",
        f"Which of the museum's ships is the longest? {HOME}collection.html links to a page about each of them. "
        "Answer with her name.",
        Name("Solan", tuple(SHIPS)),
        solution=(
            ("web_fetch", {"url": f"{HOME}collection.html"}),
            *(("web_fetch", {"url": HOME + _path(name)}) for name in SHIPS),
        ),
        max_requests=10,
    ),
    Task(
        "paged",
        f"How many ships did the harbour count in the year in which the rope store burned down? It is somewhere in the "
        f"long text at {HOME}chronicle.html",
        Number(210 + 1958 * 37 % 113),
        solution=(
            ("web_fetch", {"url": f"{HOME}chronicle.html"}),
            ("web_fetch", {"url": f"{HOME}chronicle.html", "page": 2}),
        ),
    ),
    Task(
        "missing",
        f"What does {HOME}tickets.html say about the price for dogs?",
        NotFound(
            r"\bdogs?\b[^.,;]{0,30}([€$] ?\d|\d\.\d\d|\d euros?)|\d\.\d\d[^.,;]{0,12}\bfor (a )?dogs?\b"
        ),
        solution=(("web_fetch", {"url": f"{HOME}tickets.html"}),),
    ),
    Task("direct", "What does the abbreviation HTML stand for?", Says(("hypertext markup language",))),
)

GROUP = Group("web", ("web_fetch", "read_file", "calculator", "clock"), TASKS, pages=PAGES)
