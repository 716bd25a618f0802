"""``python -m web.build [FOLDER [GRAPHS]]``: make the site of the course (default: build/site), check every link in it.
GRAPHS: all, or few for the tests: see `web.training_page`.

Fails on a warning of Sphinx, on a link inside the site that leads nowhere, and on a picture or script of another host.
Links to other sites must be well formed; nothing is fetched. A lesson that was run stands there as it was committed.
"""

import re
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.cmd.build import main as sphinx

from web import training_page
from web.lesson_views import read_clean

ROOT = Path(__file__).resolve().parents[1]


def main(folder: str = str(ROOT / "build" / "site"), graphs: str = "usual") -> int:
    """Make the site in `folder`, with `graphs` as `training_page.main` has it; return 0 when all is well."""
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        read_clean(path)  # else that ends the program after minutes
    training_page.main(str(Path(folder, "page")), graphs)
    options = ["-q", "-E", "-W", "--keep-going", "-b", "html", "-c", str(ROOT / "web" / "site")]
    warned = sphinx([*options, str(ROOT), folder])
    broken = broken_links(Path(folder))
    print(*broken, f"{folder}/index.html: {len(broken)} broken links", sep="\n")
    return int(bool(warned or broken))


def broken_links(folder: Path) -> list[str]:
    """Of each page the links that lead nowhere, and the pictures and scripts that are not there, or on another host."""
    paths = [path.resolve() for path in folder.rglob("*.html") if "_static" not in path.parts]
    pages = {path: path.read_text(encoding="utf-8") for path in paths}
    ids = {path: set(re.findall(r'\b(?:id|name)="([^"]*)"', text)) for path, text in pages.items()}
    broken = []
    for page, text in pages.items():
        for tag, link in sorted(set(re.findall(r'<([a-z]+)\b[^>]*\s(?:href|src)="([^"]*)"', text))):
            url = urlsplit(unescape(link))
            place = (page.parent / unquote(url.path)).resolve() if url.path else page
            if url.scheme in ("http", "https"):
                is_good = tag == "a" and bool(re.fullmatch(r"[\w.-]+\.[a-z]+(:\d+)?", url.netloc))
            else:
                is_good = url.scheme in ("data", "mailto") or place.is_file()
                is_place = bool(url.fragment) and "=" not in url.fragment  # else the state of a view
                is_good = is_good and (not is_place or place not in ids or unquote(url.fragment) in ids[place])
            if not is_good:
                broken.append(f"{page.relative_to(folder.resolve())}: {link}")
    return broken


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
