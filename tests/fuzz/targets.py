"""What another process may have written, read as the package reads it; each target damages one thing and reads it.

Anything but a refusal, or what was there before the damage, raises.
"""

import contextlib
import hashlib
import json
import math
import os
import time
import warnings

import numpy as np

from learnit_r8 import R8Scheduler
from learnit_r8.cli.runs import facts_of, line_of
from learnit_r8.dashboard.watch import look
from learnit_r8.engine.settings import grouped, kept_defaults
from learnit_r8.events.codec import strict_json
from learnit_r8.journal.requests import KINDS, RequestFolder, ask
from learnit_r8.journal.run import UnreadableRun, write_about
from learnit_r8.journal.samples import read_samples
from learnit_r8.recovery.record import PARTS, BadRecord, export, numbers_in, read_part, read_record
from learnit_r8.report.document import document
from learnit_r8.report.page import content_of, report_data
from learnit_r8.schedules.span import MOST_AMOUNT, Span
from learnit_r8.state import codec
from learnit_r8.state import generations as in_memory
from learnit_r8.state.run_config import arguments_of
from learnit_r8.testing import ToyTask
from tests.drive import Weights, advance_to, batch_loss, make, steps
from tests.fuzz.mutations import damage_bytes, damage_value

SLOWEST_SECONDS = 2.0


class Heard:
    """Takes requests, and remembers the accepted ones."""

    def __init__(self):
        self.accepted, self.refused = [], []

    def __getattr__(self, name):
        return lambda *arguments: self.accepted.append((name, *arguments))

    def refuse(self, text):
        self.refused.append(text)


class Requests:
    """Files in the folder of requests; what is accepted is carried out by a run."""

    def __init__(self, folder):
        self.folder = folder
        write_about(folder, name="it", configuration={}, wall=1.0)
        self.valid = []
        for kind in KINDS:
            self._keep(ask(folder, kind))
        for length in ("20min", "500 steps", "2.5 epochs"):
            self._keep(ask(folder, "cool-down", length=length))
        self.run = make(1000, num_steps=10**6)
        self.open_run = make(1000, num_steps=None, num_epochs=None, scheduler_mode="constant")

    def _keep(self, path):
        self.valid.append(json.loads(path.read_text()))
        path.unlink()

    def seeds(self):
        return [json.dumps(one).encode() for one in self.valid]

    def damaged(self, random):
        if random.randrange(3):
            return json.dumps(damage_value(random, random.choice(self.valid))).encode()
        return damage_bytes(random, random.choice(self.seeds()))

    def read(self, content):
        heard = Heard()
        (self.folder / "requests" / f"{7:020d}-1.json").write_bytes(content)
        RequestFolder(self.folder, heard).look()
        assert not os.listdir(self.folder / "requests"), "the file stays"
        for name, *arguments in heard.accepted:
            about = json.loads(content)
            identity = {key: about.get(key) for key in ("format", "run", "session")}
            assert identity == {key: self.valid[0][key] for key in identity}, "it was meant for another run"
            assert name in ("stop", "save", "pause", "resume", "cool_down")
            if name == "cool_down":
                self._cool_down(arguments[0])

    def _cool_down(self, span):
        if span is None:
            return
        assert isinstance(span, Span)
        assert 0 < span.amount <= (3e11 if span.unit == "until" else MOST_AMOUNT)
        for r8 in (self.run, self.open_run):
            with contextlib.suppress(ValueError):
                budget = r8.pace.with_cool_down(span, 0.1)
                assert (budget.steps or 1) < 2**53
                assert math.isfinite(budget.seconds or 1.0)


