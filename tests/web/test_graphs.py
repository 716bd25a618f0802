"""What the page trains with is the course's own step: each graph, run by onnxruntime, beside `Run.step` and
`read_plane`."""

import gzip
import itertools
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from moe_lessons.nn import TopKRouter, muted
from moe_lessons.tasks import PLANE_TASKS, Facts, PlaneTask
from moe_lessons.training import PRESETS, PlaneSetting, facts_run, facts_runs, plane_runs
from moe_lessons.training.knobs import KNOBS, Knob
from moe_lessons.training.record import scored_mean, token_losses
from moe_lessons.widgets.plane_readings import read_plane, route
from moe_lessons.widgets.playground import PLANE_PANELS
from moe_lessons.widgets.small_labs import answers
from web import graphs, wall
from web.graphs import (
    NUM_MEASURED,
    NUM_READ,
    STEP_KNOBS,
    TrainedFacts,
    TrainedPlane,
    export_batch,
    export_reading,
    export_step,
)  # fmt: skip
from web.manifest import STARTS, graph_manifest, manifest, offered, router_place, seed_numbers, start_numbers
from web.training_page import KEPT, kept, stored

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra site")

SEED = 2
FEW = [
    replace(PRESETS["noise"], jitter_noise=0.1, router_z_loss_coef=0.01, num_experts=4),
    PlaneSetting("waves", 8, 2, router="sigmoid", expert_bias_rate=0.01),
    PRESETS["one expert"],  # whose router has no gradient
    PlaneSetting(num_experts=4, router="frozen", noise_std=0.5),  # which would have one
]
# All that the page offers, with GRAPHS=all (minutes); the tasks have graphs of their own.
SIZES = [(e, k) for e in (1, 2, 4, 8, 16) for k in sorted({1, 2, 4, e}) if k <= e]
ALL = [
    PlaneSetting("checker", e, k, d_ff, router=router, expert_bias_rate=0.01 * (router == "sigmoid"))
    for (e, k), d_ff, router in itertools.product(SIZES, (3, 8), ("top-k", "frozen", "sigmoid", "expert choice"))
]


def session(graph):
    found = onnxruntime.InferenceSession(graph)
    names = [output.name for output in found.get_outputs()]
    return lambda **inputs: dict(zip(names, found.run(None, {n: np.asarray(v) for n, v in inputs.items()})))


