"""docs/protocol.md tells of every message, and of its path, what the definitions say."""

from __future__ import annotations

import re
from pathlib import Path

from ff_core.contract.messages import MESSAGES

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def test_the_table_of_messages() -> None:
    text = PAGE.read_text()
    table = text[text.index("| message | from | to | meaning |") :]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w →]+) \| (.+) \|$", table, re.MULTILINE)
    assert len(rows) == len({name for name, *_ in rows}), "a message has two rows"
    paths = {name: (first, *rest.split(" → ")) for name, first, rest, _ in rows}
    assert paths == {name: definition.path for name, definition in MESSAGES.items()}


def test_messages_in_the_text_exist() -> None:
    """A name that is written like a call, `halt(e')`, is a message's or one of a worker's methods."""
    before = PAGE.read_text().partition("| message | from")[0]
    methods = {"start_training", "enter_step", "leave_step"}
    named = set(re.findall(r"`(\w+)\(", before)) - methods
    assert named and named <= MESSAGES.keys() | {"peers"}, named - MESSAGES.keys()
