"""Images through ``tf.data`` with random augmentation, in the order of R8Scheduler; a resumed run repeats all of it."""

import keras
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback, R8Dataset

EPOCHS, BATCH_SIZE, LR = 15, 32, 0.05

keras.utils.set_random_seed(0)
digits = load_digits()
images, test_images, labels, test_labels = train_test_split(
    digits.images[..., None].astype("float32") / 16, digits.target, random_state=0
)


def augment(sample, seed):
    """Move an image by a pixel at most, and add noise."""
    image, label = sample
    image = tf.image.stateless_random_crop(tf.pad(image, [[1, 1], [1, 1], [0, 0]]), [8, 8, 1], seed)
    return image + 0.1 * tf.random.stateless_normal([8, 8, 1], seed), label


r8 = R8Scheduler(len(labels), batch_size=BATCH_SIZE, num_epochs=EPOCHS, initial_lr=LR)
# Was tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(labels)), and a counter for the seeds.
dataset = R8Dataset.from_tensor_slices((images, labels), r8).with_seeds()
dataset = dataset.map(augment, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)

layers = keras.layers
model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        layers.Conv2D(16, 3, activation="relu"),
        layers.Conv2D(32, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(10),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.SGD(LR, momentum=0.9), loss, metrics=["accuracy"])
model.fit(dataset, epochs=EPOCHS, verbose=0, shuffle=False, callbacks=[R8Callback(dataset)])

print(f"test accuracy {model.evaluate(test_images, test_labels, verbose=0)[1]:.1%}")
print("hardest training images:", *(each.index for each in r8.table.hardest(5)))