def follow(setting: PlaneSetting, monkeypatch) -> None:
    """Ten steps of the runs and of the graph on the same random numbers; then what is read of both."""
    runs = plane_runs(setting, seed=SEED)
    main, T = runs["MoE"], runs["MoE"].batch_size
    step, reading, own = session(export_step(runs)), session(export_reading(runs)), TrainedPlane(runs)
    drawn = {"normal": torch.zeros(T, setting.num_experts), "uniform": torch.zeros(T, own.d_model)}
    plain, even = torch.randn_like, Tensor.uniform_

    def normal(like: Tensor) -> Tensor:
        drawn["normal"] = plain(like)
        return drawn["normal"]

    def uniform(tensor: Tensor, low: float, high: float) -> Tensor:
        drawn["uniform"] = even(torch.empty_like(tensor), 0, 1)
        return tensor.copy_(low + (high - low) * drawn["uniform"])

    monkeypatch.setattr(torch, "randn_like", normal)
    monkeypatch.setattr(Tensor, "uniform_", uniform)
    state, generator = own.start().numpy(), torch.Generator().manual_seed(SEED)
    for count in range(1, 11):
        if count == 5:
            main.knobs.router_aux_loss_coef = 0.3  # a slider is moved
            for run in runs.values():
                run.knobs.lr = 0.005
        x, y = main.task.batch(T, generator)
        records = [run.step() for run in runs.values()]
        knobs = np.array([getattr(main.knobs, name) for name in STEP_KNOBS], "f4")
        got = step(state=state, count=np.float32(count), x=x, y=y.int(), knobs=knobs, **drawn)
        assert got["losses"] == pytest.approx([record.loss for record in records], abs=1e-4), count
        assert got["load"] == pytest.approx(records[0].load[0], abs=4 / T), count  # a tie may break otherwise
        assert np.isfinite(got["norm"])
        state = got["next"]
    monkeypatch.undo()
    weights = torch.cat([p.detach().flatten() for run in runs.values() for p in run.model.parameters()])
    assert torch.from_numpy(state[: own.num_weights]).sub(weights).abs().max() < 2e-4  # .1 % of ten steps of Adam
    if own.num_bias:
        assert state[-own.num_bias :] == pytest.approx(main.model.block.router.expert_bias.numpy(), abs=1e-6)

    # the weights of the runs in both: near a tie, rounding would choose another expert
    for run in runs.values():
        run.model.eval()
    state[: own.num_weights] = weights
    plane, (held_x, held_y) = read_plane(main), main.held_out(NUM_MEASURED)
    keep = np.ones(setting.num_experts, "f4")
    inputs = {"state": state, "x": plane.points, "held_x": held_x, "held_y": held_y.int()}
    inputs["knobs"] = np.array([getattr(main.knobs, name) for name in STEP_KNOBS], "f4")
    got = reading(keep=keep, **inputs)
    near = plane.scores.numpy() > -5  # far below, a logarithm shows the 1e-8 of onnxruntime's sigmoid
    assert got["scores"][near] == pytest.approx(plane.scores.numpy()[near], abs=1e-4)
    assert np.exp(got["scores"]) == pytest.approx(plane.scores.exp().numpy(), abs=1e-5)
    assert got["logits"] == pytest.approx(plane.routing.router_logits.detach().numpy(), abs=1e-4)
    assert got["probs"] == pytest.approx(plane.routing.router_probs.numpy(), abs=1e-4)
    assert ((got["named"] == plane.classes.numpy()) == plane.correct.numpy()).all()
    serves = np.zeros_like(got["serves"])
    serves[plane.routing.token_idx, plane.routing.expert_idx] = plane.routing.weight
    assert got["serves"] == pytest.approx(serves, abs=1e-4)
    measured = [run.evaluate(NUM_MEASURED) for run in runs.values()]
    assert got["measured"] == pytest.approx([each["loss"] for each in measured], abs=1e-4)
    assert got["accuracy"] == pytest.approx([each["accuracy"] for each in measured], abs=1e-4)
    clean = route(main.model, held_x)[1].demand_per_expert
    assert got["clean"] == pytest.approx((clean / clean.sum()).numpy(), abs=1e-6)
    keep[0] = 0
    without = route(muted(main.model, main.model.block, 0), held_x)[0].argmax(dim=-1) == held_y
    assert reading(keep=keep, **inputs)["accuracy"][0] == pytest.approx(without.float().mean().item(), abs=1e-4)


@pytest.mark.parametrize(
    "setting",
    ALL if os.environ.get("GRAPHS") == "all" else FEW,
    ids=lambda s: f"{s.router}-{s.num_experts}-{s.top_k}-{s.d_ff}",
)
def test_a_graph_trains_and_reads_as_the_runs_do(setting, monkeypatch):
    follow(setting, monkeypatch)


@pytest.mark.parametrize("name", PLANE_TASKS)
def test_a_batch_has_the_points_and_classes_of_its_task(name):
    task, T = PlaneTask(name, seed=5), 64
    drawn = torch.randn(T, 2) if task.has_blobs else torch.rand(T, 2)
    blob = torch.arange(T) % 24
    x, y = task.place(drawn, blob if task.has_blobs else None)
    got = session(export_batch(task, T))(drawn=drawn, blob=blob.int(), prototypes=task.prototypes)
    assert got["x"] == pytest.approx(x.numpy(), abs=1e-6) and (got["y"] == y.numpy()).all()


@pytest.mark.parametrize("router", ("sigmoid", "expert choice"))
def test_all_routers_start_from_the_same_weights(router):
    """So one file has the start of a size, whatever the router."""
    starts = [TrainedPlane(plane_runs(PlaneSetting(router=name), seed=1)) for name in ("top-k", router)]
    one, other = (own.start()[: own.num_weights] for own in starts)
    assert torch.equal(one, other)


def test_what_no_graph_can_say_is_refused():
    with pytest.raises(ValueError, match="capacity_factor must be None for an export, since .*, got 1.25"):
        export_step(plane_runs(PRESETS["capacity"]))
    runs = plane_runs(PlaneSetting())
    runs["MoE"].max_grad_norm = 1.0
    with pytest.raises(ValueError, match="runs must have a constant rate and no max_grad_norm, got MoE with one"):
        export_step(runs)