class Journals:
    """The files of a run folder, as `status`, `watch` and the report read them."""

    def __init__(self, folder):
        self.folder = folder / "run"
        rng = np.random.default_rng(0)
        groups, weights = [n % 3 for n in range(60)], Weights()
        callbacks = {"state_callback": weights.get, "load_callback": weights.load}
        with make(60, num_epochs=4, run_dir=self.folder, groups=groups, **callbacks) as r8:
            for _, indices, _ in steps(r8):
                r8.update_with_loss(
                    np.full(len(indices), math.nan) if r8.global_step == 7 else 1.0 + rng.random(len(indices))
                )
                if r8.global_step == 20:
                    r8.log(accuracy=0.5)
        self.whole = {path.name: path.read_bytes() for path in self.folder.iterdir() if path.is_file()}
        self.count = 0

    def seeds(self):
        return [json.dumps([name, ""]).encode() for name in self.whole]

    def damaged(self, random):
        name = random.choice(["events.jsonl"] * 3 + sorted(self.whole))
        content = self.whole[name]
        if name == "events.jsonl" and random.randrange(4):
            lines = content.splitlines()
            at = random.randrange(len(lines))
            lines[at] = json.dumps(damage_value(random, json.loads(lines[at]))).encode("utf-8", "replace")
            content = b"\n".join(lines) + b"\n"
        elif name == "run.json" and random.randrange(2):
            content = json.dumps(damage_value(random, json.loads(content))).encode("utf-8", "replace")
        else:
            content = damage_bytes(random, content)
        return json.dumps([name, content.decode("latin-1")]).encode()

    def read(self, content):
        name, text = json.loads(content)
        before = self.whole[name]
        (self.folder / name).write_bytes(text.encode("latin-1") if text else before)
        try:
            seen = look(self.folder, is_glance=True)
            line_of(seen)
            json.loads(strict_json(facts_of(seen), non_finite=lambda value: None))
            self.count += 1
            if name.startswith("samples"):
                with contextlib.suppress(ValueError, OSError):
                    samples = read_samples(self.folder, int(name[8:14]))
                    samples.suspects()
            elif self.count % 40 == 0:
                text = document(content_of(report_data(self.folder)))
                assert text.count("<script") == 2
        except UnreadableRun:
            pass
        finally:
            (self.folder / name).write_bytes(before)


