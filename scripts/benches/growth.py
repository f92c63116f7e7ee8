"""How each cost grows: with photos, with faces, with slots, and with workers on one database."""

import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TypeVar

import torch
from torch.optim import Adam

from benches.filled import filled_study
from benches.photos import draw_photos
from benches.table import Row, figure
from deepfake.config import DataConfig, ImageSize, TrainConfig, VariantName
from deepfake.data import Faces, ensure_store, prepare_data
from deepfake.models import Features, build_head, build_model, ensure_features, frozen_backbone
from deepfake.training import Feed, train_one_epoch
from deepfake.variants import VARIANTS
from study.config import StudyConfig
from study.search import suggest
from study.slots import create_or_join, join
from tests.support import postgres
from tests.support.runs import Folder

PHOTOS = (200, 800, 3200)  # of three to four faces
STORE_PX = 128
SMALL = ImageSize(cnn=32, mobilenet_v2=33)  # the least there is: 11,200 faces take a core seconds
SLOTS = (100, 1000, 10_000)
LEFT = 20  # slots that wait where "all" are finished
ROUNDS, LONG_ROUNDS = 9, 3  # of each the least: others may use the cores too
# over ten times the size 41 % more for each item, over four times 23 %: what a shared machine and
# data that outgrow its caches do to a linear cost; n log n has 1.13 there, quadratic 2
MOST = 1.15
WORKERS, WORKERS_S, WORKERS_SLOTS = 8, 6.0, 3000
REPORTS = 3  # of a slot, in the workers' rows
CPU = torch.device("cpu")

Costs = dict[str, float]
T = TypeVar("T")


def bench() -> list[Row]:
    """Ours: at the largest size. Ratio: the exponent; 1 is linear, 0 constant."""
    rows = _rows([_data_costs(photos) for photos in PHOTOS], PHOTOS, "photos")
    with _databases() as databases:
        for kind, new_url in databases.items():
            for what in ("finished", "waiting"):
                _study_costs(new_url, LEFT + 1, what == "finished")  # statements are compiled
                costs = [_study_costs(new_url, n, what == "finished") for n in SLOTS]
                rows += _rows(costs, SLOTS, "slots", f"{kind}, all {what}: ")
        rows += [_workers_row(kind, new_url) for kind, new_url in databases.items()]
    if "PostgreSQL" not in databases:
        note = "no server here (Debian: postgresql): its rows are left out"
        rows.append(Row("rows of PostgreSQL", 0, note=note))
    return rows


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Slope of log cost over log size between the two largest of three sizes, less start-up.

    What the cheapest size takes is start-up for the most part: imports, a pool of processes, the
    way to a server. It is taken off the others, or a second of imports would hide what grows
    behind it. Of each cost at least the share n1 / n2 counts as grown: so much of it can't be told
    from noise, and a constant cost gets 0, not chance.
    """
    (n0, _), (n1, c1), (n2, c2) = zip(sizes, costs, strict=True)
    grown1, grown2 = (max(cost - min(costs), cost * n1 / n2) for cost in (c1, c2))
    return math.log(grown2 / grown1) / math.log((n2 - n0) / (n1 - n0))


def _rows(costs: list[Costs], sizes: Sequence[int], unit: str, prefix: str = "") -> list[Row]:
    rows = []
    for name in costs[-1]:
        each = [cost[name] for cost in costs]
        note = ", ".join(f"{n:,}: {figure(c)}" for n, c in zip(sizes, each, strict=True))
        ratio = exponent(sizes, each)
        rows.append(Row(prefix + name, each[-1], ratio=ratio, high=MOST, note=f"{unit} {note}"))
    return rows


def _data_costs(photos: int) -> Costs:
    """Seconds, the least of some rounds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_photos(folder, photos)
        seconds, works = [], [folder / f"work{turn}" for turn in range(LONG_ROUNDS)]
        for work_dir in works:
            data = DataConfig(
                annotations=(folder / "Train_poly.json",), photos_dir=folder, work_dir=work_dir
            )
            started = time.perf_counter()
            prepared = prepare_data(data, processes=2)
            seconds.append(time.perf_counter() - started)
        store = [
            _seconds(lambda w=work: ensure_store(w, STORE_PX, prepared.crops_sha256))
            for work in works
        ]
        costs = {"prepare, s": min(seconds), f"store of {STORE_PX} px, s": min(store)}
        return {**costs, **_epoch_costs(works[-1], prepared.crops_sha256)}


def _epoch_costs(work_dir: Path, crops_sha256: str) -> Costs:
    def faces(side: int) -> Faces:
        ensure_store(work_dir, side, crops_sha256)
        return Faces.load(work_dir, "train", side)

    fed, small, frozen = faces(STORE_PX), faces(SMALL.cnn), faces(SMALL.mobilenet_v2)
    backbone = frozen_backbone("mobilenet_v2_frozen", None)
    started = time.perf_counter()
    path = ensure_features(work_dir, SMALL.mobilenet_v2, backbone, CPU)
    embedding = time.perf_counter() - started
    features = Features.load(path, work_dir, "train", SMALL.mobilenet_v2, frozen.labels)
    order = torch.Generator().manual_seed(0)
    return {
        f"an epoch's feed, {STORE_PX} px, s": min(
            _seconds(lambda: [None for _ in fed.batches(32, CPU, order)]) for _ in range(ROUNDS)
        ),
        f"an epoch of the CNN, {SMALL.cnn} px, s": _epoch_s("cnn", small, LONG_ROUNDS),
        f"frozen features, {SMALL.mobilenet_v2} px, s": embedding,
        "an epoch on frozen features, s": _epoch_s("mobilenet_v2_frozen", features, ROUNDS),
    }


