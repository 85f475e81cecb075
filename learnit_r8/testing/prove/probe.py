"""What is noted of a torch training from inside its own process, a line for each step of an optimizer, and its fence.

A copy of this file is the `sitecustomize.py` of the processes of a script, so it imports nothing of the package, and
torch only once the script has done so.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import gc
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import random
import shlex
import signal
import sys
import time
import traceback
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import Any

DENSE, EVERY = 4, 32
"""The whole state is summed up before the first steps of a process, and from then on once in so many steps."""

REMEMBERED = 16
"""Batches of loaders that are kept in mind until the network sees them: loaders may be some ahead."""

PLACES: dict[str, list[tuple[int, int]]] = {
    "os.remove": [(0, 1)], "os.rmdir": [(0, 1)], "os.mkdir": [(0, 2)], "os.rename": [(0, 2), (1, 3)],
    "os.link": [(1, 3)], "os.symlink": [(1, 2)], "os.truncate": [(0, 9)], "os.chmod": [(0, 2)], "os.chown": [(0, 3)],
    "os.utime": [(0, 3)], "sqlite3.connect": [(0, 9)], "open": [], "subprocess.Popen": [], "os.system": [],
}  # fmt: skip
"""By event of Python's audit: which arguments are paths, and which the folder that each is relative to."""

COPIERS = {"cp", "ln", "rsync", "install"}
WRITERS = COPIERS | {"rm", "mv", "rmdir", "mkdir", "touch", "tee", "truncate", "dd", "chmod", "unlink"}
"""Programs whose paths are looked at; those behind a ``>`` always are."""

REFUSAL = "learnit-r8 prove lets nothing outside its copy be written, got %s; --allow it."


