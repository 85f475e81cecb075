"""Examples of Flax as people know them, typed anew and made small: what `wild_flax.py` trains.

A convolutional network of linen and one of NNX on the digits, a language model, a variational autoencoder, addition by
sequence to sequence, a policy gradient, batch normalisation under ``pmap``, NNX over two devices, and a pipeline of
grain. They have what such scripts have: schedules in the optax chain, donated buffers, random keys in the state or in
the model, dropout, metrics in the state, shardings, data by epoch and by stream.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import jax_utils, nnx
from flax import linen as nn
from flax.training import train_state
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH = 32


@functools.cache
def digits():
    """Images float32[640, 8, 8, 1] in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images[:640, :, :, None] / 16).astype("float32"), found.target[:640].astype("int32")


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


class TrainState(train_state.TrainState):
    """Flax's, with what the examples add to it."""

    key: jax.Array = None
    batch_stats: dict = None


class Script:
    """An example.

    Args:
        seed: Of weights and data.
    """

    epochs = 3
    by_train_loop = False
    falls = True
    rewinds = True

    def __init__(self, seed):
        self.seed = seed

    def data(self, epoch, now=None):
        """The batches of an epoch; ``now()`` is the state as it is."""
        x, y = digits()
        for rows in np.random.default_rng([self.seed, epoch]).permutation(len(x)).reshape(-1, BATCH):
            yield {"image": x[rows], "label": y[rows]}

    def spoil(self, state):
        """The state with a NaN in its first weight."""
        leaves, tree = jax.tree.flatten(state.params)
        leaves[0] = jax.device_put(leaves[0].at[(0,) * leaves[0].ndim].set(jnp.nan), leaves[0].sharding)
        return state.replace(params=jax.tree.unflatten(tree, leaves))


class CNN(nn.Module):
    """The network of flax/examples/mnist."""

    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Conv(16, (3, 3))(x)).reshape(len(x), -1)
        return nn.Dense(10)(nn.relu(nn.Dense(32)(x)))


