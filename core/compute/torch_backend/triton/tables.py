"""Tables of divisions: what is shipped, what ``python -m core.bench tune`` found on a device, and which of them is in force.

A file says first what it was found on. Nothing here imports torch or Triton.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from core.compute.torch_backend.triton.tiling import LANES, Division, Table, Tiling, Way, Ways, power_of_two
from core.errors import UserError
from core.interfaces.model import LINEAR_ROLES, Role

SHIPPED = {"9.0": "sm_90.toml"}
GENERAL = "9.0"  # whose table others get that none is shipped for
SETTING = "backend_torch.tiling"
TUNE = "python -m core.bench tune"
FORMATS = ("16", "8", "4", "fp8")


@dataclass(frozen=True)
class Device:
    """``triton``: its version's first two numbers, as code generation changes with them; "" where it is not known."""

    name: str
    capability: str  # "9.0"
    triton: str

    def __str__(self) -> str:
        return f"{self.name}, capability {self.capability}" + (f", Triton {self.triton}" if self.triton else "")


@dataclass(frozen=True)
class Found:
    """A file's heading: on what it was found, when, with which weights, as far as that is known."""

    device: str
    capability: str
    triton: str = ""
    torch: str = ""
    when: str = ""
    model: str = ""

    def fits(self, device: Device) -> bool:
        return (self.device, self.capability, self.triton) == (device.name, device.capability, device.triton)


def triton_of(version: str) -> str:
    """As headings have it."""
    return ".".join(version.split(".")[:2])


def _power(number: int) -> int:
    if number < 1 or number & (number - 1):
        raise ValueError("is no power of two")
    return number


PowerOfTwo = Annotated[int, AfterValidator(_power)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Way(_Strict):
    way: Literal["sums", "held", "read", "library"]
    outputs: PowerOfTwo = Field(Way.outputs, le=256)
    take: PowerOfTwo = Field(Way.take, ge=LANES, le=4096)
    warps: PowerOfTwo = Field(Way.warps, le=16)
    stages: int = Field(Way.stages, ge=1, le=8)
    rows: PowerOfTwo = Field(Way.rows, ge=16, le=256)
    overlap: bool = False
    early: bool = False


class _Division(_Strict):
    keys: PowerOfTwo = Field(ge=16, le=256)
    warps: PowerOfTwo = Field(le=16)
    shortest: int = Field(ge=1)
    stages: int = Field(2, ge=1, le=8)
    overlap: bool = False
    programs: int = Field(2, ge=1, le=64)


def shipped(capability: str = GENERAL) -> Table:
    """What comes with the package for devices of this capability, or instead of it."""
    name = SHIPPED.get(capability)
    if name is not None:
        return _shipped(name, f"the table for capability {capability} that is shipped")
    what = f"the table that is shipped for capability {GENERAL}, as there is none for {capability}; `{TUNE}` makes one"
    return _shipped(SHIPPED[GENERAL], what)


@cache
def _shipped(name: str, origin: str) -> Table:
    return read(Path(__file__).with_name(name), origin)[1]


@cache
def _fixed() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("deterministic.toml").read_text(encoding="utf-8"))


