"""Print a command of the README by its name: `python3 tests/readme_command.py test`. Standard library only."""

import re
import sys
from pathlib import Path

readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
blocks = re.findall(r"<!-- command: (\w+) -->\n```bash\n(.*?)\n```", readme, re.DOTALL)
print(dict(blocks)[sys.argv[1]])
