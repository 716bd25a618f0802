"""What the page's JavaScript does as Python does it: programs of PyTorch, and the random numbers of torch."""

import ast
import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from moe_lessons.tasks import PLANE_TASKS
from moe_lessons.training import PRESETS, PlaneSetting
from moe_lessons.training.as_pytorch import as_pytorch
from tests.chromium import skip
from web.graphs import LEFT_OUT
from web.manifest import STOPS, manifest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def node(tmp_path):
    """node(program, given): what a program logs, as JSON, that has modules of the page beside it and `given`."""
    shutil.copytree(ROOT / "web" / "modules", tmp_path, dirs_exist_ok=True)
    shutil.copytree(ROOT / "moe_lessons" / "widgets" / "canvas", tmp_path / "canvas")
    (tmp_path / "onnxruntime.js").write_text("export const env = {};")  # nothing is run by it here
    (tmp_path / "package.json").write_text('{"type": "module"}')

    def run(program: str, given):
        (tmp_path / "given.json").write_text(json.dumps(given))
        read = 'import { readFileSync } from "node:fs";\nconst given = JSON.parse(readFileSync("given.json"));\n'
        (tmp_path / "run.js").write_text(read + program)
        try:
            limits = {"check": True, "timeout": 60}
            ran = subprocess.run(["node", "run.js"], cwd=tmp_path, capture_output=True, text=True, **limits)
        except FileNotFoundError:
            skip("there is no node")
        return json.loads(ran.stdout)

    return run


def values_of(setting: PlaneSetting, seed: int) -> dict:
    return {name: value for name, value in asdict(setting).items() if name not in LEFT_OUT} | {"seed": seed}


def test_the_page_writes_the_program_that_python_writes(node):
    settings = [setting for setting in PRESETS.values() if setting.capacity_factor is None]
    settings += [PlaneSetting(name, top_k=1) for name in PLANE_TASKS]
    settings += [PlaneSetting(router=name) for name in STOPS["router"] if name != "expert choice"]
    settings += [PlaneSetting(router_start=name, num_experts=2) for name in STOPS["router_start"]]
    settings += [PlaneSetting("blobs", points="0fle3xy7")]
    settings += [PlaneSetting("waves", lr=lr) for lr in (1e-5, 0.1 + 0.2, 1.0, 12.5, 1 / 3, 1e-20, 1e15)]
    settings += [PlaneSetting(router="sigmoid", expert_bias_rate=0.01), PlaneSetting(jitter_noise=0.15)]
    settings += [PlaneSetting(router="expert choice", router_aux_loss_coef=0.0, router_z_loss_coef=0.001)]
    programs = node(
        """
        import { Settings } from "./settings.js";
        const settings = new Settings(given.manifest);
        console.log(JSON.stringify(given.cases.map((values) => settings.code(values))));
        """,
        {"manifest": manifest([], 1), "cases": [values_of(each, i) for i, each in enumerate(settings)]},
    )
    wanted = [as_pytorch(setting, seed) for seed, setting in enumerate(settings)]
    # compared as Python reads them: it writes 1e-05 where JavaScript writes 0.00001
    assert [ast.dump(ast.parse(program)) for program in programs] == [ast.dump(ast.parse(each)) for each in wanted]


@pytest.mark.parametrize("seed", [0, 3, 2**32 + 5, 2_000_003 * 10 + 99_999])
def test_the_page_draws_the_random_numbers_of_torch(node, seed):
    draws = node(
        """
        import { fillEven, fillNormal, randomOf } from "./runtime.js";
        const random = randomOf(given);
        const list = (length, draw) => Array.from({ length }, draw);
        const even = [...fillEven(new Float32Array(1000), random)];
        const below = list(500, () => random.below(24));
        const normal = [...fillNormal(new Float32Array(512), random)];
        const double = list(300, () => random.double());
        console.log(JSON.stringify({ even, below, normal, double }));
        """,
        seed,
    )
    own = {"generator": torch.Generator().manual_seed(seed)}
    assert draws["even"] == torch.rand(1000, **own).tolist()
    assert draws["below"] == torch.randint(24, (500,), **own).tolist()
    torch.testing.assert_close(torch.tensor(draws["normal"]), torch.randn(512, **own), atol=2e-6, rtol=1e-5)
    assert draws["double"] == torch.rand(300, dtype=torch.float64, **own).tolist()
