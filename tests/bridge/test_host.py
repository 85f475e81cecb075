"""The contract between the scheduler and the adapters: they use what `HOST` lists and what is documented, no more."""

import ast

from learnit_r8 import R8Scheduler
from learnit_r8.bridge.host import HOST
from tests.source import PACKAGE, name_of, tree_of

FILES = [
    path
    for place in ("bridge", "torch", "keras", "flax", "streams", "loops", "lightning", "transformers")
    for path in PACKAGE.glob(place + "/**/*.py")
]
SCHEDULERS = {"r8", "scheduler", "_r8", "_scheduler", "host", "_host"}
"""Names of variables and attributes that hold a scheduler."""

MOST_MEMBERS = 21

DOCUMENTED = {
    *("batch_iterator", "epoch_iterator", "update_with_loss", "draw", "draw_if_any", "report", "log", "close"),
    *("state_dict", "load_state_dict", "save_checkpoint", "load_checkpoint", "update_cpu_backup", "best_checkpoint"),
    *("load_best", "lr", "progress", "phase", "global_step", "total_steps", "steps_per_epoch", "current_epoch"),
    *("is_over", "policy", "table", "requests", "run_dir", "summary", "paused", "reset_baseline", "give_up"),
    *("release", "__enter__", "__exit__", "host", "batches", "steps", "lr_factor", "step_in_epoch"),
    *("follow", "pace", "handed_out", "check", "feed"),
    "sentry",
}
"""What the README, the guides and the examples show of a scheduler."""

MEMBERS = set(HOST)


def is_scheduler(node):
    """Whether an expression is a scheduler by its name, as ``r8``, ``self._r8`` or ``adapter.scheduler``."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in SCHEDULERS


def uses(tree):
    """The attributes that are taken of schedulers, with their lines; also by way of another name for one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_scheduler(node.value):
            yield node.attr, node.lineno
        is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if is_call and node.func.id in ("getattr", "setattr") and is_scheduler(node.args[0]):
            yield getattr(node.args[1], "value", "?"), node.lineno


def renamed(tree):
    """Variables that a scheduler is assigned to under a name that does not tell it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                whole = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                pairs = zip(target.elts, node.value.elts, strict=True) if whole else [(target, node.value)]
                yield from (place.lineno for place, what in pairs if is_scheduler(what) and not is_scheduler(place))


def assigned(tree):
    """Lines in which an attribute of a scheduler is set."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_scheduler(node.value):
            yield node.lineno


def test_the_host_is_small():
    """Who writes an adapter has few methods to learn beside the documented ones."""
    assert 10 <= len(MEMBERS) <= MOST_MEMBERS
    assert not MEMBERS & DOCUMENTED


def test_every_member_is_needed():
    """The host has no member that no adapter uses."""
    used = {name for path in FILES for name, _ in uses(tree_of(path))}

    assert not MEMBERS - used


def test_the_scheduler_has_a_host():
    """The engine has every member that adapters use; the others are documented methods of the scheduler."""
    r8 = R8Scheduler(4, batch_size=2, num_steps=1)
    for name in sorted(MEMBERS | DOCUMENTED):
        assert hasattr(r8.host if name in MEMBERS else r8, name)


def test_adapters_use_the_host_only():
    """An adapter takes nothing of a scheduler but members of the host and what is documented, and sets nothing."""
    for path in FILES:
        tree = tree_of(path)
        assert [(name, line) for name, line in uses(tree) if name not in MEMBERS | DOCUMENTED] == [], name_of(path)
        assert list(assigned(tree)) == list(renamed(tree)) == [], name_of(path)


def test_uses_are_found():
    """What reaches through a scheduler is seen, whatever holds the scheduler."""
    code = "r8.plan.seed\nself._r8.pace\nadapter.scheduler.emitter.now()\nx = y.r8\nr8.settle = None\ngetattr(r8, 'z')"
    tree = ast.parse(code)

    assert {name for name, _ in uses(tree)} == {"plan", "pace", "emitter", "settle", "z"}
    assert (list(assigned(tree)), list(renamed(tree))) == ([5], [4])
