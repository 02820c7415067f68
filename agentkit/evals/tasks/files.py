"""Tasks about the files of a small team: finding, reading, writing, changing them."""

from __future__ import annotations

from agentkit.evals.tasks.answers import Name, NotFound, Number, Says
from agentkit.evals.tasks.task import Group, Task

__all__ = ["GROUP"]

APP_INI = """\
[server]
host = 0.0.0.0
port = 8473
workers = 6

[log]
level = info
file = logs/app.log

[mail]
level = all
sender = office@lindgren.example
"""

KICKOFF = """\
# Kick-off, 14 January 2026

Present: Agnes, Tomas, Priya, Olek

- The spring fair is on 23 May.
- Agnes keeps the budget, Olek writes the invitations.
- The venue is still open.
"""

BUDGET = """\
# Budget, 3 February 2026

Present: Agnes, Priya

- 6,400 euros in all, of which 1,900 are for the venue.
- Priya asks for a second offer from the printers.
"""

VENUE = """\
# Venue, 20 February 2026

Present: Agnes, Tomas, Priya

- We take the old customs hall.
- Priya visits it with Tomas; the deposit is paid by Tomas once Olek has the contract.
"""

TODO = """\
# To do

- [x] Order name badges
- [ ] Call the printers
- [x] Book the sound system
- [ ] Write the invitations
- [ ] Rent two vans
- [x] Ask the fire brigade
"""

TODO_OPEN = """\
# To do

- [ ] Call the printers
- [ ] Write the invitations
- [ ] Rent two vans
"""

DONE = """\
# Done

- [x] Find a date
"""

DONE_MORE = (
    DONE
    + """\
- [x] Order name badges
- [x] Book the sound system
- [x] Ask the fire brigade
"""
)

CONTACTS = """\
name,role,email,phone
Agnes Holm,treasurer,agnes@lindgren.example,+46 8 555 0121
Tomas Keller,logistics,tomas@lindgren.example,
Priya Nair,programme,priya@lindgren.example,+46 8 555 0177
Olek Dudek,press,olek@lindgren.example,+46 8 555 0143
"""

GUIDE = {
    "docs/intro.md": "# Lumen\n\nLumen prints tickets. Start it with `run.sh`.\n",
    "docs/faq.md": "# Questions\n\nWhat does Lumen cost? Nothing.\n\nIs there a manual? See docs/intro.md.\n",
    "docs/licence.md": "# Licence\n\nFree to use, also for fairs that charge for entry.\n",
    "docs/printing.md": "# Printing\n\nLumen needs a printer that speaks ESC/POS.\nStop it with Ctrl-C.\n",
}


def _log() -> str:
    lines = []
    for i in range(90):
        at = f"2026-03-0{1 + i // 30} {8 + i % 30 // 3:02}:{i * 7 % 60:02}"
        if i % 13 == 6:
            lines.append(f"{at} ERROR printer {i % 4 + 1} does not answer")
        elif i % 5 == 2:
            lines.append(f"{at} WARNING queue is long: {20 + i} tickets")
        else:
            lines.append(f"{at} INFO printed ticket {4000 + i * 3}")
    return "\n".join(lines) + "\n"


KEYS = {
    "keys/README.md": "Keys of the customs hall. Which key opens what is in keys/doors.txt.\n",
    "keys/doors.txt": "front gate: key 3\nstore room: key 11\ncellar: key 7\nroof: key 11b\n",
    "keys/holders.txt": "key 3: Agnes Holm\nkey 7: Olek Dudek\nkey 11: Priya Nair\nkey 11b: Tomas Keller\n",
}

PEOPLE = ("Agnes", "Tomas", "Priya", "Olek")

TASKS = (
    Task(
        "setting",
        "Which port is set for the server in config/app.ini?",
        Number(8473),
        solution=(("read_file", {"path": "config/app.ini"}),),
    ),
    Task(
        "find",
        "Somewhere in our notes it says who pays the deposit for the venue. Who is it? Answer with the name.",
        Name("Tomas", PEOPLE),
        solution=(("search_files", {"query": "deposit"}),),
    ),
    Task(
        "count",
        "How many lines of logs/app.log are errors (marked ERROR)?",
        Number(7),
        solution=(("search_files", {"query": "ERROR", "path": "logs/app.log"}),),
    ),
    Task(
        "create",
        "Make a file notes/2026-03-02-print.md with two lines: the first is '# Printing' and the second "
        "is 'Present: Agnes, Olek'.",
        becomes={"notes/2026-03-02-print.md": "# Printing\nPresent: Agnes, Olek\n"},
        solution=(
            (
                "write_file",
                {"path": "notes/2026-03-02-print.md", "content": "# Printing\nPresent: Agnes, Olek\n"},
            ),
        ),
    ),
    Task(
        "change",
        "Set the log level in config/app.ini to debug, and leave everything else in it as it is.",
        becomes={"config/app.ini": APP_INI.replace("level = info", "level = debug")},
        solution=(
            ("read_file", {"path": "config/app.ini"}),
            (
                "edit_file",
                {"path": "config/app.ini", "old_text": "level = info", "new_text": "level = debug"},
            ),
        ),
    ),
    Task(
        "rename",
        "Our product is now called Aurora instead of Lumen. Change its name in all files in docs/.",
        becomes={p: text.replace("Lumen", "Aurora") for p, text in GUIDE.items() if "Lumen" in text},
        solution=(
            ("search_files", {"query": "Lumen", "path": "docs"}),
            *(
                (
                    "edit_file",
                    {"path": path, "old_text": "Lumen", "new_text": "Aurora", "replace_all": True},
                )
                for path, text in GUIDE.items()
                if "Lumen" in text
            ),
        ),
        max_requests=10,
    ),
    Task(
        "move",
        "Move the finished items, those marked [x], from todo.md to the end of done.md. Keep their order and "
        "wording, and change nothing else.",
        becomes={"todo.md": TODO_OPEN, "done.md": DONE_MORE},
        solution=(
            ("read_file", {"path": "todo.md"}),
            ("read_file", {"path": "done.md"}),
            ("write_file", {"path": "done.md", "content": DONE_MORE}),
            ("write_file", {"path": "todo.md", "content": TODO_OPEN}),
        ),
        max_requests=10,
    ),
    Task(
        "chain",
        "Who holds the key to the store room of the customs hall? Start with keys/README.md.",
        Name("Priya", PEOPLE),
        solution=(
            ("read_file", {"path": "keys/README.md"}),
            ("read_file", {"path": "keys/doors.txt"}),
            ("list_files", {"path": "keys"}),
            ("read_file", {"path": "keys/holders.txt"}),
        ),
    ),
    Task(
        "missing",
        "What is Tomas Keller's phone number? It should be in contacts.csv.",
        NotFound(r"\+\d|\d{3}"),
        solution=(("read_file", {"path": "contacts.csv"}),),
    ),
    Task(
        "direct",
        "Someone sent me a file that ends in .zip. What kind of file is that, in a sentence? Never mind my own files.",
        Says(("compressed", "archive", "compression", "compresses", "archives")),
    ),
)

GROUP = Group(
    "files",
    ("files", "calculator", "clock"),
    TASKS,
    files={
        "config/app.ini": APP_INI,
        "contacts.csv": CONTACTS,
        "done.md": DONE,
        "logs/app.log": _log(),
        "notes/2026-01-14-kickoff.md": KICKOFF,
        "notes/2026-02-03-budget.md": BUDGET,
        "notes/2026-02-20-venue.md": VENUE,
        "todo.md": TODO,
        **GUIDE,
        **KEYS,
    },
)