class Checkpoints:
    """Checkpoint files: damaged ones, and forged ones whose digest is right."""

    def __init__(self, folder):
        self.folder = folder
        self.r8 = make(40, num_steps=60)
        advance_to(self.r8, 7)
        self.state = self.r8.state_dict()
        self.config = {"num_samples": 40, "batch_size": 4, "num_steps": 60, "seed": 0, "policy": "balanced"}
        self.content = {"run_id": "0" * 16, "model": None, "config": self.config, "scheduler": self.state}
        self.whole = codec.encode(self.content)
        self.target = make(40, num_steps=60)

    def seeds(self):
        return [b"b" + self.whole]

    def damaged(self, random):
        match random.randrange(4):
            case 0:
                return b"b" + damage_bytes(random, self.whole)
            case 1:
                # With a right digest, which stands at the 36th byte.
                content = bytearray(damage_bytes(random, self.whole))
                content[36:100] = b"0" * 64
                return b"b" + content[:36] + hashlib.sha256(content).hexdigest().encode() + content[100:]
            case _:
                with contextlib.suppress(TypeError, ValueError, UnicodeError):
                    return b"b" + codec.encode(damage_value(random, self.content))
                return b"b" + self.whole

    def read(self, content):
        path = self.folder / "ck_000000000001.r8"
        path.write_bytes(content[1:])
        with contextlib.suppress(ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.target.load_checkpoint(path)
            # What was accepted is trained on, unless it says that the run was stopped.
            for _ in range(2):
                ticket = self.target.draw_if_any()
                if ticket is None:
                    break
                assert 0 <= min(ticket.indices) <= max(ticket.indices) < 40
                self.target.report(ticket, batch_loss(ticket.indices))
            self.target.table.suspects()
        assert len(self.target.table.loss) == 40


class Settings:
    """The configuration in a checkpoint, from which a run is built again."""

    def __init__(self, folder):
        self.valid = {
            "num_samples": 40, "batch_size": 8, "num_steps": 60, "initial_lr": 0.5, "seed": 3, "policy": "focus",
            "scheduler_mode": "wsd", "warmup_steps": 5, "monitor": None, "mode": "min", "keep_checkpoints": 2,
            "name": "it", "last_batch": "keep", "checkpoint_every": "10 steps", "min_lr": 0.0, "guard": {"is": "f"},
        }  # fmt: skip

    def seeds(self):
        return [json.dumps(self.valid).encode()]

    def damaged(self, random):
        config = damage_value(random, {k: v for k, v in self.valid.items() if random.randrange(4)})
        if not random.randrange(4):
            config[random.choice(["run_dir", "backup_dir", "listeners", "resume", "show", "checkpoint_dir"])] = "there"
        return json.dumps(config).encode()

    def read(self, content):
        config = json.loads(content)
        if not isinstance(config, dict):
            return
        with contextlib.suppress(ValueError):
            arguments = arguments_of(config, {}, kept_defaults(R8Scheduler), num_samples=40)
            assert not arguments.keys() & {"run_dir", "backup_dir", "listeners", "resume", "show", "checkpoint_dir"}
            assert arguments.get("num_samples", 40) == 40
            grouped(arguments)


class Generations:
    """Backups in shared memory."""

    def __init__(self, folder):
        task = ToyTask(40)
        r8 = make(40, num_steps=60)
        advance_to(r8, 7)
        content = {"run_id": "0" * 16, "model": None, "scheduler": r8.state_dict(), "config": {}}
        self.backups = in_memory.Generations(
            folder / "shm", folder / "ck", rank=0, num_ranks=1, note=print, is_default=False
        )
        self.backups.start_write(task.state(), content, step=7, done=lambda: None)
        self.backups._thread.join()
        self.backups._release()
        [self.path] = (folder / "shm").rglob("gen_*.r8")
        self.whole = self.path.read_bytes()
        self.content = codec.decode(self.whole)

    def seeds(self):
        return [self.whole]

    def damaged(self, random):
        match random.randrange(3):
            case 0:
                return damage_bytes(random, self.whole)
            case _:
                with contextlib.suppress(TypeError, ValueError, UnicodeError):
                    return codec.encode(damage_value(random, self.content))
                return self.whole

    def read(self, content):
        self.path.write_bytes(content)
        skipped = []
        found = self.backups.newest(skipped)
        assert found is not None or skipped
        if found is not None:
            assert isinstance(found.state, dict)


class Records:
    """The record of an incident with its parts, and the same as one file that somebody sent."""

    def __init__(self, folder):
        weights, self.sent = Weights(), folder / "sent.r8"
        callbacks = {"state_callback": weights.get, "load_callback": weights.load}
        with make(60, num_epochs=2, run_dir=folder / "run", record="all", **callbacks) as r8:
            for _, indices, _ in steps(r8):
                r8.update_with_loss(math.nan if r8.global_step == 7 else batch_loss(indices))
        [number] = numbers_in(folder / "run")
        self.folder = folder / "run" / "incidents" / str(number)
        with self.sent.open("wb") as file:
            export(self.folder, PARTS, file)
        self.whole = {path: path.read_bytes() for path in (*sorted(self.folder.iterdir()), self.sent)}
        self.kept = sorted(path.name for path in self.folder.iterdir())

    def seeds(self):
        return [json.dumps([path.name, ""]).encode() for path in self.whole]

    def damaged(self, random):
        path = random.choice([self.folder / "incident.json", *self.whole])
        content = self.whole[path]
        if random.randrange(3) == 0:
            content = damage_bytes(random, content)
        elif path.suffix == ".json":
            content = json.dumps(damage_value(random, json.loads(content))).encode("utf-8", "replace")
        else:
            with contextlib.suppress(TypeError, ValueError, UnicodeError):
                content = codec.encode(damage_value(random, codec.decode(content)))
        return json.dumps([path.name, content.decode("latin-1")]).encode()

    def read(self, content):
        name, text = json.loads(content)
        path = self.sent if name == self.sent.name else self.folder / name
        path.write_bytes(text.encode("latin-1") if text else self.whole[path])
        home = path if path == self.sent else self.folder
        try:
            for part in PARTS:
                read_part(home, part)
            record = read_record(home)
            assert (record["kind"], record["format"]) == ("learnit_r8 incident", 1)
            assert set(record["files"]) <= set(PARTS)
            json.loads(strict_json(record, non_finite=lambda value: None))
        except BadRecord:
            assert text, "a whole record was refused"
        finally:
            path.write_bytes(self.whole[path])
        assert sorted(path.name for path in self.folder.iterdir()) == self.kept


TARGETS = {
    "requests": Requests, "journals": Journals, "checkpoints": Checkpoints, "settings": Settings,
    "generations": Generations, "records": Records,
}  # fmt: skip


def read_in_time(target, content):
    """Read something, which must take less than two seconds of this process."""
    began = time.process_time()
    target.read(content)
    took = time.process_time() - began
    assert took < SLOWEST_SECONDS, f"it took {took:.1f} s"
