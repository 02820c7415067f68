"""Tasks about a bookshop's database, behind an MCP server that can be asked for tables, columns and rows."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from agentkit.evals.tasks.answers import Name, Names, NotFound, Number, Says
from agentkit.evals.tasks.task import Group, Task
from agentkit.evals.tasks.world import DATABASE

__all__ = ["GROUP"]

SCHEMA = """
CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, city TEXT, since TEXT);
CREATE TABLE supplier (id INTEGER PRIMARY KEY, name TEXT, country TEXT);
CREATE TABLE product (id INTEGER PRIMARY KEY, title TEXT, price REAL, supplier_id INTEGER REFERENCES supplier);
CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customer, ordered_on TEXT, status TEXT);
CREATE TABLE purchase_line (purchase_id INTEGER REFERENCES purchase, product_id INTEGER REFERENCES product,
                            quantity INTEGER, unit_price REAL);
CREATE TABLE staff (id INTEGER PRIMARY KEY, name TEXT, job TEXT, manager_id INTEGER REFERENCES staff);
"""

CITIES = ("Porto", "Ghent", "Turku", "Graz", "Lyon")
CUSTOMERS = tuple(
    f"{first} {last}"
    for last in ("Moreau", "Silva", "Novak")
    for first in "Alma Bruno Clara Dario Elsa Felix Greta Henri Ilse Jakob Karin Luca".split()
)
SUPPLIERS = (("Halden Press", "Norway"), ("Corvo Editora", "Portugal"), ("Blue Gate", "Ireland"))
TITLES = (
    *("The Salt Road", "Winter Harbour", "A Field of Glass", "Paper Boats", "The Quiet Engine", "Moss"),
    *("Letters to Ana", "North of Nowhere", "The Clockmaker", "Small Hours", "Red Orchard", "Undertow"),
    *("The Lantern Year", "Bridges", "Common Birds", "Saffron"),
)
UNSOLD = ("Moss", "Undertow")
STAFF = (
    (1, "Teresa Alves", "director", None),
    (2, "Viktor Lang", "head of sales", 1),
    (3, "Nadia Haddad", "head of purchasing", 1),
    (4, "Petra Simic", "shop manager", 2),
    (5, "Lena Vogt", "bookseller", 4),
    (6, "Oskar Blom", "bookseller", 4),
    (7, "Rui Pinto", "buyer", 3),
)


def _fill(database: sqlite3.Connection) -> None:
    database.executescript(SCHEMA)

    def insert(table: str, rows: Any) -> None:
        rows = [*rows]
        database.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)

    start = date(2024, 9, 1)
    insert(
        "customer",
        ((i + 1, n, CITIES[i * 4 % 11 % 5], f"{2015 + i * 7 % 9}") for i, n in enumerate(CUSTOMERS)),
    )
    insert("supplier", ((i + 1, *s) for i, s in enumerate(SUPPLIERS)))
    insert(
        "product",
        ((i + 1, t, 8.5 + i * 53 % 167 / 8, (i * 5 % 7 + 1) % 3 + 1) for i, t in enumerate(TITLES)),
    )
    insert(
        "purchase",
        (
            (
                i + 1,
                i * 23 % 41 % len(CUSTOMERS) + 1,
                (start + timedelta(days=i * 5)).isoformat(),
                "cancelled" if i % 9 == 4 else "open" if i > 132 else "shipped",
            )
            for i in range(140)
        ),
    )
    prices = dict(database.execute("SELECT id, price FROM product"))
    sold = [i for i, title in enumerate(TITLES, 1) if title not in UNSOLD]
    lines = ((i // 2 + 1, sold[(i * 11 + i // 7) % len(sold)], 1 + i * 5 % 13 % 4) for i in range(280))
    insert("purchase_line", ((p, product, n, prices[product]) for p, product, n in lines))
    insert("staff", STAFF)
    database.commit()


def _prepare(workspace: Path, place: Path) -> None:
    with closing(sqlite3.connect(place / DATABASE)) as database:
        _fill(database)


def _value(sql: str) -> Any:
    """What the database answers: the first row's first value."""
    with closing(sqlite3.connect(":memory:")) as database:
        _fill(database)
        return database.execute(sql).fetchone()[0]


