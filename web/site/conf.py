"""The site of the course (`make site`), by Sphinx: the lessons as they are stored, the documents, the package.

Its source is the whole checkout, so that a link that works on a code host works here. Nothing comes from a network,
neither when it is made nor when it is read.
"""

import json
import re
import sys
from html import escape
from pathlib import Path
from textwrap import indent

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

from moe_lessons.course.interview import CONDITIONS, SENTENCE, SHORT
from web.lesson_views import LESSON_FILES, read_clean, views_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))  # for conf.slug

project = html_title = "moe_lessons"
author = "The moe_lessons contributors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "notebooks/*.ipynb", "notebooks/GLOSSARY.md", "docs/*.md"]
include_patterns += ["build/claims.md"]  # where `make claims` has written it

nb_execution_mode = "off"
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_heading_slug_func = "conf.slug"
autodoc_default_options = {"members": True, "member-order": "bysource"}
html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_theme_options = {"back_to_top_button": False, "navbar_center": ["doors.html"], "footer_end": []}
VIEWS = {  # pages of the site, each with the view of the page of this name
    "wall": {
        "title": "Memorisation grid: what a model memorises",
        "text": "Three models memorise a phone book, in your browser: an MoE, a dense model with the same FLOPs per "
        "token, and one with as many parameters as the MoE. Each square is an entry, coloured once the model has "
        "memorised it: point at one, or tap it, to read it.",
        "picture": "_images/facts.png",
        "alt": "Two memorisation grids that are partly coloured, one that is nearly full",
    },
    "speedup": {
        "title": "The speedup of an MoE: over which dense model, at which batch size",
        "text": "The speedup is the time of a decoding step of a dense model over that of an MoE, by the roofline of a "
        "machine. Click or tap a place: the table says what bounds both models there.",
        "picture": "_static/speedup.png",
        "alt": "A map: the width of the dense model from left to right, the batch size upwards, the speedup as colour",
    },
    "text": {
        "title": "Your own text, read by experts",
        "text": "A small mixture of experts reads what you type, in your browser. Each letter has the colour of the "
        "expert that is its first choice. Click on a letter, or tap it, to see its router logits, its experts and "
        "their weights, its path through the layers, and what the model expects next. Beside or below it is the same "
        "model before training: it has colours, too.",
        "picture": "_static/text.png",
        "alt": "A sentence twice, each letter in the colour of its expert: in a trained model and in an untrained one",
    },
}
WIDE = dict.fromkeys(("index", *VIEWS), [])  # these need the room of the bars
html_theme_options["secondary_sidebar_items"] = {"**": ["page-toc"]} | WIDE
html_sidebars = {"**": ["globaltoc.html"]} | WIDE
templates_path, html_css_files = ["templates"], ["site.css"]
html_additional_pages = {"index": "front.html"} | dict.fromkeys(VIEWS, "view.html")
html_static_path = ["site.css", "../../docs/text.png", "../../docs/speedup.png"]
QUESTION = re.search(r"^\*\*(.+? How\?)\*\*", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)[1]
DOORS = {  # of the bar of each page -> where they lead
    "Lessons": "README.html#Lessons",
    "Speedup map": "speedup.html",
    "Memorisation grid": "wall.html",
    "Your own text": "text.html",
}
html_context = {"default_mode": "auto", "question": QUESTION, "doors": list(DOORS.items())}
html_context |= {"views": VIEWS, "short": SHORT, "sentence": SENTENCE, "conditions": CONDITIONS.replace("*", "")}
html_favicon = "favicon.svg"
html_show_sourcelink = html_copy_source = html_use_index = html_domain_indices = False

PAGES = ["notebooks/*", "docs/*", "CONTRIBUTING", *["build/claims"] * (ROOT / "build" / "claims.md").is_file()]
CONTENTS = "\n".join(["\n\n```{toctree}", ":hidden:", ":glob:", ":maxdepth: 1", "", *PAGES, "```\n"])
BADGE = re.compile(r"\[!\[([^]]*)\]\(https://[^)]*\)\]\(([^)]*)\)")  # a picture from the network

TERM = re.compile(r"\[([^][]+)\]\(GLOSSARY\.md(#[\w-]+)\)")  # its anchor is no heading, so Sphinx does not know it


def slug(heading: str) -> str:
    """The anchor of a heading, as JupyterLab and code hosts make it for a notebook."""
    return heading.replace(" ", "-")


def prepare(app, name: str, source: list[str]) -> None:
    """Words in the place of badges; the contents of the site; pictures of a lesson with their descriptions."""
    path = Path(app.env.doc2path(name))
    text = read_clean(path) if path.suffix == ".ipynb" else source[0]
    text = BADGE.sub(r"[\1](\2)", text)
    if name == root_doc:
        text += CONTENTS
    elif path.suffix == ".ipynb":
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


def enliven(app, doctree) -> None:
    """Around the picture of each live view of a lesson the element in which page.js opens it, or its recording."""
    path = Path(app.env.doc2path(app.env.docname))
    places = {view.picture: view.on_the_site() for view in views_of(path)} if path in LESSON_FILES else {}
    for image in list(doctree.findall(nodes.image)):
        kind, state = places.get(Path(image["uri"]).stem, ("picture", ""))
        if kind != "picture":
            tag, at = f'<div data-moe="{kind}" data-state="{escape(state)}">', image.parent.index(image)
            image.parent.insert(at, nodes.raw("", tag, format="html"))
            image.parent.insert(at + 2, nodes.raw("", "</div>", format="html"))
    if places:
        said = "On this page the views train or play a recording. In the notebook you run the cells and train yourself."
        doctree[0].insert(1, nodes.paragraph("", "", nodes.emphasis("", said)))
        doctree += nodes.raw("", '<script type="module" src="../page/page.js"></script>', format="html")


def as_written(app, what, name: str, thing, options, lines: list[str]) -> None:
    """A docstring as it stands, its examples coloured: it is laid out for the reader of the source."""
    text = "\n".join(lines).strip("\n")
    parts = re.split(r"^(?=>>> )", text, maxsplit=1, flags=re.M)  # words, examples
    shown = [f".. code-block:: {kind}\n\n{indent(part, '   ')}\n\n" for kind, part in zip(("text", "pycon"), parts)]
    lines[:] = "".join(shown).splitlines()


def write_math(writer, node, block: bool = False) -> None:
    """A formula as MathML, which browsers draw by themselves."""
    writer.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", prepare)
    app.connect("doctree-read", enliven)
    app.connect("autodoc-process-docstring", as_written)
    app.add_html_math_renderer("mathml", (write_math, None), (lambda *pair: write_math(*pair, block=True), None))
