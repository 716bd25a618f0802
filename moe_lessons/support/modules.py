"""ES modules joined into one text: anywidget takes one, and there is no build step."""

import re
from pathlib import Path

IMPORT = re.compile(r'^import [^;]*? from "([^"]+)";\n', re.MULTILINE)
JSDOC = re.compile(r"^ */\*\*.*?\*/\n", re.MULTILINE | re.DOTALL)  # JSDoc: a third of the text
EXPORT = re.compile(r"^export (?!default)", re.MULTILINE)


def join_modules(path: Path) -> str:
    """Return a module after all that it imports, without imports, exports and types, but with its default export. All
    modules then share their names: no two may define the same one."""
    found: dict[Path, str] = {}
    _collect(path.resolve(), found)
    return "\n".join(found.values())


def _collect(path: Path, found: dict[Path, str]) -> None:
    if path not in found:
        source = path.read_text("utf-8")
        for imported in IMPORT.findall(source):
            _collect((path.parent / imported).resolve(), found)
        found[path] = EXPORT.sub("", IMPORT.sub("", JSDOC.sub("", source)))
