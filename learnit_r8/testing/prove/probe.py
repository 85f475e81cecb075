"""What is noted of a torch training from inside its own process, a line for each step of an optimizer.

The file is loaded by its path into the processes of a script (`sitecustomize.py` of the runs), so it imports nothing
of the package, and torch only once the script has done so.
"""

from __future__ import annotations

import array
import atexit
import collections
import functools
import gc
import hashlib
import importlib.util
import json
import os
import random
import signal
import sys
import time
import traceback
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import Any

DENSE = 4
"""Steps of a process, its first ones, before which the whole state is summed up."""

SHARE = 0.03
"""Most of the time that sums of the whole state may take, later on."""

REMEMBERED = 16
"""Batches of loaders that are kept in mind until the network sees them: loaders may be some ahead."""


class Arrival:
    """A finder of modules that calls a function once torch is imported."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Find torch as all others would, and wrap what runs it."""
        if name != "torch" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec and spec.loader
        if loader is not None:
            run = loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                self.call()

            loader.exec_module = exec_module
        return spec


def unheard(hook: Callable[..., None]) -> Callable[..., None]:
    """Keep what fails in a hook from the script; it is told to who started it."""

    @functools.wraps(hook)
    def guarded(self: Probe, *args: Any, **settings: Any) -> None:
        try:
            hook(self, *args, **settings)
        except Exception:
            with open(os.path.join(self.request["folder"], "error.txt"), "w", encoding="utf-8") as file:
                file.write(traceback.format_exc())

    return guarded


