"""The cells of `trainers.py` for one framework, in each of the processes that it starts: resumed, and healed."""

import itertools
import json
import os
import warnings

warnings.simplefilter("ignore")

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
SIZE, STEPS = 32, 13
EPOCHS = {1: 3, 3: 5}
"""By the batches of a step, so that there are at least 20 steps of the optimizer."""


class Lightning:
    """The digits by `lightning.Trainer`."""

    def fit(self, accumulate, workers=0, bad=(), epochs=3, **options):
        from tests.lightning.common import DATA, Digits, R8Loader, fit

        module = Digits(bad=bad if RANK == WORLD - 1 else [])
        loader = R8Loader(DATA, batch_size=SIZE // WORLD, num_workers=workers)
        options |= {"devices": WORLD, "strategy": "ddp"} if WORLD > 1 else {}
        return fit(module=module, loader=loader, epochs=epochs, accumulate_grad_batches=accumulate, **options)

    def whole(self, folder, at, **options):
        from tests.lightning.common import Checkpoints, digest

        return digest(*self.fit(more=[Checkpoints(folder, at)], **options)[:2])

    def resumed(self, folder, step, **options):
        from tests.lightning.common import digest

        return digest(*self.fit(ckpt_path=f"{folder}/{step}.ckpt", **options)[:2])

    def healed(self, bad, accumulate):
        module, r8, _ = self.fit(accumulate, bad=[bad])
        return r8.sentry.num_refused, r8.global_step, list(module.parameters())


class Transformers:
    """The digits by `transformers.Trainer`."""

    def train(self, folder, accumulate, workers=0, bad=(), epochs=3, **options):
        from tests.transformers.common import Model, train

        options |= {"ddp_backend": "gloo"} if WORLD > 1 else {}
        return train(
            folder, model=Model(bad=bad if RANK == WORLD - 1 else []), num_train_epochs=epochs,
            gradient_accumulation_steps=accumulate, dataloader_num_workers=workers,
            per_device_train_batch_size=SIZE // WORLD, **options,
        )  # fmt: skip

    def whole(self, folder, at, **options):
        from tests.transformers.common import digest

        # Its steps are those of the optimizer.
        self.per_epoch = -(-STEPS // options["accumulate"])
        return digest(self.train(folder, save_strategy="steps", save_steps=1, **options))

    def resumed(self, folder, step, accumulate, **options):
        from tests.transformers.common import digest

        number = step // STEPS * self.per_epoch + -(-(step % STEPS) // accumulate)
        return digest(self.train(folder, accumulate=accumulate, resume=f"{folder}/checkpoint-{number}", **options))

    def healed(self, bad, accumulate):
        trainer = self.train("unused", accumulate, bad=[bad])
        r8 = trainer.r8.scheduler
        return r8.sentry.num_refused, r8.global_step, list(trainer.model.parameters())


class Accelerate:
    """The digits by a loop with `accelerate.Accelerator`."""

    def made(self, accumulate, workers=0, bad=(), epochs=3):
        from tests.torch.accelerate_common import Training

        return Training(accumulate=accumulate, workers=workers, bad=bad, num_epochs=epochs)

    def whole(self, folder, at, **options):
        return self.made(**options).run(folder, at).digest()

    def resumed(self, folder, step, **options):
        return self.made(**options).resume(f"{folder}/{step}").run().digest()

    def healed(self, bad, accumulate):
        training = self.made(accumulate, bad=[bad]).run()
        r8 = training.adapter.scheduler
        return r8.sentry.num_refused, r8.global_step, list(training.net.parameters())


FRAMEWORKS = {"lightning": Lightning, "transformers": Transformers, "accelerate": Accelerate}


def places(accumulate, count):
    """Batches after which the optimizer has just stepped, ``count`` of them or fewer, ends of epochs among them."""
    total = EPOCHS[accumulate] * STEPS
    steps = [k for k in range(1, total) if k % STEPS % accumulate == 0]
    every = max(1, len(steps) // count)
    ends = [k for k in steps if k % STEPS == 0]
    others = [k for k in steps if k % STEPS][::every]
    return sorted([*ends, *others][:count])


def count_cells(name, folder, *, is_quick):
    """Write the counts of this process to the folder."""
    count, accumulates, workers = (3, [3], [0]) if is_quick else (20, [1, 3], [0, 2])
    framework, found = FRAMEWORKS[name](), {"resumed": {}, "healed": {}}
    for accumulate, num_workers in itertools.product(accumulates, workers):
        options = {"accumulate": accumulate, "workers": num_workers, "epochs": EPOCHS[accumulate]}
        saved, at = str(folder / f"{accumulate}-{num_workers}"), places(accumulate, count)
        whole = framework.whole(saved, at, **options)
        equal = [framework.resumed(saved, step, **options) == whole for step in at]
        found["resumed"][f"accumulation {accumulate}, {num_workers} workers"] = sum(equal), len(equal)
        print(name, options, equal, flush=True)
    for accumulate in accumulates:
        done = []
        for bad in range(0, 3 * STEPS, 1 if count > 3 else 10):
            refused, steps, weights = framework.healed(bad, accumulate)
            done.append(refused == 1 and steps == 3 * STEPS and all(bool(each.isfinite().all()) for each in weights))
        found["healed"][f"accumulation {accumulate}"] = sum(done), len(done)
        print(name, accumulate, done, flush=True)
    (folder / f"{name}-{RANK}.json").write_text(json.dumps(found))