class mnist_linen(Script):
    """examples/mnist: gradients and update in two jitted functions."""

    def fresh(self):
        model = CNN()
        params = model.init(jax.random.key(self.seed), jnp.ones((1, 8, 8, 1)))["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=optax.sgd(0.1, 0.9))

    def step(self, state, batch):
        grads, losses = self.apply(state, batch)
        return self.update(state, grads), losses

    @staticmethod
    @jax.jit
    def apply(state, batch):
        def loss_fn(params):
            losses = cross_entropy(state.apply_fn({"params": params}, batch["image"]), batch["label"])
            return losses.mean(), losses

        return jax.grad(loss_fn, has_aux=True)(state.params)

    @staticmethod
    @jax.jit
    def update(state, grads):
        return state.apply_gradients(grads=grads)


class NnxNet(nnx.Module):
    """The network of the NNX tutorial, with dropout from generators of its own."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(512, 10, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.conv(x)))).reshape(len(x), -1))


class mnist_nnx(Script):
    """The NNX tutorial: model, optimizer and metrics change in place."""

    def fresh(self):
        model = NnxNet(nnx.Rngs(self.seed))
        optimizer = nnx.Optimizer(model, optax.adamw(0.005), wrt=nnx.Param)
        return model, optimizer, nnx.MultiMetric(loss=nnx.metrics.Average("loss"))

    @staticmethod
    @nnx.jit
    def one_step(model, optimizer, metrics, batch):
        def loss_fn(model):
            losses = cross_entropy(model(batch["image"]), batch["label"])
            return losses.mean(), losses

        (loss, losses), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
        metrics.update(loss=loss)
        optimizer.update(model, grads)
        return losses

    def step(self, state, batch):
        return state, self.one_step(*state, batch)

    def spoil(self, state):
        kernel = state[0].out.kernel
        kernel[...] = kernel[...].at[0, 0].set(jnp.nan)
        return state


class nnx_devices(mnist_nnx):
    """The same on two devices: weights on both, each batch divided."""

    def place(self):
        mesh = Mesh(np.array(jax.devices()), ("data",))
        return NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def fresh(self):
        state = super().fresh()
        for part in state:
            nnx.update(part, jax.device_put(nnx.state(part), self.place()[1]))
        return state

    def data(self, epoch, now=None):
        return (jax.device_put(batch, self.place()[0]) for batch in super().data(epoch))


class Decoder(nn.Module):
    """A decoder of one block, as in examples/lm1b."""

    @nn.compact
    def __call__(self, tokens, deterministic):
        x = nn.Embed(17, 32)(tokens) + nn.Embed(24, 32)(jnp.arange(tokens.shape[1]))
        mask = nn.make_causal_mask(tokens)
        x = x + nn.SelfAttention(2, dropout_rate=0.1, deterministic=deterministic)(nn.LayerNorm()(x), mask)
        x = x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(17)(nn.LayerNorm()(x))


class lm1b(Script):
    """A transformer with a warm-up and a cosine in its chain, clipped; the step keeps the buffers of the state."""

    by_train_loop = True
    epochs = 4

    def fresh(self):
        model = Decoder()
        params = model.init(jax.random.key(self.seed), jnp.zeros((1, 24), int), True)["params"]
        rates = optax.warmup_cosine_decay_schedule(0.0, 0.01, 8, 80)
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rates))
        return TrainState.create(apply_fn=model.apply, params=params, tx=tx, key=jax.random.key(7))

    def data(self, epoch, now=None):
        rng = np.random.default_rng([self.seed, epoch])
        for _ in range(20):
            start, stride = rng.integers(17, size=(BATCH, 1)), rng.integers(1, 4, size=(BATCH, 1))
            yield ((start + stride * np.arange(24)) % 17).astype("int32")

    @staticmethod
    @functools.partial(jax.jit, donate_argnums=0)
    def jitted(state, tokens):
        def loss_fn(params):
            keys = {"dropout": jax.random.fold_in(state.key, state.step)}
            logits = state.apply_fn({"params": params}, tokens, False, rngs=keys)
            losses = cross_entropy(logits[:, :-1], tokens[:, 1:]).mean(1)
            return losses.mean(), losses

        grads, losses = jax.grad(loss_fn, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads), losses.mean()

    def step(self, state, batch):
        return self.jitted(state, batch)


class Autoencoder(nn.Module):
    """That of examples/vae."""

    @nn.compact
    def __call__(self, x, key):
        hidden = nn.relu(nn.Dense(32)(x))
        mean, logvar = nn.Dense(4)(hidden), nn.Dense(4)(hidden)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        return nn.Dense(64)(nn.relu(nn.Dense(32)(z))), mean, logvar


class vae(Script):
    """examples/vae: the key is split at each step, and travels beside the state."""

    def fresh(self):
        model = Autoencoder()
        key, own = jax.random.split(jax.random.PRNGKey(self.seed))
        params = model.init(key, jnp.ones((1, 64)), key)["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(0.003)), own

    @staticmethod
    @jax.jit
    def jitted(state, key, x):
        def loss_fn(params):
            logits, mean, logvar = state.apply_fn({"params": params}, x, key)
            bce = optax.sigmoid_binary_cross_entropy(logits, x).sum(1)
            kld = -0.5 * (1 + logvar - mean**2 - jnp.exp(logvar)).sum(1)
            return (bce + kld).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), loss

    def step(self, state, batch):
        state, key = state
        key, own = jax.random.split(key)
        state, loss = self.jitted(state, own, batch["image"].reshape(-1, 64))
        return (state, key), loss

    def spoil(self, state):
        return super().spoil(state[0]), state[1]


class Seq2seq(nn.Module):
    """Encoder and decoder of examples/seq2seq, with teacher forcing."""

    @nn.compact
    def __call__(self, question, answer):
        carry, _ = nn.RNN(nn.LSTMCell(32), return_carry=True)(jax.nn.one_hot(question, 12))
        hidden = nn.RNN(nn.LSTMCell(32))(jax.nn.one_hot(answer, 12), initial_carry=carry)
        return nn.Dense(12)(hidden)


class seq2seq(Script):
    """Sums of numbers up to 9, written as characters; questions are drawn by the epoch."""

    epochs = 4

    def fresh(self):
        model = Seq2seq()
        params = model.init(jax.random.key(self.seed), jnp.zeros((1, 3), int), jnp.zeros((1, 2), int))["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(0.01))

    def data(self, epoch, now=None):
        rng = np.random.default_rng([self.seed, epoch])
        for _ in range(20):
            one, two = rng.integers(10, size=(2, BATCH))
            total = one + two
            question = np.stack([one, np.full(BATCH, 10), two], 1)
            answer = np.stack([np.full(BATCH, 11), total // 10, total % 10], 1)
            yield {"question": question.astype("int32"), "answer": answer.astype("int32")}

    @staticmethod
    @jax.jit
    def jitted(state, batch):
        def loss_fn(params):
            answer = batch["answer"]
            logits = state.apply_fn({"params": params}, batch["question"], answer[:, :-1])
            losses = cross_entropy(logits, answer[:, 1:]).mean(1)
            return losses.mean(), losses

        grads, losses = jax.grad(loss_fn, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads), losses

    def step(self, state, batch):
        return self.jitted(state, batch)


class Actor(nn.Module):
    """Policy and value of examples/ppo, on four numbers in place of a screen."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.tanh(nn.Dense(32)(x))
        return nn.Dense(4)(hidden), nn.Dense(1)(hidden)[:, 0]


class ppo(Script):
    """examples/ppo: what it learns from is what its present policy did, so that nothing can be rewound.

    The reward is that of the right one of four actions; the loss of the policy need not fall.
    """

    epochs = 12
    falls = False
    rewinds = False

    def fresh(self):
        model = Actor()
        params = model.init(jax.random.key(self.seed), jnp.ones((1, 4)))["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(0.01))

    def data(self, epoch, now=None):
        rng, state = np.random.default_rng([self.seed, epoch]), now()
        seen = rng.normal(size=(128, 4)).astype("float32")
        logits, value = map(np.asarray, state.apply_fn({"params": state.params}, seen))
        gumbel = rng.gumbel(size=logits.shape)
        action = (logits + gumbel).argmax(1)
        chosen = np.asarray(jax.nn.log_softmax(logits))[np.arange(128), action]
        reward = (action == seen.argmax(1)).astype("float32")
        for rows in rng.permutation(128).reshape(-1, 32):
            yield seen[rows], action[rows], chosen[rows], reward[rows], (reward - value)[rows]

    @staticmethod
    @jax.jit
    def jitted(state, batch):
        seen, action, before, reward, advantage = batch

        def loss_fn(params):
            logits, value = state.apply_fn({"params": params}, seen)
            own = jax.nn.log_softmax(logits)
            now = jnp.take_along_axis(own, action[:, None], 1)[:, 0]
            ratio = jnp.exp(now - before)
            gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
            entropy = -(jnp.exp(own) * own).sum(1)
            return (-gain + 0.5 * (value - reward) ** 2 - 0.01 * entropy).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), loss

    def step(self, state, batch):
        return self.jitted(state, batch)


class Normed(nn.Module):
    """A network with batch normalisation over all devices, as in examples/imagenet."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, axis_name="batch")(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


class imagenet_pmap(Script):
    """examples/imagenet: a copy of the state on each device, buffers kept, a schedule in the optimizer."""

    def fresh(self):
        model = Normed()
        # Outside of pmap there is no axis to average over.
        found = model.clone().init({"params": jax.random.key(self.seed)}, jnp.ones((1, 8, 8, 1)))
        rates = optax.warmup_cosine_decay_schedule(0.0, 0.1, 6, 60)
        state = TrainState.create(
            apply_fn=model.apply, params=found["params"], tx=optax.sgd(rates, 0.9, nesterov=True),
            batch_stats=found["batch_stats"],
        )  # fmt: skip
        return jax_utils.replicate(state)

    def data(self, epoch, now=None):
        for batch in super().data(epoch):
            yield {name: part.reshape(2, -1, *part.shape[1:]) for name, part in batch.items()}

    @staticmethod
    @functools.partial(jax.pmap, axis_name="batch", donate_argnums=0)
    def jitted(state, batch):
        def loss_fn(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, new = state.apply_fn(variables, batch["image"], mutable=["batch_stats"])
            return cross_entropy(logits, batch["label"]).mean(), new

        (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        grads, loss = jax.lax.pmean((grads, loss), "batch")
        return state.apply_gradients(grads=grads, batch_stats=new["batch_stats"]), loss

    def step(self, state, batch):
        return self.jitted(state, batch)


class grain_mnist(mnist_linen):
    """A MapDataset of grain, shuffled and batched over all epochs at once."""

    by_train_loop = True

    def data(self, epoch):
        import grain

        x, y = digits()
        rows = grain.MapDataset.range(len(x)).seed(self.seed + epoch).shuffle()
        return rows.map(lambda row: {"image": x[row], "label": y[row]}).batch(BATCH)


SCRIPTS = [mnist_linen, mnist_nnx, nnx_devices, lm1b, vae, seq2seq, ppo, imagenet_pmap, grain_mnist]
