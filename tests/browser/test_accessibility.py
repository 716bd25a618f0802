"""What our views and outputs show in JupyterLab can be used by everyone (WCAG 2.1 AA, by axe-core), in both themes."""

VIEWS = (
    "from moe_lessons.course import *\nfrom moe_lessons.hub import ConfigCalculator\n"
    "from moe_lessons.widgets import *\nimport pandas",
    "Playground(play=5)",
    "BalancingLab(('no balancing', 'auxiliary loss'), seeds=1, play=3)",
    "RoutingLab(('code', 'greek'), num_layers=2, d_model=16, num_heads=2, batch_size=4, play=3)",
    "CollapseLab(play=3)",
    "FactsLab(play=2)",
    "RaceLab(play=1)",
    "ConfigCalculator()",
    "prediction = Prediction('How many?', ('all', 'one'))\nprediction",
    "prediction.compare('one')",
    "NumberPrediction('How many?', 'experts', 1, 8)",
    "CurvePrediction('How does it go on?', x=('experts', 1, 8), y=('loss', 0, 2))",
    "Quiz('07')",
    "CoursePage()",
    "interview = Interview()\ninterview.answer.value = 'Because.'\ninterview.show.click()\ninterview",
    "from moe_lessons.course.interview import sources\nfrom IPython.display import Markdown\n"
    "Markdown(sources('It is faster [05: most-of-the-memory-waits], in words [04].'))",
    "from moe_lessons.exercises import new_bias\nnew_bias.check(None)",
    "new_bias.hint()",
    "new_bias.solution()",
    "from moe_lessons.plots import LessonFigure\nfrom moe_lessons.widgets import draw_block\nLessonFigure()",
    "pandas.DataFrame({'loss': [1.5, 2]}, index=['mixture', 'its baseline'])",
)


def test_every_view(open_notebook, violations):
    notebook = open_notebook("views.ipynb", *VIEWS)
    notebook.run_all()
    assert notebook.wrong() == []
    page = notebook.page
    for view in page.locator(".moe-canvas").all():  # it draws where it is seen
        view.scroll_into_view_if_needed()
        view.locator("figure").first.wait_for()
    for answer in page.locator(".moe-view").get_by_role("radio").all():  # each says what is right or wrong with it
        answer.click()
    assert page.locator(".jp-OutputArea-output").count() >= len(VIEWS) - 1
    page.set_viewport_size({"width": 1280, "height": 12_000})  # axe, too, looks at what is seen
    for theme in ("light", "dark"):
        notebook.set_theme(theme)
        page.wait_for_timeout(1000)
        assert violations(page, ".jp-OutputArea-output") == [], theme