TABLES = ("customer", "supplier", "product", "purchase", "purchase_line", "staff")


def _look(*tables: str) -> tuple[tuple[str, dict[str, str]], ...]:
    return (("list_tables", {}), *(("describe_table", {"table": table}) for table in tables))


IN_PORTO = "SELECT count(*) FROM customer WHERE city = 'Porto'"
DEAREST = "SELECT title FROM product ORDER BY price DESC LIMIT 1"
REVENUE = (
    "SELECT round(sum(quantity * unit_price), 2) FROM purchase_line JOIN purchase ON purchase.id = purchase_id "
    "WHERE ordered_on LIKE '2025-%' AND status = 'shipped'"
)
MOST_ORDERS = (
    "SELECT name FROM customer JOIN purchase ON customer.id = customer_id GROUP BY customer.id "
    "ORDER BY count(*) DESC LIMIT 1"
)
NEVER = "SELECT title FROM product WHERE id NOT IN (SELECT product_id FROM purchase_line)"
BEST_SUPPLIER = (
    "SELECT supplier.name FROM supplier JOIN product ON supplier.id = supplier_id "
    "JOIN purchase_line ON product.id = product_id GROUP BY product.id ORDER BY sum(quantity) DESC LIMIT 1"
)
CANCELLED = "SELECT count(*) FROM purchase WHERE status = 'cancelled'"

TASKS = (
    Task("tables", "How many tables does our database have?", Number(len(TABLES)), solution=_look()),
    Task(
        "city",
        "How many of our customers live in Porto? Look it up in the database.",
        Number(_value(IN_PORTO)),
        solution=(*_look("customer"), ("query", {"sql": IN_PORTO})),
    ),
    Task(
        "dearest",
        "Which book is the most expensive one in our database? Answer with its title.",
        Name(_value(DEAREST), TITLES),
        solution=(*_look("product"), ("query", {"sql": DEAREST})),
    ),
    Task(
        "cancelled",
        "How many purchases in the database have been cancelled?",
        Number(_value(CANCELLED)),
        solution=(*_look("purchase"), ("query", {"sql": CANCELLED})),
    ),
    Task(
        "revenue",
        "What did the shipped purchases of 2025 bring in, in all? The database has the quantities and unit prices.",
        Number(_value(REVENUE), within=0.011),
        solution=(*_look("purchase", "purchase_line"), ("query", {"sql": REVENUE})),
        max_requests=10,
    ),
    Task(
        "customer",
        "Which customer in the database has made the most purchases? Answer with the name.",
        Name(_value(MOST_ORDERS), CUSTOMERS),
        solution=(*_look("customer", "purchase"), ("query", {"sql": MOST_ORDERS})),
    ),
    Task(
        "unsold",
        "Which books in our database have never been bought? Answer with their titles.",
        Names(UNSOLD, TITLES),
        solution=(*_look("product", "purchase_line"), ("query", {"sql": NEVER})),
    ),
    Task(
        "supplier",
        "Which supplier delivers the book of which the most copies were ordered? It is in the database; all purchases "
        "count. Answer with the supplier's name.",
        Name(_value(BEST_SUPPLIER), tuple(name for name, _ in SUPPLIERS)),
        solution=(*_look("product", "supplier", "purchase_line"), ("query", {"sql": BEST_SUPPLIER})),
        max_requests=10,
    ),
    Task(
        "missing",
        "What is the e-mail address of our customer Clara Silva? See whether the database has it.",
        NotFound(r"\S+@\S+\.\w+"),
        solution=_look("customer"),
    ),
    Task(
        "direct",
        "What do the letters SQL stand for?",
        Says(("structured query language",)),
    ),
)

GROUP = Group("sql", ("database", "calculator", "clock", "web_fetch"), TASKS, prepare=_prepare)
