"""A mixture as a program of plain PyTorch: run, it trains as the run that it was written of."""

import ast
from dataclasses import replace

import pytest

from moe_lessons.training import PRESETS, PlaneSetting, plane_runs
from moe_lessons.training.as_pytorch import TEMPLATE, as_pytorch, read_parts
from moe_lessons.widgets import Playground

SETTINGS = {
    "top-1 of 16, noise": PlaneSetting("blobs", num_experts=16, top_k=1, noise_std=0.5, router_aux_loss_coef=0),
    "one expert": PlaneSetting(num_experts=1, top_k=1),
    "2 of 2": PlaneSetting("waves", num_experts=2, top_k=2, lr=0.05),
    "collapse": PRESETS["collapse"],
    "jitter, z-loss": PlaneSetting("uneven", jitter_noise=0.1, router_z_loss_coef=0.01),
    "sigmoid, bias": PlaneSetting("voronoi", router="sigmoid", expert_bias_rate=0.01, router_start="spread"),
    "sigmoid, top-1": PlaneSetting(top_k=1, router="sigmoid"),
    "learned noise, jitter": PlaneSetting("waves", 5, 3, 6, router="learned noise", jitter_noise=0.2),
    "expert choice of 3": PlaneSetting("waves", 3, 1, 8, router="expert choice"),
    "frozen, spread, z-loss": PlaneSetting(router="frozen", router_start="spread", router_z_loss_coef=0.1),
    "4 of 16, soft spread": PlaneSetting("voronoi", 16, 4, router_start="soft spread", lr=0.01),
    "own points": PlaneSetting(top_k=1, router_start="spread", points="0fle3xy70gd01te2"),
    "capacity, top-1": replace(PRESETS["capacity"], capacity_factor=0.75),
    "a capacity of many digits": PlaneSetting("uneven", capacity_factor=0.5 + 1e-11, jitter_noise=-0.0, noise_std=0.5),
    "the largest": PlaneSetting(capacity_factor=1e15, router_aux_loss_coef=1e15, router_z_loss_coef=1e15),
    "the smallest": PlaneSetting(router="sigmoid", lr=1e-20, router_aux_loss_coef=1e-20, expert_bias_rate=1e-20),
    "capacity of 10": PlaneSetting("uneven", num_experts=10, capacity_factor=1.1),
}


@pytest.mark.parametrize(("setting", "seed"), [(s, i) for i, s in enumerate(SETTINGS.values())], ids=list(SETTINGS))
def test_its_losses_are_those_of_the_run_and_it_needs_torch_alone(setting, seed):
    program = as_pytorch(setting, seed)
    run, names = plane_runs(setting, seed)["MoE"], {}
    wanted = [run.step().loss for _ in range(10)]
    exec(compile(program.replace("500, 256", "10, 256"), "moe_plane.py", "exec"), names)
    assert len(names["losses"]) == 10
    assert names["losses"] == pytest.approx(wanted, abs=1e-4)
    assert sum(p.numel() for p in names["model"].parameters()) == sum(p.numel() for p in run.model.parameters())
    imported = [node for node in ast.walk(ast.parse(program)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    needed = {getattr(node, "module", None) or node.names[0].name for node in imported}
    assert {name.split(".")[0] for name in needed} <= {"torch", "math", "fractions"}
    assert sum(bool(line.strip()) for line in program.splitlines()) <= 90
    assert max(map(len, program.splitlines())) <= 120


def test_a_program_has_what_its_setting_needs_and_every_part_is_of_some_setting():
    programs = {name: as_pytorch(setting) for name, setting in SETTINGS.items()}
    knobs = {"jitter": "jitter_noise", "logsumexp": "router_z_loss_coef", "capacity": "capacity_factor"}
    for text, field in knobs.items():
        assert all((text in programs[name]) == bool(getattr(own, field)) for name, own in SETTINGS.items()), text
    lines = {line for _, text in read_parts(TEMPLATE) for line in text.splitlines() if line and "$" not in line}
    assert lines <= set("".join(programs.values()).splitlines())


def test_the_playground_gives_the_program_of_what_is_in_force():
    lab = Playground("collapse", seed=3, noise_std=0.5)
    lab.set(lr=0.05, num_experts=4)
    assert lab.as_pytorch() == as_pytorch(lab.setting, 3)
    lab.set(router="sigmoid")  # it has no use for the noise
    assert "randn_like" not in lab.as_pytorch()
    (button,) = [b for b in lab.bar() if getattr(b, "description", "") == "Copy as PyTorch"]
    sent = []
    lab.canvas.send = lambda content, buffers=None: sent.append(content)
    button.click()
    assert {"copy": {"text": lab.as_pytorch(), "name": "moe_plane.py"}} in sent
    lab.close()


def test_a_knob_that_the_template_does_not_have_and_a_block_of_your_own_are_refused(monkeypatch):
    lab = Playground(block=type("Block", (type(Playground("healthy").main_run.model.block),), {}))
    with pytest.raises(ValueError, match="^block must .*, got your own Block"):
        lab.as_pytorch()
    lab.close()
    monkeypatch.setattr("moe_lessons.training.as_pytorch.TEMPLATE", TEMPLATE.replace("noise_std", "other"))
    with pytest.raises(ValueError, match="^setting must .*, got .*noise_std"):
        as_pytorch(PlaneSetting(noise_std=0.5))