def test_a_knob_of_a_router_acts_in_the_graphs_or_is_refused_by_name(monkeypatch):
    class Warm(TopKRouter):
        temperature, branches = 1.0, False

        def choose(self, logits):
            return super().choose(logits / (self.temperature if not self.branches or self.temperature > 0 else 1.0))

    runs = plane_runs(PlaneSetting(num_experts=4))
    model = runs["MoE"].model
    model.block.router = router = Warm(16, 4, 2)
    knob = Knob(name="temperature", label="T", off=1.0, attribute=True, needs=lambda m: hasattr(m, "temperature"))
    monkeypatch.setitem(KNOBS, "temperature", knob)
    monkeypatch.setattr(graphs, "STEP_KNOBS", (*STEP_KNOBS, "temperature"))
    reading, held = session(export_reading(runs)), runs["MoE"].held_out(NUM_MEASURED)
    given = {"state": TrainedPlane(runs).start(), "held_x": held[0], "held_y": held[1].int(), "keep": np.ones(4, "f4")}
    points = torch.rand(32, 2)
    for value in (0.5, 3.0):
        got = reading(**given, x=points, knobs=np.array([0] * len(STEP_KNOBS) + [value], "f4"))
        router.temperature = value
        assert got["probs"] == pytest.approx(route(model, points)[1].router_probs.numpy(), abs=1e-5)
    Warm.branches = True
    with pytest.raises(ValueError, match="temperature must be a number in formulas, or be named in LEFT_OUT"):
        export_step(runs)


@pytest.mark.parametrize("task, start", [("voronoi", "soft spread"), ("uneven", "spread"), ("waves", "random")])
def test_the_page_starts_from_the_weights_and_tokens_of_the_runs(task, start):
    setting = PlaneSetting(task, 4, 2, router_start=start)
    runs = plane_runs(setting, seed=2)
    own, numbers, at = TrainedPlane(runs), start_numbers(setting, 2), router_place(runs)
    weights, routers = numbers[: own.num_weights], numbers[own.num_weights :].reshape(len(STARTS), -1)
    if start != "random":
        router = routers[STARTS.index((task, start))]
        weights[at : at + len(router)] = router
    assert np.array_equal(weights, own.start()[: own.num_weights].numpy())
    plane, numbers = read_plane(runs["MoE"]), seed_numbers(2)
    assert np.array_equal(numbers[:48], runs["MoE"].task.prototypes.flatten())
    tokens = numbers[48:].reshape(len(PLANE_TASKS), -1)[PLANE_TASKS.index(task)]
    assert np.array_equal(tokens[:64], plane.points.flatten()) and np.array_equal(tokens[64:96], plane.classes)
    assert np.array_equal(tokens[96:], runs["MoE"].task.class_map.flatten())


def test_the_manifest_has_what_the_table_of_knobs_and_the_panels_say():
    made = json.loads(json.dumps(manifest(list(offered()), seeds=3)))
    assert len(made["graphs"]) == 14 * 2 * 4 and made["knobs"] == list(STEP_KNOBS)
    assert [name for name, preset in made["presets"].items() if preset["off"]] == ["capacity"]
    noise, experts = made["controls"]["noise_std"], made["controls"]["num_experts"]
    assert noise["label"] == "Noise (std)" and noise["tip"] == KNOBS["noise_std"].tip
    assert noise["stops"][:2] == [["off", 0.0], ["0.05", 0.05]]
    assert experts["stops"] == [["1", 1], ["2", 2], ["4", 4], ["8", 8], ["16", 16]]
    assert noise["limits"][0] == noise["off"] == 0
    assert made["controls"]["lr"]["allowed"] == "a number above 0 and at most 1e+15"
    assert made["controls"]["jitter_noise"]["allowed"] == "a number of at least 0 and at most 1"
    assert made["controls"]["top_k"]["by_experts"]["8"] == [["1", 1], ["2", 2], ["4", 4], ["8", 8]]
    assert list(made["left_out"]) == ["capacity_factor"] and "mute" in made["kept"]
    assert made["controls"]["router_aux_loss_coef"]["stops"][:2] == [["off", 0.0], ["0.001", 0.001]]
    assert made["controls"]["seed"]["stops"][-1] == ["2", 2]
    assert made["idle"]["top-k"] == {"expert_bias_rate": "the bias needs a sigmoid router"}
    setting = PRESETS["collapse"]
    own = json.loads(json.dumps(graph_manifest(plane_runs(setting), setting)))
    assert [panel["title"] for panel in own["panels"].values()][0] == "Territory: each point's first choice"
    assert own["panels"][str(PLANE_PANELS.index("cost"))]["marks"][0]["rows"][-2:] == ["held-out loss", "accuracy"]


