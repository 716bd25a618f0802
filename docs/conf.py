"""The site of the course (`make site`), by Sphinx: the lessons as they are stored, the documents, the package.

Its source is the whole checkout, so that a link that works on a code host works here. Nothing comes from a network,
neither when it is made nor when it is read.
"""

import json
import re
import sys
from pathlib import Path
from textwrap import indent

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

from moe_lessons.course.interview import CONDITIONS, SENTENCE

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for conf.slug

project = html_title = "moe_lessons"
author = "The moe_lessons contributors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "notebooks/*.ipynb", "notebooks/GLOSSARY.md", "docs/*.md"]

nb_execution_mode = "off"
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_heading_slug_func = "conf.slug"
autodoc_default_options = {"members": True, "member-order": "bysource"}
html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_theme_options = {"navbar_center": [], "show_prev_next": True, "footer_end": []}
html_theme_options["secondary_sidebar_items"] = {"**": ["page-toc"], "index": []}
html_sidebars = {"**": ["globaltoc.html"], "index": []}
VIEWS = {  # pages of the site, each with the view of the page of this name
    "wall": {
        "title": "What a model knows by heart",
        "text": "Three models learn a phone book by heart, in your browser, by the course's own training step: a "
        "mixture of experts, a dense model that does the same work for each token, and one with as many parameters as "
        "the mixture. A lamp is an entry: it is lit while the model knows that entry. Point at a lamp to read it.",
        "picture": "_images/facts.png",
        "alt": "Two walls of lamps that are partly lit, one that is nearly full",
    },
}
templates_path, html_css_files = ["templates"], ["site.css"]
html_additional_pages = {"index": "front.html"} | dict.fromkeys(VIEWS, "view.html")
html_static_path = ["site.css"]
QUESTION = re.search(r"^\*\*(.+? How\?)\*\*", (HERE.parent / "README.md").read_text(encoding="utf-8"), re.M)[1]
DOORS = {  # buttons of the front page -> lessons
    "Start the course": "00_welcome",
    "Why it collapses": "05_expert_collapse",
    "How it is mended": "06_balancing",
    "The answer, with numbers": "08_capacity_and_its_price",
}
html_context = {"default_mode": "auto", "question": QUESTION, "doors": list(DOORS.items())}
html_context |= {"views": VIEWS, "sentence": SENTENCE, "conditions": CONDITIONS.replace("*", "")}
html_favicon = "favicon.svg"
html_show_sourcelink = html_copy_source = False

CONTENTS = "\n\n```{toctree}\n:hidden:\n:glob:\n:maxdepth: 1\n\nnotebooks/*\ndocs/*\nCONTRIBUTING\n```\n"
BADGE = re.compile(r"\[!\[([^]]*)\]\(https://[^)]*\)\]\(([^)]*)\)")  # a picture from the network

TERM = re.compile(r"\[([^][]+)\]\(GLOSSARY\.md(#[\w-]+)\)")  # its anchor is no heading, so Sphinx does not know it


def slug(heading: str) -> str:
    """The anchor of a heading, as JupyterLab and code hosts make it for a notebook."""
    return heading.replace(" ", "-")


def prepare(app, name: str, source: list[str]) -> None:
    """Words in the place of badges; the contents of the site; pictures of a lesson with their descriptions."""
    text = BADGE.sub(r"[\1](\2)", source[0])
    if name == root_doc:
        text += CONTENTS
    elif app.env.doc2path(name).suffix == ".ipynb":
        text = TERM.sub(r'<a href=\\"GLOSSARY.html\2\\">\1</a>', text)
        text = re.sub(r'(href=\\"[^":]+)\.(ipynb|md)\b', r"\1.html", text)  # in HTML; Sphinx does it in Markdown
        text = json.dumps(described(json.loads(text)))
    source[0] = text


def described(notebook: dict) -> dict:
    """The same, with the descriptions of its pictures where myst-nb looks for them."""
    for cell in notebook["cells"]:
        kept = [output.get("metadata", {}).get("image/png", {}) for output in cell.get("outputs", [])]
        if words := " ".join(data["alt"] for data in kept if "alt" in data):
            cell["metadata"]["mystnb"] = {"image": {"alt": words}}
    return notebook


def as_written(app, what, name: str, thing, options, lines: list[str]) -> None:
    """A docstring as it stands, its examples coloured: it is laid out for the reader of the source."""
    text = "\n".join(lines).strip("\n")
    parts = re.split(r"^(?=>>> )", text, maxsplit=1, flags=re.M)  # words, examples
    shown = [f".. code-block:: {kind}\n\n{indent(part, '   ')}\n\n" for kind, part in zip(("text", "pycon"), parts)]
    lines[:] = "".join(shown).splitlines()


def write_math(writer, node, block: bool = False) -> None:
    """A formula as MathML, which browsers draw by themselves."""
    writer.body.append(tex2mathml(node.astext(), as_block=block))
    raise SkipNode


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", as_written)
    app.add_html_math_renderer("mathml", (write_math, None), (lambda *pair: write_math(*pair, block=True), None))
