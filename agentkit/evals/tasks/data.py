"""Tasks about data in CSV and JSON files, for the code interpreter."""

from __future__ import annotations

import json
from collections import Counter
from datetime import date, timedelta
from statistics import mean, median
from typing import Any

from agentkit.evals.tasks.answers import Name, NotFound, Number, Says
from agentkit.evals.tasks.task import Group, Task

__all__ = ["GROUP"]

REGIONS = ("North", "East", "South", "West")
PRICES = {"kettle": 34.5, "toaster": 41.0, "blender": 59.9, "scale": 18.25, "grill": 89.0}
SALES = [
    (
        (date(2025, 1, 1) + timedelta(days=i)).isoformat(),
        REGIONS[(i * 7 + i // 9 + 2) % 11 * 3 % 4],
        tuple(PRICES)[(i * 5 + i // 3) % 5],
        3 + i * 37 % 23,
    )
    for i in range(181)
]
WEATHER: list[dict[str, Any]] = [
    {
        "date": (date(2025, 6, 1) + timedelta(days=i)).isoformat(),
        "max_c": round(19 + i * 17 % 13 + i * 7 % 10 / 10, 1),
        "rain_mm": max(0, i * 11 % 17 - 9),
    }
    for i in range(92)
]
DEPARTMENTS = ("Engineering", "Sales", "Support", "Finance")
FIRST = "Ada Ben Cleo Dan Eva Finn Gita Hugo Iris Jon Kim Leo Mia Noah Olga Paul Rosa Sam Tess Uma".split()
STAFF = [
    (f"{name} {last}", DEPARTMENTS[i * 3 % 7 % 4], 41_000 + i * 7_919 % 38_000, 2012 + i * 5 % 13)
    for i, (name, last) in enumerate(
        (name, last) for last in ("Berg", "Costa") for name in FIRST if name + last != "UmaCosta"
    )
]
CUSTOMERS = {
    f"C{i + 1:02}": f"{word} Ltd" for i, word in enumerate("Alder Birch Cedar Elm Fir Hazel".split())
}
ORDERS: list[dict[str, Any]] = [
    {"order": 1000 + i, "customer": f"C{(i * 5 % 7 + 2) % 6 + 1:02}", "total": round(20 + i * 43.7 % 180, 2)}
    for i in range(48)
]
SENSORS = [
    (f"2025-11-{1 + i // 12:02} {i % 12 * 2:02}:00", 18 + i % 5, "" if i % 17 == 4 else str(40 + i * 7 % 21))
    for i in range(120)
]


def _csv(header: str, rows: list[tuple[object, ...]]) -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def _revenue() -> Counter[str]:
    revenue: Counter[str] = Counter()
    for _, region, product, units in SALES:
        revenue[region] += round(units * PRICES[product] * 100)
    return revenue


def _spent() -> Counter[str]:
    spent: Counter[str] = Counter()
    for order in ORDERS:
        spent[CUSTOMERS[order["customer"]]] += round(order["total"] * 100)
    return spent


def _monthly() -> str:
    units: Counter[str] = Counter()
    for day, _, _, n in SALES:
        units[day[:7]] += n
    return _csv("month,units", sorted(units.items()))


def _july() -> list[float]:
    return [day["max_c"] for day in WEATHER if day["date"].startswith("2025-07")]


PANDAS = "import json\nimport pandas as pd\n"

TASKS = (
    Task(
        "rows",
        "How many rows does sales.csv have, not counting its header?",
        Number(len(SALES)),
        solution=(("code_interpreter", {"code": "print(len(open('sales.csv').readlines()) - 1)"}),),
    ),
    Task(
        "sum",
        "How many kettles were sold in all, according to sales.csv?",
        Number(sum(units for _, _, product, units in SALES if product == "kettle")),
        solution=(
            ("read_file", {"path": "sales.csv", "max_lines": 5}),
            (
                "code_interpreter",
                {
                    "code": PANDAS
                    + "d = pd.read_csv('sales.csv')\nprint(d[d['product'] == 'kettle'].units.sum())"
                },
            ),
        ),
    ),
    Task(
        "region",
        "Which region had the highest revenue (units times unit price) in sales.csv? Answer with its name.",
        Name(_revenue().most_common(1)[0][0], REGIONS),
        solution=(
            (
                "code_interpreter",
                {
                    "code": PANDAS + "d = pd.read_csv('sales.csv')\n"
                    "print((d.units * d.unit_price).groupby(d.region).sum().idxmax())"
                },
            ),
        ),
    ),
    Task(
        "average",
        "What was the average maximum temperature in July 2025, according to weather.json? "
        "Round it to two decimals.",
        Number(round(mean(_july()), 2), within=0.006),
        solution=(
            (
                "code_interpreter",
                {
                    "code": PANDAS + "d = pd.DataFrame(json.load(open('weather.json')))\n"
                    "print(round(d[d.date.str.startswith('2025-07')].max_c.mean(), 2))"
                },
            ),
        ),
    ),
    Task(
        "median",
        "What is the median salary in the Engineering department? The data is in staff.csv.",
        Number(median(salary for _, department, salary, _ in STAFF if department == "Engineering")),
        solution=(
            (
                "code_interpreter",
                {
                    "code": PANDAS
                    + "d = pd.read_csv('staff.csv')\nd[d.department == 'Engineering'].salary.median()"
                },
            ),
        ),
    ),
    Task(
        "gaps",
        "In sensors.csv some measurements have no humidity. How many?",
        Number(sum(not humidity for _, _, humidity in SENSORS)),
        solution=(
            (
                "code_interpreter",
                {"code": PANDAS + "print(pd.read_csv('sensors.csv').humidity.isna().sum())"},
            ),
        ),
    ),
    Task(
        "join",
        "Which customer has spent the most in total? The orders are in orders.json, the customers' names in "
        "customers.json. Answer with the name.",
        Name(_spent().most_common(1)[0][0], tuple(CUSTOMERS.values())),
        solution=(
            ("read_file", {"path": "customers.json"}),
            ("read_file", {"path": "orders.json", "max_lines": 5}),
            (
                "code_interpreter",
                {
                    "code": PANDAS + "d = pd.DataFrame(json.load(open('orders.json')))\n"
                    "best = d.groupby('customer').total.sum().idxmax()\n"
                    "print(json.load(open('customers.json'))[best])"
                },
            ),
        ),
    ),
    Task(
        "monthly",
        "Write a file monthly.csv with the units sold in each month of sales.csv: a header line month,units and "
        "then a line for each month in order, such as 2025-01,123.",
        becomes={"monthly.csv": _monthly()},
        solution=(
            (
                "code_interpreter",
                {
                    "code": PANDAS + "d = pd.read_csv('sales.csv')\nd['month'] = d.date.str[:7]\n"
                    "d.groupby('month').units.sum().reset_index().to_csv('monthly.csv', index=False)"
                },
            ),
        ),
    ),
    Task(
        "missing",
        "What is the average age of the people in staff.csv?",
        NotFound(r"average age (is|of .{0,40}is) (approximately |about )?\d"),
        solution=(("read_file", {"path": "staff.csv"}),),
    ),
    Task(
        "direct",
        "What do the letters CSV stand for?",
        Says(
            (
                "comma-separated value",
                "comma separated value",
                "comma-separated values",
                "comma separated values",
            )
        ),
    ),
)

GROUP = Group(
    "data",
    ("code_interpreter", "read_file", "calculator", "clock"),
    TASKS,
    files={
        "sales.csv": _csv(
            "date,region,product,units,unit_price",
            [(day, region, product, n, PRICES[product]) for day, region, product, n in SALES],
        ),
        "weather.json": json.dumps(WEATHER, indent=1),
        "staff.csv": _csv("name,department,salary,since", [*STAFF]),
        "customers.json": json.dumps(CUSTOMERS, indent=1),
        "orders.json": json.dumps(ORDERS),
        "sensors.csv": _csv("time,temperature,humidity", [*SENSORS]),
    },
)