class Fence:
    """Keeps what a script writes, renames or deletes in its copy of the folder.

    It hears what Python audits, and the words of the programs that Python starts; what native code does is not heard.

    Args:
        allowed: Folders, and files, that may be written.
        refusals: A file that gets a line for each path refused.
    """

    def __init__(self, allowed: list[str], refusals: str) -> None:
        self.allowed = [os.path.realpath(each) for each in (*allowed, "/dev", "/proc")]
        self.refusals, self.wrote = refusals, set[str]()

    def is_outside(self, path: Any, folder: Any = -1) -> bool:
        """Whether a path is one that must not be written."""
        if not isinstance(path, (str, bytes, os.PathLike)) or path in (":memory:", ""):
            return False
        within = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else ""
        # The last part itself may be a link, which is deleted or renamed in place; writing through it is looked at.
        real = os.path.realpath(os.path.join(within, os.fsdecode(path)))
        return all(os.path.commonpath((each, real)) != each for each in self.allowed)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Look at what Python is about to do, and keep in mind what kind of file it writes."""
        if event not in PLACES:
            return
        paths = [(args[at], args[folder] if len(args) > folder else -1) for at, folder in PLACES[event]]
        if event == "open" and isinstance(args[0], (str, bytes)) and isinstance(args[2], int):
            paths = [(args[0], -1)] if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) else []
            self.wrote |= {"open"} if args[2] & os.O_CREAT and not args[2] & os.O_APPEND else set()
        elif event in ("subprocess.Popen", "os.system"):
            paths = [(each, -1) for each in self.written_by(args[event == "subprocess.Popen"])]
        self.wrote |= {"rename"} if event == "os.rename" else set()
        for path, folder in paths:
            # A folder that is there already fails as it would without us.
            if self.is_outside(path, folder) and not (event == "os.mkdir" and os.path.isdir(path)):
                name = os.path.abspath(os.fsdecode(path))
                # This is heard, too, and is inside.
                with open(self.refusals, "a", encoding="utf-8") as file:
                    file.write(name + "\n")
                raise PermissionError(REFUSAL % name)

    def written_by(self, command: Any) -> list[str]:
        """The paths that a program may write, as far as its words tell."""
        words = [os.fsdecode(each) for each in (command if isinstance(command, (list, tuple)) else [command])]
        if len(words) == 1 or (words[1:2] == ["-c"] and os.path.basename(words[0]) in ("sh", "bash")):
            try:
                words = [*shlex.shlex(words[-1], posix=True, punctuation_chars=True)]
            except ValueError:
                return []
        found: list[str] = []
        program, before = "", ";"
        for word in words:
            if before in (";", "&&", "||", "|", "&"):
                program, begun = os.path.basename(word), len(found)
            elif before in (">", ">>", "&>") or (program in WRITERS and not word.startswith("-")):
                # Of what is copied, only the last path is written.
                found[begun if program in COPIERS else len(found) :] = [os.path.expanduser(word)]
            before = word
        return found


def ignore(*_: Any, **__: Any) -> None:
    """Hear nothing."""


def wrap(owner: Any, name: str, before: Callable[..., None] = ignore, after: Callable[..., None] = ignore) -> None:
    """Call a function before another one, or after it with its arguments and what it returns."""
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def wrapped(*args: Any, **settings: Any) -> Any:
        before(*args, **settings)
        result = plain(*args, **settings)
        after(*args, result)
        return result

    setattr(owner, name, wrapped)


class Probe:
    """Hears loaders, the first network that a batch goes into, the backward pass, optimizers and scalers.

    It is a finder of modules, to be there once torch is imported.

    Args:
        request: ``folder`` for the notes; ``kill`` and ``stop``, the step after which the process is killed, or after
            which it need not go on; ``known``, step by sum of the weights before it, and ``expected``, where it is none
            of those; ``dense``, the first and the last step of which each has sums of the whole state;
            ``deterministic``, whether torch is asked to be.
        fence: Knows what kind of file was written.
    """

    def __init__(self, request: dict[str, Any], fence: Fence) -> None:
        self.request, self.fence = request, fence
        self.arming: Any = None
        self.begin()
        os.register_at_fork(after_in_child=self.begin)

    def begin(self) -> None:
        """Forget everything: at first, and in a forked process."""
        self.file, self.count, self.offset, self.epochs = -1, 0, 0, 0
        self.optimizers, self.scalers, self.roots = list[Any](), list[Any](), dict[Any, None]()
        self.drawn: collections.deque[list[Any]] = collections.deque(maxlen=REMEMBERED)
        self.copies: dict[int, Any] = {}
        self.waiting: dict[str, Any] | None = None
        self.open_note()

    def open_note(self) -> None:
        """Begin to note a step: its batches, what goes into the network, its losses and backward passes."""
        self.note: dict[str, Any] = {"x": [], "i": [], "t": [], "b": 0}

    def guard(self, hook: Callable[..., None]) -> Callable[..., None]:
        """Keep what fails in a hook from the script; it is told to who started it."""

        def guarded(*args: Any, **settings: Any) -> None:
            try:
                hook(*args, **settings)
            except Exception:
                path = os.path.join(self.request["folder"], "error.txt")
                # On a full disk the file stays empty.
                with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
                    file.write(traceback.format_exc())

        return guarded

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Find torch as all others would, and wrap what runs it; some only look for it, and do not import it yet."""
        others = (each for each in sys.meta_path if each is not self) if name == "torch" else ()
        spec: Any = next(filter(None, (each.find_spec(name, path, target) for each in others)), None)
        if spec is not None and spec.loader is not None:
            wrap(spec.loader, "exec_module", after=self.install)
        return spec

    def install(self, *_: Any) -> None:
        """Hear torch, which has just been imported."""
        import torch
        from torch.optim import optimizer as optimizers
        from torch.utils.data import dataloader

        self.torch, guard = torch, self.guard
        if self.request.get("deterministic"):
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False
            torch.manual_seed(0)
            random.seed(0)
            if "numpy" in sys.modules:
                sys.modules["numpy"].random.seed(0)
        optimizers.register_optimizer_step_pre_hook(guard(self.before_step))
        optimizers.register_optimizer_step_post_hook(guard(self.after_step))
        wrap(torch.autograd, "backward", guard(self.hear_loss))
        wrap(torch, "save", self.hear_save)
        wrap(torch.amp.GradScaler, "__init__", lambda scaler, *_, **__: self.scalers.append(weakref.ref(scaler)))
        iterator = dataloader._BaseDataLoaderIter
        wrap(iterator, "_reset", lambda loader, *_, **__: loader.__dict__.pop("_r8_place", None))
        wrap(iterator, "_next_index", after=lambda loader, indices: self.place_of(loader)[2].append(indices))
        wrap(iterator, "__next__", after=guard(self.hear_batch))
        self.arm()
        atexit.register(guard(self.write), end="end")

    def hear_save(self, _: Any = None, f: Any = None, *__: Any, **___: Any) -> None:
        """Note that the training saves; a path goes to the fence, as torch opens it in native code."""
        self.fence.wrote.add("torch")
        if isinstance(f, (str, os.PathLike)):
            sys.audit("open", os.fspath(f), "wb", os.O_WRONLY | os.O_CREAT)

    def sums(self, tensors: list[Any]) -> str:
        """A digest of tensors from two whole sums of the bits of each, one of them by place, made on its device."""
        torch, found = self.torch, []
        for each in tensors:
            each = each.detach()
            each = each.to_local() if hasattr(each, "to_local") else each
            if each.numel():
                each = torch.view_as_real(each) if each.is_complex() else each
                bits = each.reshape(-1).view(getattr(torch, f"int{8 * each.element_size()}"))
                some = bits[:: max(1, bits.numel() // 1021)].to(torch.int64)
                places = torch.arange(3, 2 * some.numel() + 3, 2, device=some.device)
                found += [bits.sum(dtype=torch.int64), (some * places).sum()]
        values = torch.stack([each.to(found[0].device) for each in found]).tolist() if found else []
        shapes = [tuple(each.shape) for each in tensors]
        return hashlib.blake2b(repr((shapes, values)).encode(), digest_size=8).hexdigest()

    def tensors_in(self, batch: Any, depth: int = 4) -> Iterator[Any]:
        """The tensors of a batch, in order."""
        if isinstance(batch, self.torch.Tensor):
            yield batch
        elif isinstance(batch, self.torch.nn.Module):
            yield from batch.parameters()
        elif depth and (isinstance(batch, (list, tuple)) or hasattr(batch, "values")):
            for each in batch if isinstance(batch, (list, tuple)) else batch.values():
                yield from self.tensors_in(each, depth - 1)

    def place_of(self, loader: Any) -> list[Any]:
        """The number of the epoch that a loader is in, of the batch in it, and the indices of those to come."""
        if "_r8_place" not in loader.__dict__:
            self.epochs += 1
            loader._r8_place = [self.epochs, 0, collections.deque()]
        place: list[Any] = loader._r8_place
        return place

    def hear_batch(self, loader: Any, batch: Any) -> None:
        """Note a batch that a loader gives: its place in the epoch, samples and content."""
        place, data = self.place_of(loader), loader._dataset
        place[1] += 1
        indices: Any = place[2].popleft() if place[2] else None
        while isinstance(indices, list) and isinstance(data, self.torch.utils.data.Subset):
            indices, data = [data.indices[each] for each in indices], data.dataset
        is_known = isinstance(indices, list) and None not in indices
        told = [f"{zlib.crc32(repr(indices).encode()):08x}", indices[:4]] if is_known else [None, None]
        parts = {self.sums([each]): weakref.ref(each) for each in [*self.tensors_in(batch)][:6]}
        self.drawn.append([*place[:2], *told, parts, False])

    def arm(self) -> None:
        """Listen for the first network that is called; those inside it are not listened to."""
        if self.arming is None:
            hooks: Any = self.torch.nn.modules.module
            self.arming = hooks.register_module_forward_pre_hook(self.guard(self.hear_input))

    def hear_input(self, module: Any, args: Any) -> None:
        """Note what goes into a network that trains, and which batch of a loader it is."""
        # A loss may be a module, too, which nobody takes out of training mode for a validation.
        is_network = module.training and next(module.parameters(), None) is not None
        is_heard = is_network and self.torch.is_grad_enabled() and not self.torch.compiler.is_compiling()
        # A hook on all modules is not handed the keywords, with which some frameworks call theirs.
        given = [*self.tensors_in([args, sys._getframe(2).f_locals.get("kwargs", {})])][:6] if is_heard else []
        if not given:
            return
        self.arming.remove()
        self.arming = None
        self.roots[weakref.ref(module)] = None
        if not self.count and not self.note["b"]:
            # Gradients before the first backward pass: of an accumulation that goes on.
            self.note["a"] = any(each.grad is not None and bool(each.grad.any()) for each in module.parameters())
        known = {id(each()): digest for batch in self.drawn for digest, each in batch[4].items() if each() is not None}
        digests = [known.get(id(each)) or self.sums([each]) for each in given]
        # The batch that shares most tensors with it, and was not used yet; where none does, the last one.
        shared = [(len(set(digests) & set(batch[4])), not batch[5]) for batch in self.drawn]
        if shared:
            most = max(shared)
            self.use(self.drawn[shared.index(most) if most[0] else -1])
        self.note["i"].append("-".join(digests))

    def use(self, batch: list[Any]) -> None:
        """Note that a batch is trained on."""
        batch[5] = True
        self.note["x"].append([*batch[:4], [*batch[4]]])

    def hear_loss(self, tensors: Any = None, *_: Any, **__: Any) -> None:
        """Note a loss that is differentiated; its value is read later, as that would wait for the device."""
        several = tensors if isinstance(tensors, (list, tuple)) else [tensors]
        self.note["t"] += [each.detach().clone() for each in several if isinstance(each, self.torch.Tensor)]
        self.note["b"] += 1
        self.arm()

    def state_of_generators(self) -> dict[str, int]:
        """A checksum of each random generator."""
        torch, numpy = self.torch, sys.modules.get("numpy")
        found = {"torch": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            found["cuda"] = torch.cuda.get_rng_state()
        sums = {name: zlib.crc32(state.numpy()) for name, state in found.items()}
        if numpy is not None and hasattr(numpy, "random"):
            _, keys, place, *_ = numpy.random.get_state()
            sums["numpy"] = zlib.crc32(keys.tobytes(), place)
        return {**sums, "python": hash(random.getstate()[1]) & 0xFFFFFFFF}

    def before_step(self, optimizer: Any, *_: Any) -> None:
        """Note the state before a step."""
        # Optimizers compare by identity.
        self.optimizers += [optimizer] if optimizer not in self.optimizers else []
        groups = [sorted(each.items()) for each in optimizer.param_groups]
        settings = [[v for k, v in each if k != "lr" and isinstance(v, (int, float, tuple))] for each in groups]
        rates, digest = [float(each["lr"]) for each in optimizer.param_groups], zlib.crc32(repr(settings).encode())
        self.note |= {"n": self.count + 1, "o": self.optimizers.index(optimizer), "r": rates, "h": digest}
        self.note["g"] = self.state_of_generators()
        if scalers := [each() for each in self.scalers if each() is not None and each().is_enabled()]:
            self.note["s"] = [[each.get_scale(), int(each._get_growth_tracker())] for each in scalers]
        if self.fence.wrote:
            self.note["f"] = sorted(self.fence.wrote)
        step, (first, last) = self.count + 1 + self.offset, self.request.get("dense", (0, -1))
        if self.count < DENSE or self.fence.wrote or step % EVERY == 0 or first <= step <= last:
            self.note |= self.whole_state(optimizer)
        self.fence.wrote.clear()
        if self.count == 0:
            self.offset = self.request.get("known", {}).get(self.note["w"], self.request.get("expected", 1)) - 1

    def whole_state(self, optimizer: Any) -> dict[str, Any]:
        """Sums of weights, moments, buffers and copies of the weights."""
        own = [each for group in optimizer.param_groups for each in group["params"]]
        moments = [optimizer.state.get(each, {}) for each in own]
        names = sorted({name for each in moments for name in each})
        tensors = [each[name] for name in names for each in moments if self.torch.is_tensor(each.get(name))]
        mine = {id(each) for each in own}
        roots = [each() for each in self.roots if each() is not None]
        rest = [each for root in roots for each in (*root.buffers(), *root.parameters()) if id(each) not in mine]
        if self.count in (1, 2, 12):
            self.find_copies(own, [*own, *tensors, *rest])
        count = next((float(each["step"]) for each in moments[:1] if "step" in each), None)
        for held, seen in self.copies.values():
            seen.append(self.sums([*self.tensors_in(held(), 1)]))
        # An average moves with most steps, unlike a checkpoint that was read, or a backup.
        copies = {key: seen[-1] for key, (_, seen) in self.copies.items() if len({*seen}) > max(1, len(seen) / 2)}
        self.copies = {k: x for k, x in self.copies.items() if x[0]() and (len(x[1]) < 33 or len({*x[1]}) > 1)}
        sums = {"w": self.sums(own), "m": self.sums(tensors), "u": self.sums(rest)}
        return {**sums, "names": names, "c": count, "e": copies}

    def find_copies(self, own: list[Any], known: list[Any]) -> None:
        """Find what holds tensors of the shapes of the weights without being the weights: averages of them."""
        module, shapes = self.torch.nn.Module, collections.Counter(tuple(each.shape) for each in own)
        old = [each for held, _ in self.copies.values() for each in self.tensors_in(held(), 1)]
        gradients = [each.grad for each in own if each.grad is not None]
        taken = {each.data_ptr() for each in (*known, *old, *gradients)}
        # By its type: a proxy that is asked for its class imports what it stands for.
        found = [each for each in gc.get_objects() if issubclass(type(each), (dict, list, module))]
        for each in sorted(found, key=lambda one: not issubclass(type(one), module)):
            is_module = issubclass(type(each), module)
            if not is_module and not len(own) <= len(each) <= 4 * len(own) + 64:
                continue
            floats = [one for one in self.tensors_in(each, 1) if one.is_floating_point()]
            places = {one.data_ptr() for one in floats}
            is_mixed = isinstance(each, list) and len(floats) < len(each)
            if not is_mixed and not taken & places and not shapes - collections.Counter(tuple(x.shape) for x in floats):
                taken |= places
                # A dict has no weak references.
                self.copies[len(self.copies)] = [weakref.ref(each) if is_module else lambda each=each: each, []]

    def after_step(self, optimizer: Any, *_: Any) -> None:
        """Note what the step was made of, and kill the process if it is time."""
        if "n" not in self.note:
            # There was a step within it, as of an optimizer that is sharded among ranks.
            return
        self.count += 1
        if not self.note["x"] and self.drawn and not self.drawn[-1][5]:
            # No module was called with it.
            self.use(self.drawn[-1])
        self.write()
        self.waiting = self.note
        self.open_note()
        self.arm()
        for word in ("kill", "stop"):
            if self.count + self.offset == self.request.get(word):
                self.write(end=word)
                os.kill(os.getpid(), signal.SIGKILL)

    def write(self, **more: Any) -> None:
        """Append the note of the last step to the file of this process."""
        if (note := self.waiting) is None:
            return
        if self.file < 0:
            distributed = self.torch.distributed
            rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
            name = os.path.join(self.request["folder"], f"{rank:05d}-{time.time_ns()}-{os.getpid()}.jsonl")
            self.file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        losses = [float(each) if each.numel() == 1 else float(each.double().sum()) for each in note.pop("t")[-16:]]
        note |= {"x": note["x"][-8:], "i": note["i"][-8:], "l": losses, **more}
        os.write(self.file, (json.dumps(note, default=int) + "\n").encode())
        self.waiting = None


def begin(folder: str) -> None:
    """Listen in this process as the request in a folder says, once torch is there, and load what this file hides."""
    with open(os.path.join(folder, "request.json"), encoding="utf-8") as file:
        request = {**json.load(file), "folder": folder}
    fence = Fence(request["allowed"], request["refusals"])
    sys.addaudithook(fence.hear)
    probe: Any = Probe(request, fence)
    sys.meta_path.insert(0, probe)
    others = [each for each in sys.path if os.path.abspath(each) != folder]
    hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if hidden is not None and hidden.loader is not None:
        hidden.loader.exec_module(importlib.util.module_from_spec(hidden))


if __name__ == "sitecustomize":
    begin(os.path.dirname(os.path.abspath(__file__)))
