"""On Colab its own manager of widgets is asked to draw ours; elsewhere nothing happens."""

import sys
from types import ModuleType, SimpleNamespace

from moe_lessons.widgets.kernel import prepare_kernel


def test_colab_is_asked_once_per_import_and_nothing_else_is(monkeypatch):
    prepare_kernel()
    assert "google.colab" not in sys.modules
    asked, colab = [], ModuleType("google.colab")
    colab.output = SimpleNamespace(enable_custom_widget_manager=lambda: asked.append(True))
    for name, module in (("google", ModuleType("google")), ("google.colab", colab)):
        monkeypatch.setitem(sys.modules, name, module)
    prepare_kernel()
    assert asked == [True]
