"""Who is who in what Gradescope exports: folders are numbered, and a file of names lies beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from minids3.grade.submissions.identity import Who
from minids3.grade.tables import clean

__all__ = ["METADATA", "submitters"]

METADATA = "submission_metadata.yml"
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # texts stay texts: an id may begin with 0


def submitters(path: Path) -> dict[str, list[Who]]:
    """Return the people of each folder that ``submission_metadata.yml`` names.

    These entries of it are read, the way Gradescope writes them::

        submission_111221:
          :submitters:
          - :name: Ada Lovelace
            :sid: "4711"
            :email: ada@x.edu
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8-sig", errors="replace"), _LOADER)
    except (OSError, yaml.YAMLError):
        return {}
    found = {}
    for entry, fields in data.items() if isinstance(data, dict) else ():
        people = fields.get(":submitters") if isinstance(fields, dict) else None
        named = [p for p in people or () if isinstance(p, dict) and p.get(":name")]
        if named and isinstance(entry, str):
            found[entry] = [_who(entry, p) for p in named]
    return found


def _who(entry: str, fields: dict[str, Any]) -> Who:
    id = clean(str(fields.get(":sid") or fields.get(":email") or ""))
    name = clean(str(fields[":name"]))
    return Who(("gradescope", entry, id, name), name, id, "gradescope")
