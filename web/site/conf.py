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
from myst_nb.sphinx_ import HideCodeCellNode

from moe_lessons.course.interview import CONDITIONS, SENTENCE, SHORT
from moe_lessons.course.lessons import LESSONS
from web.lesson_page import as_page
from web.lesson_views import LESSON_FILES, dark_pictures, read_clean, steps_of, views_of

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
nb_code_prompt_show, nb_code_prompt_hide = "Code", "Hide the code"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_heading_slug_func = "conf.slug"
autodoc_default_options = {"members": True, "member-order": "bysource"}
html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_theme_options = {"back_to_top_button": False, "navbar_center": ["doors.html"]}
html_theme_options |= {"footer_start": [], "footer_end": []}
VIEWS = {  # pages of the site, each with the view of the page of this name
    "wall": {
        "title": "Memorisation grid",
        "text": "Each square is one entry of a random phone book, name → four digits: pale where the model has some "
        "digits right, in full colour where all. The MoE computes about as much as dense, 1×, and stores about as much "
        "as the wider dense model. Which of the two does it memorise like?",
        "picture": "_images/facts.png",
        "alt": "Three memorisation grids: the MoE has nearly all squares in colour, dense 1× under half, dense 8× all",
    },
    "speedup": {
        "title": "When is an MoE faster?",
        "text": "A small batch uses few experts, so an MoE loads little. A middle one uses all: it loads more than a "
        "narrower dense model. A large one takes long to compute, and an MoE computes less. A dense "
        "model as good as an MoE of E experts, top-K, is mostly 1 to E/K times as wide as its active part "
        "(<a href='notebooks/05_quality_at_equal_compute.html'>lesson 05</a>).",
        "picture": "_static/speedup.png",
        "alt": "A map: the width of the dense model from left to right, the batch size upwards, the speedup as colour",
    },
    "text": {
        "title": "Your own text, read by experts",
        "text": "A small language model, trained on Python's documentation and source, reads your text: type, "
        "then select a letter.",
        "picture": "_static/text.png",
        "alt": "A sentence twice, each letter in the colour of its expert: in a trained model and in an untrained one",
    },
}
WIDE = dict.fromkeys(("index", *VIEWS), [])  # these need the room of the bars
html_theme_options["secondary_sidebar_items"] = {"**": ["page-toc"]} | WIDE
html_sidebars = {"**": ["lessons.html"]}
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
BESIDE = {  # the lessons, in the list of pages
    "README": "The course",
    "notebooks/GLOSSARY": "Glossary",
    "docs/measured": "What was measured",
    "docs/instructors": "For instructors",
    "docs/package": "Parts and commands",
    "docs/api": "The package",
    "CONTRIBUTING": "Contributing",
}
LESSON_PAGES = [(f"notebooks/{Path(lesson.file).stem}", lesson) for lesson in LESSONS]
html_context |= {"lessons": LESSON_PAGES, "beside": list(BESIDE.items())}
html_context |= {"views": VIEWS, "short": SHORT, "sentence": SENTENCE, "conditions": CONDITIONS.replace("*", "")}
html_favicon = "favicon.svg"
html_show_sourcelink = html_copy_source = html_use_index = html_domain_indices = False

PAGES = ["notebooks/*", "docs/*", "CONTRIBUTING", *["build/claims"] * (ROOT / "build" / "claims.md").is_file()]
CONTENTS = "\n".join(["\n\n```{toctree}", ":hidden:", ":glob:", ":maxdepth: 1", "", *PAGES, "```\n"])
BADGE = re.compile(r"\[!\[([^]]*)\]\(https://[^)]*\)\]\(([^)]*)\)")  # a picture from the network

TERM = re.compile(r"\[([^][]+)\]\(GLOSSARY\.md(#[\w-]+)\)")  # its anchor is no heading, so Sphinx does not know it

MEASURED = "The map of the machine that ran this lesson, with what was measured on it (a picture)"
NOTE = """<p class="moe-note">On this page the views train or play a recording, and no cell runs.
<a href="../README.html#Start">In the notebook</a> you run the cells, train yourself, and have each control that the
text names.</p>"""


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
        text = json.dumps(as_page(json.loads(text)))
    source[0] = text


def enliven(app, doctree) -> None:
    """Around the picture of each live view of a lesson the element in which page.js opens it, or its recording; around
    each other picture one in which a tap shows it enlarged: see layout.html. A dark page shows its dark version."""
    path = Path(app.env.doc2path(app.env.docname))
    if path not in LESSON_FILES:
        return
    views = {view.picture: view for view in views_of(path)}
    darks = dark_pictures(path)
    images = list(doctree.findall(nodes.image))
    for image, after in zip(images, [*images[1:], None]):
        if "only-dark" in image["classes"]:
            continue
        both = [image]
        if after and Path(after["uri"]).stem in darks:
            after.parent.remove(after)
            both.append(after)
            for one, theme in zip(both, ("only-light", "only-dark")):
                one["classes"].append(theme)
        view = views.get(Path(image["uri"]).stem)
        kind, state = view.on_the_site() if view else ("picture", "")
        tag, end = '<div class="moe-figure">', "</div>"
        opened = f'<div data-moe="{kind}" data-state="{escape(state)}"'
        is_measured = kind == "speedup" and "measured=" in view.call
        if kind == "picture" or is_measured:
            for one in both:
                one["width"] = image.get("width", "980")  # so that it is a link to its file
        if is_measured:  # the page has not measured
            tag, end = f"{opened}></div><details><summary>{MEASURED}</summary>{tag}", "</div></details>"
        elif kind != "picture":
            steps = f' data-steps="{steps_of(view.words)}"' * (kind == "playground")
            steps += " data-more" * ("panels=" in view.call)
            tag = f"{opened}{steps}>"
        at = image.parent.index(image)
        image.parent[at : at + 1] = [nodes.raw("", tag, format="html"), *both, nodes.raw("", end, format="html")]
    if views:
        doctree[0].insert(2, nodes.raw("", NOTE, format="html"))
        doctree += nodes.raw("", '<script type="module" src="../page/page.js"></script>', format="html")


def put_code_last(app, doctree, name: str) -> None:
    """Folded code stands below what it shows."""
    for code in list(doctree.findall(HideCodeCellNode)):
        cell = code.parent
        cell.remove(code)
        cell.append(code)


def as_written(app, what, name: str, thing, options, lines: list[str]) -> None:
    """A docstring as it stands, its examples coloured: it is laid out for the reader of the source."""
    text = "\n".join(lines).strip("\n")
    parts = re.split(r"^(?=>>> )", text, maxsplit=1, flags=re.M)  # words, examples
    shown = [f".. code-block:: {kind}\n\n{indent(part, '   ')}\n\n" for kind, part in zip(("text", "pycon"), parts)]
    lines[:] = "".join(shown).splitlines()


def write_math(writer, node, block: bool = False) -> None:
    """A formula as MathML, which browsers draw by themselves."""
    math = tex2mathml(node.astext(), as_block=block)
    writer.body.append(f'<div class="moe-math">{math}</div>' if block else math)
    raise nodes.SkipNode


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", prepare)
    app.connect("doctree-read", enliven)
    app.connect("doctree-resolved", put_code_last)
    app.connect("autodoc-process-docstring", as_written)
    app.add_html_math_renderer("mathml", (write_math, None), (lambda *pair: write_math(*pair, block=True), None))
