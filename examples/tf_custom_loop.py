"""The loop of tf_custom_loop_plain.py under R8Scheduler: batches by loss, and a loss for every sample."""

import keras
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from learnit_r8 import R8Scheduler
from learnit_r8.keras import batch_dataset

EPOCHS, BATCH_SIZE, LR = 15, 32, 0.05

keras.utils.set_random_seed(0)
digits = load_digits()
pixels = (digits.data / 16).astype("float32")
images, test_images, labels, test_labels = train_test_split(pixels, digits.target, random_state=0)
data = (images, labels)

model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])
batches = batch_dataset(R8Scheduler(len(labels), batch_size=BATCH_SIZE, num_epochs=EPOCHS, initial_lr=LR), data)
optimizer = keras.optimizers.SGD(lambda: batches.lr, momentum=0.9)
optimizer.build(model.trainable_variables)
cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits


@tf.function(input_signature=batches.element_spec)
def train_step(x, y):
    with tf.GradientTape() as tape:
        losses = cross_entropy(y, model(x, training=True))
        loss = tf.reduce_mean(losses)
    optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    return losses


for _ in range(EPOCHS):
    for x, y in batches:
        batches.report(train_step(x, y))

accuracy = (model(test_images).numpy().argmax(1) == test_labels).mean()
print(f"test accuracy {accuracy:.1%}")
