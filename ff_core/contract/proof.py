"""Whether a process that listens somewhere is proven dead: its machine answers that nobody listens there.

Nothing else is proof. A machine that does not answer may be cut off and alive (docs/protocol.md, section 8).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

_ANSWER_S = 1.0


async def is_proven_dead(host: str, port: int) -> bool:
    """Nobody listens at `host`:`port`, and `host` says so. False after a second without an answer."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), _ANSWER_S)
    except ConnectionRefusedError:
        return True
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return False