@pytest.mark.parametrize("name", ("MoE", "dense, 1×"))
def test_the_wall_of_facts_trains_and_reads_as_its_runs_do(name):
    """Ten steps on the same entries; then, of a model that knows some entries by heart, which ones.

    The graphs are those that the tests of the page need, too."""
    run, few = facts_runs(4, 2, 400, SEED)[name], wall.Wall(wall.FEW_STOPS).graphs()
    graph, own, book = wall.facts_graph_name(run), TrainedFacts(run), run.task.tokens.int()
    exports = dict(zip(("step", "read"), wall.EXPORTS))
    with FileLock(KEPT / "lock"):
        paths = {kind: stored(kept(graph, kind), export, few[graph]) for kind, export in exports.items()}
    models = {kind: onnxruntime.InferenceSession(gzip.decompress(path.read_bytes())) for kind, path in paths.items()}
    state, generator = own.start().numpy(), torch.Generator().manual_seed(SEED)
    for count in range(1, 11):
        entries = book[torch.randint(len(book), (run.batch_size,), generator=generator)].numpy()
        record = run.step()
        knobs = np.array([record.lr if knob == "lr" else getattr(run.knobs, knob) for knob in STEP_KNOBS], "f4")
        given = {"state": state, "count": np.array(count, "f4"), "entries": entries, "knobs": knobs}
        state, losses, norm = models["step"].run(None, given)
        assert losses == pytest.approx([record.loss], abs=1e-4) and np.isfinite(norm), count
    learner = facts_run(run.model, Facts(20, SEED), lr=0.01)
    for _ in range(80):
        learner.step()
    state[: own.num_weights] = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    said, loss = models["read"].run(None, {"state": state, "entries": book[:NUM_READ].numpy()})
    task = Facts(NUM_READ, SEED)
    known = (said == book[:NUM_READ, -4:].numpy()).all(axis=1)
    assert 5 < known.sum() < 30 and (known == run.task.known(run.model)[:NUM_READ].numpy()).all()
    assert (said == answers(run.model, task).numpy()).all()
    logits, _ = run.model(task.x)
    losses, _ = token_losses(logits, task.y)
    assert loss == pytest.approx(scored_mean(losses, task.y).item(), abs=1e-4)


def test_the_wall_of_the_page_starts_as_its_runs_do():
    """Each start is that of the runs, rounded; a small book is the beginning of a large one."""
    numbers = dict(wall.Wall(wall.FEW_STOPS | {"seed": (2,)}).numbers())
    for run in facts_runs(4, 2, 400, seed=2).values():
        start = numbers[f"{wall.start_name(run, 4)}-2.z"].view("u2").astype("u4") << 16
        weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
        assert start.view("f4") == pytest.approx(weights.numpy(), rel=2**-8)
    book = numbers["facts-2.z"]
    assert book.shape == (800, 9) and (book[:400] == Facts(400, 2).tokens.numpy()).all()
    made = json.loads(json.dumps(wall.Wall(wall.FEW_STOPS).manifest()))
    assert made["graphs"] == ["4-400", "4-800"] and made["controls"]["num_entries"]["stops"][1] == ["800", 800]
    assert all(book % NUM_READ == 0 for book in wall.WALL_STOPS["num_entries"])
    size = json.loads(json.dumps(wall.Wall(wall.FEW_STOPS).size(4, 400)))
    assert size["rates"][0] == 0.05 and len(size["rates"]) == 300 and size["every"] == 5
    assert size["panels"]["0"]["title"] == "MoE: 0/400"
    assert "ms/step" not in size["panels"]["5"]["marks"][0]["rows"]
