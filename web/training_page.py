"""``python -m web.training_page FOLDER [usual | all | few]``: make the page that trains by itself, and all it needs.

view.html there shows one view, for a frame in any other document; page.js says how a document of one's own shows it.
What is large is compressed, so that no server has to. Graphs are kept in build/graphs, and made again only where the
package or torch has changed. `usual`: those that the controls Experts, Top-k, Noise and Auxiliary loss need; `all`: of
every router; `few`: of the presets 'healthy' and 'collapse', two seeds, and a small wall, as the tests need them.
"""

import functools
import gc
import gzip
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock
from joblib import Parallel, delayed
from tqdm import tqdm

from moe_lessons.tasks import PLANE_TASKS, PlaneTask
from moe_lessons.training import PRESETS, PlaneSetting, Run, plane_runs
from web import text_model, wall
from web.graphs import NUM_MEASURED, export_batch, export_reading, export_step, export_text
from web.lesson_views import RECORDINGS
from web.manifest import (
    STOPS,
    STRUCTURE,
    USUAL,
    first_picture,
    graph_manifest,
    graph_name,
    manifest,
    offered,
    seed_numbers,
    start_numbers,
)
from web.speedup import speedup_manifest

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "graphs"
CANVAS = ROOT / "moe_lessons" / "widgets" / "canvas"  # ES modules, which the page imports as they are
MODULES = ROOT / "web" / "modules"
RUNTIME = ROOT / "tools" / "node_modules" / "onnxruntime-web"
FEW = ("healthy", "collapse")
GRAPHS = "usual", "all", "few"


def main(folder: str, graphs: str = "usual") -> None:
    """Make the page in a folder. Ends the program where another folder would be lost, or there is no npm package."""
    if graphs not in GRAPHS:
        raise SystemExit(f"The second word must be {', '.join(GRAPHS)}, got {graphs}.")
    if Path(folder).is_dir() and any(Path(folder).iterdir()) and not Path(folder, "view.html").is_file():
        raise SystemExit(f"FOLDER must be new or empty, or have a page, got {folder}.")
    settings, seeds = offered(USUAL if graphs == "usual" else STOPS["router"]), len(STOPS["seed"])
    if graphs == "few":
        settings, seeds = {graph_name(PRESETS[name]): PRESETS[name] for name in FEW}, 2
    walls = wall.Wall(wall.FEW_STOPS if graphs == "few" else wall.WALL_STOPS)
    folder, runtime = Path(folder), find_runtime()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    with FileLock(KEPT / "lock"):  # tests may make it at the same time
        jobs = {f"{name}.z": (kept(name), export_batch, PlaneTask(name), NUM_MEASURED) for name in PLANE_TASKS}
        pairs = {name: (runs_of(setting), export_step, export_reading) for name, setting in settings.items()}
        pairs |= {name: (run, *wall.EXPORTS) for name, run in walls.graphs().items()}
        for name, (given, *exports) in pairs.items():
            for kind, export in zip(("step", "read"), exports):
                jobs[f"{name}.{kind}.z"] = kept(name, kind), export, given
        jobs["text.read.z"] = kept("text"), export_text, text_model.new_model(), text_model.WINDOW
        missing = [delayed(stored)(*job) for job in jobs.values() if not job[0].is_file()]
        print(f"{len(jobs)} graphs, of which {len(missing)} are to be made.", flush=True)
        made = Parallel(n_jobs=-1, return_as="generator_unordered")(missing)
        bar = tqdm(made, "graphs", len(missing), disable=None)  # on a terminal
        for path in bar:
            bar.set_postfix_str(path.name.removeprefix(f"{key()}."))
        for name, (path, *_) in jobs.items():
            shutil.copy(path, folder / name)
        for path in KEPT.glob("*.z"):
            if not path.name.startswith(key()):  # of another package or torch
                path.unlink()
    for name, setting in tqdm(settings.items(), "panels", disable=None):
        text = json.dumps(graph_manifest(runs_of(setting), setting))
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    sizes = {(setting.num_experts, setting.top_k, setting.d_ff): setting for setting in settings.values()}
    for setting in tqdm(sizes.values(), "first weights", disable=None):
        for seed in range(seeds):
            name = f"start-{setting.num_experts}-{setting.top_k}-{setting.d_ff}-{seed}.z"
            write_compressed(folder / name, start_numbers(setting, seed).astype("<f4").tobytes())
    for seed in range(seeds):
        write_compressed(folder / f"seed-{seed}.z", seed_numbers(seed).astype("<f4").tobytes())
    write_compressed(folder / "first.z", first_picture())
    for name, numbers in walls.numbers():
        write_compressed(folder / name, numbers.tobytes())
    texts = {"manifest": manifest(list(settings), seeds), "wall": walls.manifest()}
    texts |= {f"facts-{name}": size for name, size in walls.sizes().items()}
    texts["text"] = text_model.text_manifest()
    texts["speedup"] = speedup_manifest()
    for name, text in texts.items():
        (folder / f"{name}.json").write_text(json.dumps(text), encoding="utf-8")
    shutil.copy(text_model.PATH, folder / "text.weights.z")
    shutil.copytree(CANVAS, folder / "canvas")
    shutil.copy(CANVAS.parent / "canvas.css", folder)
    for path in MODULES.iterdir():
        shutil.copy(path, folder)
    shutil.copytree(RECORDINGS, folder / "recordings")
    shutil.copy(runtime / "dist" / "ort.wasm.bundle.min.mjs", folder / "onnxruntime.js")  # servers may not know .mjs
    write_compressed(folder / "onnxruntime.z", (runtime / "dist" / "ort-wasm-simd-threaded.wasm").read_bytes())
    for name in ("LICENSE", "ThirdPartyNotices.txt"):  # the npm package has none
        shutil.copy(Path(find_spec("onnxruntime").origin).parent / name, folder / f"onnxruntime-{name}")