def fixed_tiling(role: Role, columns: int, value_bytes: int = 2) -> Tiling:
    """One for every number of tokens (``deterministic.toml``): no sum depends on how many there are."""
    row = _fixed()[role]
    take = min(2 * row["take"] // value_bytes, max(LANES, power_of_two(columns)))
    return Tiling(row["rows"], row["outputs"], take, dot=True, warps=row["warps"], stages=row["stages"])


def in_force(device: Device, named: Path | None = None, cache: Path | None = None) -> tuple[Table, tuple[str, ...]]:
    """The table for this device, and what has to be said about one that is not taken.

    The named file; else what was found on such a device, with such a Triton; else what is shipped.

    :raises UserError: when the file that would be taken is no table.
    """
    if named is not None:
        return read(named)[1], ()
    path = own_file(device, cache)
    if path.exists():
        found, table = read(path)
        if found.fits(device):
            return table, ()
        said = f"{path} was found on {found.device}, capability {found.capability}, Triton {found.triton or 'unknown'}"
        return shipped(device.capability), (f"{said}, and this is {device}: it is not taken; `{TUNE}` makes one for this",)
    older = sorted(each.name for each in path.parent.glob(path.name.rpartition("_triton-")[0] + "_triton-*.toml"))
    said = f"{path.parent} has {', '.join(older)}, found with another Triton than {device.triton}: `{TUNE}` makes one for this"
    return shipped(device.capability), ((said,) if older else ())


def own_file(device: Device, cache: Path | None = None) -> Path:
    """Where a table for such a device lies in the user's cache, if one was found."""
    folder = (cache or Path(platformdirs.user_cache_dir("dovetail", appauthor=False))) / "tiling"
    name = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-") or "device"
    return folder / f"{name}_{device.capability}_triton-{device.triton or 'unknown'}.toml"


def read(path: Path, origin: str = "") -> tuple[Found, Table]:
    """:raises UserError: when it cannot be read, or is no table."""
    try:
        return parsed(path.read_text(encoding="utf-8"), origin or str(path))
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError.of(
            f"the table of tilings {path} cannot be used: {what}",
            SETTING,
            f"make it anew: {TUNE} --output {path}",
            "leave out --torch-tiling, and remove the file where it lies in the cache",
        ) from error


def parsed(text: str, origin: str) -> tuple[Found, Table]:
    """:raises ValueError: when it is no table."""
    content = tomllib.loads(text)
    heading = content.pop("found", None)
    if not isinstance(heading, dict) or not {"device", "capability"} <= heading.keys():
        raise ValueError("[found] has to say its device and capability")
    known = {field.name for field in fields(Found)}
    if not re.fullmatch(r"\d+\.\d+", str(heading["capability"])):
        raise ValueError(f"[found] has the capability {heading['capability']!r}, which is none as devices have: 9.0")
    wrong = [name for name, value in heading.items() if name not in known or not isinstance(value, str)]
    if wrong:
        raise ValueError(f"[found] has {wrong[0]}, which is none of {', '.join(sorted(known))} as text")
    attention = _numbered(content.pop("attention", {}), "attention", _Division)
    ways = {format: _roles(format, content.pop(format, None)) for format in FORMATS}
    if content:
        raise ValueError(f"[{next(iter(content))}] is none of found, attention, {', '.join(FORMATS)}")
    divisions = tuple((most, Division(**row.model_dump())) for most, row in attention)
    return Found(**heading), Table(ways, divisions, origin)


def _roles(format: str, roles: Any) -> dict[str, Ways]:
    if not isinstance(roles, dict) or set(roles) != set(LINEAR_ROLES):
        raise ValueError(f"[{format}] has to have each of {', '.join(LINEAR_ROLES)}, and nothing else")
    return {role: _ways(f"{format}.{role}", dict(rows)) for role, rows in roles.items()}


def _ways(where: str, rows: dict[str, Any]) -> Ways:
    columns = rows.pop("columns", None)
    if type(columns) is not int or columns < 1:
        raise ValueError(f"[{where}] has to say columns, a whole number of at least 1")
    return Ways(columns, tuple((most, Way(**row.model_dump())) for most, row in _numbered(rows, where, _Way)))


def _numbered(rows: Any, where: str, of: type[BaseModel]) -> list[tuple[int, BaseModel]]:
    if not isinstance(rows, dict) or not rows or not all(key.isdecimal() and int(key) for key in rows):
        raise ValueError(f"[{where}] has to have rows, each under the number of tokens up to which it holds")
    try:
        return [(int(key), of.model_validate(rows[key])) for key in sorted(rows, key=int)]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"[{where}], {place or 'a row'}: {first['msg'].lower()}") from error


def written(found: Found, table: Table) -> str:
    """The file that ``parsed`` reads as these two."""
    lines = ["[found]", *(f'{name} = "{_escaped(value)}"' for name, value in asdict(found).items() if value)]
    for format, roles in table.ways.items():
        for role, ways in roles.items():
            lines += ["", f'["{format}".{role}]', f"columns = {ways.columns}"]
            lines += [f"{most} = {_inline(_told(way, Way('sums')))}" for most, way in ways.rows]
    lines += ["", "[attention]", *(f"{most} = {_inline(_told(how, Division(0, 0, 0)))}" for most, how in table.attention)]
    return "\n".join(lines) + "\n"


def _told(row: Way | Division, usual: Way | Division) -> Mapping[str, Any]:
    if isinstance(row, Way) and row.way == "library":
        return {"way": row.way}
    always = ("way", "outputs", "take", "warps")
    return {name: value for name, value in asdict(row).items() if name in always or value != getattr(usual, name)}


def _inline(row: Mapping[str, Any]) -> str:
    def plain(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)

    return "{ " + ", ".join(f"{name} = {plain(value)}" for name, value in row.items()) + " }"


def _escaped(text: str) -> str:
    return "".join(c for c in text if c.isprintable()).replace("\\", "\\\\").replace('"', '\\"')
