"""Host and port as text."""

from __future__ import annotations


def bracketed(host: str) -> str:
    """`host` as it stands before ":PORT"."""
    return f"[{host}]" if ":" in host else host


def endpoint(host: str, port: int) -> str:
    """HOST:PORT, with an IPv6 address in brackets."""
    return f"{bracketed(host)}:{port}"
