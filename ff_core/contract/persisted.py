"""Versions of a job on disk: what a folder of `persist_dir` holds, and which of them a job can go on from.

    PERSIST_DIR/version-00000007-120/rank00003.slot   one rank's state of version 120 (a file of arena_file)
                                     ...
                                     manifest.json    written last: with it the version is complete
    PERSIST_DIR/constants/rank00000-5d3c.tensors      frozen state: written once, used by all versions

The first number of a folder, 7, counts what was written. The newest version is the one with the highest: a script that
is started again from its beginning counts its iterations anew.

A folder without a manifest is of a version that was not finished. It counts for nothing. Rules: docs/persist.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ff_core.contract.alike import differences, launch_line
from ff_core.contract.job import JobSpec
from ff_core.errors import ConfigError

MANIFEST = "manifest.json"
CONSTANTS = "constants"
_FORMAT = 1
_SCRIPT = "script and its arguments"
#: Of the launcher's line: what must be the same, or the script is not the one whose state this is.
_MUST = (_SCRIPT, "PYTHONHASHSEED")
#: What had better be the same.
_SHOULD = "version of "


@dataclass(frozen=True, slots=True)
class Part:
    """A file. file: its name.  size: bytes."""

    file: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One complete version.

    id: name of its folder.  version: finished iterations.  epoch: in which its slots were complete.
    ranks: rank -> its file in the folder.  layouts: rank -> layout of its own arena.
    constants: lowest rank of a redundancy group -> its file in the folder CONSTANTS.
    groups: redundancy groups, as the ranks said; empty: all ranks are one.
    frozen: ranks that hold frozen state.  on_device: some hold state on a device.
    settings: the job's, Settings.to_wire().  line: of line_of().
    """

    id: str
    version: int
    epoch: int
    world_size: int
    ranks: dict[int, Part]
    layouts: dict[int, dict[str, int]]
    constants: dict[int, Part] = field(default_factory=dict)
    groups: list[list[int]] = field(default_factory=list)
    frozen: list[int] = field(default_factory=list)
    on_device: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    line: dict[str, str] = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Manifest:
        """What to_wire() gave, also after JSON, which makes texts of numbers that are keys. Raises TypeError, KeyError,
        ValueError for anything else."""
        values = dict(fields)
        for name in ("ranks", "constants"):
            values[name] = {int(rank): Part(**part) for rank, part in values[name].items()}
        values["layouts"] = {int(rank): layout for rank, layout in values["layouts"].items()}
        return cls(**values)


def encode(manifest: Mapping[str, Any]) -> bytes:
    """The content of the file MANIFEST. manifest: Manifest.to_wire()."""
    body = json.dumps(manifest, sort_keys=True)
    return json.dumps({"format": _FORMAT, "sha256": _sum(body), "manifest": body}).encode()


def decode(data: bytes) -> Manifest:
    """What `encode` gave. Raises ValueError, saying what is wrong."""
    try:
        outer = json.loads(data)
        form, wanted, body = outer["format"], outer["sha256"], outer["manifest"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"its {MANIFEST} is damaged") from None
    if form != _FORMAT:
        raise ValueError(f"it has format {form}, this version of fftrain reads {_FORMAT}")
    if not isinstance(body, str) or _sum(body) != wanted:
        raise ValueError(f"its {MANIFEST} is damaged: the checksum does not match")
    try:
        return Manifest.from_wire(json.loads(body))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its {MANIFEST} cannot be read ({error})") from None


def line_of(job: JobSpec) -> dict[str, str]:
    """What a version says of its job, and the next start compares: its command line, versions, the script's content."""
    words = [word for word in job.entrypoint if Path(word).is_file()]
    script = hashlib.sha256(Path(words[0]).read_bytes()).hexdigest()[:16] if words else ""
    return {**launch_line(job), "version of the script (sha256)": script}


def _sum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def folder_name(serial: int, version: int) -> str:
    """Of a version that is about to be written, the `serial`th in its directory."""
    return f"version-{serial:08d}-{version}"


def rank_file(rank: int) -> str:
    return f"rank{rank:05d}.slot"


def constants_path(directory: str | Path, file: str) -> str:
    """Of a file with frozen state."""
    return str(Path(directory) / CONSTANTS / file)


def complete(directory: str | Path) -> list[Path]:
    """Folders of versions that have a manifest, newest first. Empty if there is no such directory."""
    found = [path.parent for path in Path(directory).glob(f"version-*/{MANIFEST}")]
    return sorted(found, key=lambda path: path.name, reverse=True)


@dataclass(frozen=True, slots=True)
class Found:
    """usable: newest first.  notes: why others are passed over, and what differs.  serial: of what is written next."""

    usable: list[Manifest] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    serial: int = 1


def find(job: JobSpec, directory: str) -> Found:
    """The versions in `directory` that `job` can go on from, as far as that shows without reading the state itself.

    Raises ConfigError where versions are there and none can be used: the job must not begin anew behind the user's
    back.
    """
    usable, notes, folders = [], [], complete(directory)
    line = line_of(job) if folders else {}
    for folder in folders:
        try:
            manifest = decode((folder / MANIFEST).read_bytes())
            _whole(manifest, folder)
        except (OSError, ValueError) as error:
            notes.append(f"{folder} is passed over: {error}")
            continue
        _fits(manifest, job.world_size, line, folder)
        usable.append(manifest)
    if folders and not usable:
        raise ConfigError(
            f"persist_dir {directory} has versions, but none that the job can go on from: {'; '.join(notes)}. "
            + _remedy(directory)
        )
    if usable:
        changed = {name: text for name, text in usable[0].line.items() if name.startswith(_SHOULD)}
        now = {name: text for name, text in line.items() if name in changed}
        notes += [f"since {usable[0].id} was written: {_then(text)}" for text in differences(now, changed)]
    serials = [int(name) for path in Path(directory).glob("version-*") if (name := path.name.split("-")[1]).isdecimal()]
    return Found(usable, notes, 1 + max(serials, default=0))


def _whole(manifest: Manifest, folder: Path) -> None:
    """Raises ValueError if a file is missing, or has another size."""
    files = [(folder / part.file, part.size) for part in manifest.ranks.values()]
    files += [(Path(constants_path(folder.parent, part.file)), part.size) for part in manifest.constants.values()]
    for path, size in files:
        if not path.is_file():
            raise ValueError(f"{path.name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {size}")
    if sorted(manifest.ranks) != list(range(manifest.world_size)) or manifest.id != folder.name:
        raise ValueError(f"its {MANIFEST} is of something else")


def _fits(manifest: Manifest, world_size: int, line: Mapping[str, str], folder: Path) -> None:
    """Raises ConfigError if `manifest` is another job's. line: line_of() this job."""
    problems = []
    if manifest.world_size != world_size:
        problems.append(f"it has {manifest.world_size} ranks, this job {world_size}")
    now, then = ({name: of.get(name, "") for name in _MUST} for of in (line, manifest.line))
    problems += [_then(text) for text in differences(now, then)]
    if problems:
        raise ConfigError(f"{folder} is of another job: {'; '.join(problems)}. {_remedy(str(folder.parent))}")


def _then(text: str) -> str:
    return text.replace("at node 0 it is", "there it was")


def _remedy(directory: str) -> str:
    return (
        "Start the job as it was started then; or, to begin anew, give another persist_dir, or remove "
        f"{directory}/version-*"
    )