def _epoch_s(variant: VariantName, feed: Feed, rounds: int) -> float:
    config = TrainConfig(
        variant=variant, lr=1e-3, weight_decay=1e-5, dropout=0.2, image_size=SMALL, threads=1
    )
    model = build_head(config) if VARIANTS[variant].frozen else build_model(config, None)
    optimizer = Adam(model.parameters(), lr=config.lr, fused=True)
    return min(
        _seconds(lambda t=turn: train_one_epoch(model, feed, optimizer, config, t, CPU))
        for turn in range(rounds)
    )


@contextmanager
def _databases() -> Iterator[dict[str, Callable[[], str | None]]]:
    """For each kind that is here: what gives the URL of an empty one; None: its folder's own."""
    found: dict[str, Callable[[], str | None]] = {"SQLite": lambda: None}
    if (binaries := postgres.find_binaries()) is None:
        yield found
        return
    with postgres.running(binaries) as server:
        yield {**found, "PostgreSQL": server.new_database}


@contextmanager
def _folder(url: str | None, slots: int) -> Iterator[Folder]:
    with tempfile.TemporaryDirectory() as name:
        folder = Folder(Path(name), 0, f"study.n_trials={slots}")
        if url is not None:
            folder.own_env["DEEPFAKE_STUDY_STORAGE"] = url
        yield folder


def _study_costs(new_url: Callable[[], str | None], n: int, finished: bool) -> Costs:
    """Milliseconds or seconds, the least of some rounds."""
    with _folder(new_url(), n) as folder:
        config = folder.study_config()
        slots = filled_study(config, n - LEFT if finished else 0)
        first_look = min(_seconds(lambda: join(config).records()) for _ in range(LONG_ROUNDS))
        status = min(_seconds(lambda: _status(folder)) for _ in range(LONG_ROUNDS))
        costs = {"first look, s": first_look, "status --json, s": status}

        def timed(name: str, call: Callable[[], T]) -> T:
            started = time.perf_counter()
            result = call()
            ms = 1000 * (time.perf_counter() - started)
            costs[f"{name}, ms"] = min(ms, costs.get(f"{name}, ms", math.inf))
            return result

        for _ in range(3):  # the baselines draw nothing
            slots.repair()
            slots.claim("warm:1")
        for _ in range(ROUNDS):
            slot = timed("claim", lambda: slots.claim("bench:1"))
            assert slot is not None
            timed("draw", lambda s=slot: suggest(s.trial, config.space))
            timed("report", lambda s=slot: slots.report(s, 0, 9.0))
            timed("prune check", lambda s=slot: s.trial.should_prune())
            timed("a worker's look", slots.repair)
            timed("tell", lambda s=slot: slots.complete(s, 9.0))
    return costs if finished else {"create, s": _creating_s(new_url, n), **costs}


def _creating_s(new_url: Callable[[], str | None], n: int) -> float:
    seconds = []
    for _ in range(LONG_ROUNDS):
        with _folder(new_url(), n) as folder:
            config = folder.study_config()
            seconds.append(_seconds(lambda c=config: create_or_join(c, {})))
    return min(seconds)


def _status(folder: Folder) -> None:
    command = folder.command("status", "--json")
    subprocess.run(command, cwd=folder.path, env=folder.env, capture_output=True, check=True)


def _workers_row(kind: str, new_url: Callable[[], str | None]) -> Row:
    """Together they must do at least what one does alone: waiting for each other costs nothing."""
    one, all_ = 0.0, 0.0
    for _ in range(LONG_ROUNDS):  # in turn, and of each the best
        one = max(one, _operations_a_second(new_url(), 1))
        all_ = max(all_, _operations_a_second(new_url(), WORKERS))
    return Row(
        f"{kind}: claims, reports and tells/s of {WORKERS} processes together",
        all_,
        one,
        all_ / one,
        low=1,
        note=f"usual: one process alone; {REPORTS} reports a slot, {WORKERS_SLOTS:,} slots",
    )


def _operations_a_second(url: str | None, workers: int) -> float:
    context = get_context("spawn")
    with _folder(url, WORKERS_SLOTS) as folder:
        config = folder.study_config()
        create_or_join(config, {})
        together, rates = context.Barrier(workers), context.Queue()
        processes = [
            context.Process(target=_operate, args=(config, together, rates))
            for _ in range(workers)
        ]
        for process in processes:
            process.start()
        total = sum(rates.get(timeout=300) for _ in processes)
        for process in processes:
            process.join()
        return total


def _operate(config: StudyConfig, together: Barrier, rates: "Queue[float]") -> None:
    """In a process of its own: operations a second, all processes at it at once."""
    slots = join(config)
    slots.claim("warm:1")
    together.wait(timeout=300)
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < WORKERS_S:
        slot = slots.claim("bench:1")
        assert slot is not None
        for epoch in range(REPORTS):
            slots.report(slot, epoch, 0.5)
        slots.complete(slot, 0.5)
        done += 2 + REPORTS
    rates.put(done / elapsed)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
