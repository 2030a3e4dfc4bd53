"""Words of no framework: a message that has one has asked the adapter for it."""

from __future__ import annotations

from ff_core.contract.adapter import Remedies

SHOWN = Remedies(**{field: f"<{field}>" for field in Remedies._fields})