class Probe:
    """Hears loaders, the first network that a batch goes into, the backward pass, optimizers and scalers.

    Args:
        request: ``folder`` for the notes; ``kill`` and ``stop``, the step after which the process is killed, or after
            which it need not go on; ``known``, step by sum of the weights before it; ``every``, steps from one sum
            of the whole state to the next, or None to choose it by the time it takes; ``dense``, steps before which
            there is one anyway; ``deterministic``, whether torch is asked to be.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.saved: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """Forget everything: at first, and in a forked process."""
        self.pid, self.file = os.getpid(), -1
        self.count = self.offset = self.losses_due = 0
        self.every: int | None = self.request.get("every")
        self.losses: list[Any] = []
        self.inputs: list[Any] = []
        self.used: list[list[Any]] = []
        self.drawn: collections.deque[list[Any]] = collections.deque(maxlen=REMEMBERED)
        self.optimizers: list[Any] = []
        self.inside: int | None = None
        self.has_gradients = False
        self.note: dict[str, Any] = {}
        self.waiting: dict[str, Any] | None = None
        self.roots: list[Any] = []
        self.scalers: list[Any] = []
        self.generators: dict[str, Any] = {}
        self.copies: dict[int, list[Any]] = {}
        self.numbers = iter(range(1, 1 << 60))
        self.arming: Any = None
        self.cost, self.began = 0.0, 0.0

    def install(self) -> None:
        """Hear torch, which has just been imported."""
        import torch
        from torch.optim import optimizer as optimizers
        from torch.utils.data import dataloader

        self.torch = torch
        if self.request.get("deterministic"):
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False
            torch.manual_seed(0)
            if "numpy" in sys.modules:
                sys.modules["numpy"].random.seed(0)
        optimizers.register_optimizer_step_pre_hook(self.before_step)
        optimizers.register_optimizer_step_post_hook(self.after_step)
        self.wrap(torch.autograd, "backward", self.hear_loss)
        self.wrap(torch, "save", self.hear_save)
        self.wrap(torch.amp.GradScaler, "__init__", lambda scaler, *_, **__: self.scalers.append(weakref.ref(scaler)))
        self.wrap(dataloader.DataLoader, "__iter__", self.hear_loader)
        iterator: Any = dataloader._BaseDataLoaderIter
        draw, fetch, reset = iterator._next_index, iterator.__next__, iterator._reset

        def next_index(loader: Any) -> Any:
            indices = draw(loader)
            loader.__dict__.setdefault("_r8_indices", collections.deque()).append(indices)
            return indices

        def next_batch(loader: Any) -> Any:
            batch = fetch(loader)
            self.hear_batch(loader, batch)
            return batch

        def begin_epoch(loader: Any, *args: Any, **settings: Any) -> None:
            for name in ("_r8_indices", "_r8_place"):
                loader.__dict__.pop(name, None)
            reset(loader, *args, **settings)

        iterator._next_index, iterator.__next__, iterator._reset = next_index, next_batch, begin_epoch
        self.arm()
        atexit.register(self.end)

    def hear_save(self, _: Any = None, f: Any = None, *__: Any, **___: Any) -> None:
        """Note that the training saves; a path goes to the fence, as torch opens it in native code."""
        self.saved.add("torch")
        if isinstance(f, (str, os.PathLike)):
            sys.audit("open", os.fspath(f), "wb", os.O_WRONLY | os.O_CREAT)

    @staticmethod
    def wrap(owner: Any, name: str, hear: Callable[..., Any]) -> None:
        """Call a function before one of torch's."""
        plain = getattr(owner, name)

        def wrapped(*args: Any, **settings: Any) -> Any:
            hear(*args, **settings)
            return plain(*args, **settings)

        wrapped.__wrapped__, wrapped.__doc__, wrapped.__name__ = plain, plain.__doc__, name  # type: ignore[attr-defined]
        setattr(owner, name, wrapped)

    def sums(self, tensors: list[Any]) -> str:
        """A digest of tensors from two whole sums of the bits of each, one of them by place, made on its device."""
        torch, found = self.torch, []
        for each in tensors:
            each = each.detach()
            each = each.to_local() if hasattr(each, "to_local") else each
            if not each.numel():
                continue
            each = torch.view_as_real(each) if each.is_complex() else each
            kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[each.element_size()]
            bits = each.reshape(-1).view(kind)
            some = bits[:: max(1, bits.numel() // 1021)].to(torch.int64)
            places = torch.arange(1, some.numel() + 1, device=some.device)
            found += [bits.sum(dtype=torch.int64), (some * (places * 2 + 1)).sum()]
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

    @unheard
    def hear_loader(self, loader: Any) -> None:
        """Keep a loader's own generators in mind."""
        for owner in (loader, getattr(loader, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, self.torch.Generator):
                self.generators["loader"] = generator

    @unheard
    def hear_batch(self, loader: Any, batch: Any) -> None:
        """Note a batch that a loader gives: its place in the epoch, samples and content."""
        place = loader.__dict__.setdefault("_r8_place", [next(self.numbers), 0])
        place[1] += 1
        waiting = loader.__dict__.get("_r8_indices")
        indices = waiting.popleft() if waiting else None
        data = loader._dataset
        while isinstance(indices, list) and isinstance(data, self.torch.utils.data.Subset):
            indices, data = [data.indices[each] for each in indices], data.dataset
        if isinstance(indices, list) and None not in indices:
            key: Any = f"{zlib.crc32(repr(indices).encode()):08x}"
            indices = [int(each) for each in indices[:4] if isinstance(each, int)]
        else:
            key = indices = None
        parts = {self.sums([each]): weakref.ref(each) for each in list(self.tensors_in(batch))[:6]}
        self.drawn.append([*place, key, indices, parts, False])

    def arm(self) -> None:
        """Listen for the first network that is called; those inside it are not listened to."""
        if self.arming is None:
            hooks: Any = self.torch.nn.modules.module
            self.arming = hooks.register_module_forward_pre_hook(self.hear_input)

    @unheard
    def hear_input(self, module: Any, args: Any) -> None:
        """Note what goes into a network that trains, and which batch of a loader it is."""
        if not module.training or self.torch.compiler.is_compiling():
            return
        self.arming.remove()
        self.arming = None
        if not any(each() is module for each in self.roots):
            self.roots.append(weakref.ref(module))
        if not self.count and not self.losses_due:
            # Gradients before the first backward pass: of an accumulation that goes on.
            self.has_gradients = any(each.grad is not None and bool(each.grad.any()) for each in module.parameters())
        try:
            # A hook on all modules is not handed the keywords, with which some frameworks call theirs.
            settings = sys._getframe(1).f_locals.get("kwargs", {})
            given = list(self.tensors_in([args, settings]))[:6]
            known = {
                id(each()): digest for batch in self.drawn for digest, each in batch[4].items() if each() is not None
            }
            digests = [known.get(id(each)) or self.sums([each]) for each in given]
        except Exception:
            digests = []
        found, most = None, 0
        for batch in self.drawn:
            same = len(set(digests) & set(batch[4]))
            if same > most or (same == most and most and found and found[5] and not batch[5]):
                found, most = batch, same
        if found is None and self.drawn:
            found = self.drawn[-1]
        if found is not None:
            found[5] = True
            self.used.append([*found[:4], [*found[4]]])
        self.inputs.append("-".join(digests))

    @unheard
    def hear_loss(self, tensors: Any = None, *_: Any, **__: Any) -> None:
        """Note a loss that is differentiated; its value is read later, as that would wait for the device."""
        several = tensors if isinstance(tensors, (list, tuple)) else [tensors]
        self.losses += [each.detach().clone() for each in several if isinstance(each, self.torch.Tensor)]
        self.losses_due += 1
        self.arm()

    def state_of_generators(self) -> dict[str, int]:
        """A checksum of each random generator."""
        torch, numpy = self.torch, sys.modules.get("numpy")
        found = {"torch": torch.get_rng_state(), **{k: each.get_state() for k, each in self.generators.items()}}
        if torch.cuda.is_initialized():
            found["cuda"] = torch.cuda.get_rng_state()
        sums = {name: zlib.crc32(state.numpy()) for name, state in found.items()}
        sums["python"] = zlib.crc32(array.array("Q", random.getstate()[1]))
        if numpy is not None and hasattr(numpy, "random"):
            _, keys, place, *_ = numpy.random.get_state()
            sums["numpy"] = zlib.crc32(keys.tobytes(), place)
        return sums

    def parameters(self, optimizer: Any) -> list[Any]:
        """What an optimizer trains."""
        return [each for group in optimizer.param_groups for each in group["params"]]

    @unheard
    def before_step(self, optimizer: Any, *_: Any) -> None:
        """Note the state before a step."""
        if os.getpid() != self.pid:
            self.begin()
        if self.inside not in (None, id(optimizer)):
            # A step within a step, as of an optimizer that is sharded among ranks.
            return
        self.inside = id(optimizer)
        if not any(each is optimizer for each in self.optimizers):
            self.optimizers.append(optimizer)
        number = next(i for i, each in enumerate(self.optimizers) if each is optimizer)
        step = self.count + 1 + self.offset
        groups = optimizer.param_groups
        settings = [
            [v for k, v in sorted(g.items()) if k != "lr" and isinstance(v, (int, float, tuple))] for g in groups
        ]
        self.note = {"n": self.count + 1, "o": number, "r": [float(group["lr"]) for group in groups]}
        self.note |= {"h": zlib.crc32(repr(settings).encode()), "g": self.state_of_generators()}
        if scalers := [each() for each in self.scalers if each() is not None and each().is_enabled()]:
            self.note["s"] = [[each.get_scale(), int(each._get_growth_tracker())] for each in scalers]
        saved, self.saved = self.saved, set()
        if saved:
            self.note["f"] = sorted(saved)
        is_due = self.every is None or step % self.every == 0 or step in self.request.get("dense", ())
        if self.count < DENSE or saved or is_due:
            began = time.perf_counter()
            self.note |= self.whole_state(optimizer)
            self.cost = max(time.perf_counter() - began, 1e-4)
        if self.count == 0:
            self.note["a"] = self.has_gradients
            self.offset = self.request.get("known", {}).get(self.note["w"], self.request.get("expected", 1)) - 1

    def whole_state(self, optimizer: Any) -> dict[str, Any]:
        """Sums of weights, moments, buffers and copies of the weights."""
        own = self.parameters(optimizer)
        moments = [optimizer.state.get(each, {}) for each in own]
        names = sorted({name for each in moments for name in each})
        tensors = [each[name] for name in names for each in moments if self.torch.is_tensor(each.get(name))]
        told = [each.get(name) for name in names for each in moments if isinstance(each.get(name), (int, float))]
        mine = {id(each) for each in own}
        roots = [each() for each in self.roots if each() is not None]
        rest = [each for root in roots for each in (*root.buffers(), *root.parameters()) if id(each) not in mine]
        if self.count in (1, 2, 12):
            self.find_copies(own, [*own, *tensors, *rest])
        state: dict[str, Any] = {"w": self.sums(own), "m": f"{self.sums(tensors)}{told[0] if told else ''}"}
        state |= {"names": names, "u": self.sums(rest)}
        counts = [each["step"] for each in moments[:1] if "step" in each]
        state["c"] = float(counts[0]) if counts else None
        copies = {}
        for key, (held, values) in list(self.copies.items()):
            values.append(self.sums([*self.tensors_in(held(), 1)]))
            copies[key] = values[-1]
            if held() is None or (len(values) > 32 and len(set(values)) == 1):
                del self.copies[key]
        return {**state, "e": copies} if copies else state

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
            tensors = [*self.tensors_in(each, 1)]
            floats = [one for one in tensors if one.is_floating_point()]
            is_mixed = isinstance(each, list) and len(floats) < len(each)
            if is_mixed or shapes - collections.Counter(tuple(one.shape) for one in floats):
                continue
            if not taken & {one.data_ptr() for one in floats}:
                taken |= {one.data_ptr() for one in floats}
                # A dict has no weak references.
                self.copies[len(self.copies)] = [weakref.ref(each) if is_module else lambda each=each: each, []]

    @unheard
    def after_step(self, optimizer: Any, *_: Any) -> None:
        """Note what the step was made of, and kill the process if it is time."""
        if self.inside != id(optimizer):
            return
        self.inside = None
        self.count += 1
        note = self.note | {"x": self.used[-8:], "i": self.inputs[-8:], "b": self.losses_due, "t": self.losses[-16:]}
        self.losses, self.inputs, self.used, self.losses_due = [], [], [], 0
        before, self.waiting = self.waiting, note
        self.arm()
        if before is None:
            self.began = time.perf_counter()
        else:
            self.write(before)
        if self.every is None and self.count == DENSE + 2:
            per_step = (time.perf_counter() - self.began) / (self.count - 1)
            self.every = max(1, round(self.cost / max(per_step - self.cost, 1e-4) / SHARE))
            self.write({"every": self.every})
        step = self.count + self.offset
        for word in ("kill", "stop"):
            if step == self.request.get(word):
                self.end(word)
                os.kill(os.getpid(), signal.SIGKILL)

    def write(self, note: dict[str, Any]) -> None:
        """Append a note to the file of this process."""
        if self.file < 0:
            rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
            distributed = self.torch.distributed
            if distributed.is_available() and distributed.is_initialized():
                rank = str(distributed.get_rank())
            name = os.path.join(self.request["folder"], f"{int(rank):05d}-{time.time_ns()}-{self.pid}.jsonl")
            self.file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if "t" in note:
            note["l"] = [float(each) if each.numel() == 1 else float(each.double().sum()) for each in note.pop("t")]
        os.write(self.file, (json.dumps(note) + "\n").encode())

    @unheard
    def end(self, why: str = "end") -> None:
        """Note the end of the process, and the state it ended with."""
        if os.getpid() != self.pid or not self.count:
            return
        if self.waiting is not None:
            self.write(self.waiting)
            self.waiting = None
        state = {} if why == "kill" else self.whole_state(self.optimizers[0])
        self.write({"why": why, "f": sorted(self.saved), **state})


def begin(path: str) -> None:
    """Listen in this process as a request says, once torch is there."""
    with open(path, encoding="utf-8") as file:
        request = json.load(file)
    probe = Probe(request)

    def note_file(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.rename":
            probe.saved.add("rename")
        elif event == "open" and isinstance(args[0], (str, bytes)) and isinstance(args[2], int):
            probe.saved |= {"open"} if args[2] & os.O_CREAT and not args[2] & os.O_APPEND else set()

    sys.addaudithook(note_file)
    arrival: Any = Arrival(probe.install)
    sys.meta_path.insert(0, arrival)
    if request.get("deterministic"):
        random.seed(0)
