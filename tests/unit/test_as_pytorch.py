"""A mixture as a program of plain PyTorch: run, it trains as the run that it was written of."""

import ast
from dataclasses import replace

import pytest

from moe_lessons.nn import routing as all_routers
from moe_lessons.training import PRESETS, PlaneSetting, plane_runs, settings
from moe_lessons.training.as_pytorch import TEMPLATE, as_pytorch, read_parts
from moe_lessons.widgets import Playground

SETTINGS = {
    "top-2 of 8": PlaneSetting(),
    "top-1 of 16, noise": PlaneSetting("blobs", num_experts=16, top_k=1, noise_std=0.5, router_aux_loss_coef=0),
    "2 of 2": PlaneSetting("waves", num_experts=2, top_k=2, lr=0.05),
    "one expert": PlaneSetting(num_experts=1, top_k=1),
    "collapse": PRESETS["collapse"],
    "jitter, z-loss": PlaneSetting("uneven", jitter_noise=0.1, router_z_loss_coef=0.01),
    "sigmoid, bias": PlaneSetting("voronoi", router="sigmoid", expert_bias_rate=0.01, router_start="spread"),
    "learned noise, jitter": PlaneSetting("waves", 5, 3, 6, router="learned noise", jitter_noise=0.2),
    "expert choice": PlaneSetting(router="expert choice"),
    "frozen": PlaneSetting(router="frozen", noise_std=1),
    "capacity": PlaneSetting("uneven", num_experts=10, capacity_factor=1.1),
    "3 of 4, wide": PlaneSetting("blobs", 4, 3, 16),
    "4 of 16, soft spread": PlaneSetting("voronoi", 16, 4, router_start="soft spread", lr=0.01),
    "rescued": PRESETS["rescued"],
    "noise": PRESETS["noise"],
    "sigmoid, top-1": PlaneSetting(top_k=1, router="sigmoid"),
    "learned noise, spread": PlaneSetting("blobs", router="learned noise", router_start="spread"),
    "frozen, spread, z-loss": PlaneSetting(router="frozen", router_start="spread", router_z_loss_coef=0.1),
    "expert choice of 3": PlaneSetting("waves", 3, 1, 8, router="expert choice"),
    "own points": PlaneSetting(top_k=1, router_start="spread", points="0fle3xy70gd01te2"),
    "capacity, top-1": replace(PRESETS["capacity"], capacity_factor=0.75),
}


@pytest.mark.parametrize(("setting", "seed"), [(s, i) for i, s in enumerate(SETTINGS.values())], ids=list(SETTINGS))
def test_its_losses_are_those_of_the_run(setting, seed, capsys):
    program = as_pytorch(setting, seed)
    run, names = plane_runs(setting, seed)["MoE"], {}
    wanted = [run.step().loss for _ in range(10)]
    exec(compile(program.replace("500, 256", "10, 256"), "moe_plane.py", "exec"), names)
    assert len(names["losses"]) == 10
    assert names["losses"] == pytest.approx(wanted, abs=1e-4)
    assert capsys.readouterr().out.count("step ") == 10
    assert sum(p.numel() for p in names["model"].parameters()) == sum(p.numel() for p in run.model.parameters())


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=list(SETTINGS))
def test_it_needs_torch_alone_and_has_what_the_setting_needs_and_no_more(setting):
    program = as_pytorch(setting)
    tree = ast.parse(program)
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
             for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]  # fmt: skip
    assert {name.split(".")[0] for name in names} <= {"torch", "math"}
    assert "#if" not in program and "#end" not in program and "$" not in program
    assert sum(bool(line.strip()) for line in program.splitlines()) <= 90
    assert max(map(len, program.splitlines())) <= 120
    has = {
        "auxiliary": setting.router_aux_loss_coef > 0 and setting.router != "expert choice",
        "logsumexp": setting.router_z_loss_coef > 0,
        "jitter": setting.jitter_noise > 0,
        "randn_like": setting.noise_std > 0 or setting.router == "learned noise",
        "capacity": setting.capacity_factor is not None,
        "sigmoid": setting.router == "sigmoid",
        "centres[i]": setting.router_start != "random",
        "prototypes": setting.task in ("blobs", "voronoi", "uneven") or bool(setting.points),
        "weight.sum": setting.top_k > 1 and setting.router != "expert choice",
    }
    assert {text: text in program for text in has} == has
    # a different setting has a different program
    assert len({as_pytorch(other) for other in SETTINGS.values()}) == len(SETTINGS)


def test_every_part_is_of_some_setting():
    joined = "".join(as_pytorch(setting) for setting in SETTINGS.values())
    lines = {line for _, text in read_parts(TEMPLATE) for line in text.splitlines() if line and "$" not in line}
    assert lines <= set(joined.splitlines())


def test_the_playground_gives_the_program_of_what_is_in_force():
    lab = Playground("collapse", seed=3, noise_std=0.5)
    lab.set(lr=0.05, num_experts=4)
    assert lab.as_pytorch() == as_pytorch(lab.setting, 3)
    assert "SEED, LR, STEPS, T = 3, 0.05, 500, 256" in lab.as_pytorch()
    lab.set(router="sigmoid")  # it has no use for the noise
    assert "randn_like" not in lab.as_pytorch()
    (button,) = [b for b in lab.bar() if getattr(b, "description", "") == "Copy as PyTorch"]
    sent = []
    lab.canvas.send = lambda content, buffers=None: sent.append(content)
    button.click()
    assert {"copy": {"text": lab.as_pytorch(), "name": "moe_plane.py"}} in sent
    lab.close()


def test_a_router_or_a_knob_that_the_template_does_not_have_is_refused(monkeypatch):
    monkeypatch.setitem(settings.PLANE_ROUTERS, "gaussian noise", all_routers.ROUTERS["gaussian noise"])
    with pytest.raises(ValueError, match="setting must be one .* parts for, got .'gaussian noise'"):
        as_pytorch(PlaneSetting(router="gaussian noise"))
    monkeypatch.setattr("moe_lessons.training.as_pytorch.TEMPLATE", TEMPLATE.replace("noise_std", "other"))
    with pytest.raises(ValueError, match="got .'top-k', 'noise_std'."):
        as_pytorch(PlaneSetting(noise_std=0.5))


def test_a_block_of_your_own_has_no_program():
    class Block(type(Playground("healthy").main_run.model.block)):
        pass

    lab = Playground(block=Block)
    with pytest.raises(ValueError, match="block must be none where a program is asked for, got your own Block"):
        lab.as_pytorch()
    lab.close()