def find_runtime() -> Path:
    """The onnxruntime-web that tools/package.json asks for. Ends the program where it is not there."""
    wanted = json.loads((ROOT / "tools" / "package.json").read_text("utf-8"))["dependencies"]["onnxruntime-web"]
    there = RUNTIME / "package.json"
    if not there.is_file() or json.loads(there.read_text("utf-8"))["version"] != wanted:
        npm = "" if shutil.which("npm") else ", once there is npm (on Debian or Ubuntu: apt install npm)"
        raise SystemExit(f"The page needs onnxruntime-web {wanted}: run `npm ci --prefix tools --ignore-scripts`{npm}.")
    return RUNTIME


def stored(path: Path, export: Callable[..., bytes], *arguments) -> Path:
    """A graph in the store, made where it is not there."""
    if not path.is_file():
        gc.disable()  # it looks in vain through all that an export makes: a sixth of the time
        try:
            write_compressed(path, export(*arguments))
        finally:
            gc.enable()
    return path


def runs_of(setting: PlaneSetting) -> dict[str, Run]:
    """Runs of the structure of a setting, whatever its task and knobs."""
    return plane_runs(PlaneSetting(**{name: getattr(setting, name) for name in STRUCTURE}))


def kept(*name: str) -> Path:
    """Return where a graph is in the store."""
    return KEPT / ".".join([key(), *name, "z"])


@functools.cache
def key() -> str:
    """Return what a graph depends on: the source of what it does, and who exports it."""
    sources = [path for part in ("nn", "tasks", "training") for path in (ROOT / "moe_lessons" / part).glob("*.*")]
    sources += [ROOT / "web/graphs.py", ROOT / "web/text_model.py", ROOT / "moe_lessons/widgets/plane_readings.py"]
    parts = [path.read_bytes() for path in sorted(sources)]
    parts += [version(name).encode() for name in ("torch", "onnx", "onnxscript")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def write_compressed(path: Path, data: bytes) -> None:
    """Write data compressed, the same bytes each time, and whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(gzip.compress(data, mtime=0))
    part.replace(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
