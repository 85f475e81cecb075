"""A plain TensorFlow loop on scikit-learn's digits; ``diff`` it with tf_custom_loop.py."""

import keras
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

EPOCHS, BATCH_SIZE, LR = 15, 32, 0.05

keras.utils.set_random_seed(0)
digits = load_digits()
pixels = (digits.data / 16).astype("float32")
images, test_images, labels, test_labels = train_test_split(pixels, digits.target, random_state=0)
data = (images, labels)

model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])
batches = tf.data.Dataset.from_tensor_slices(data).shuffle(len(labels)).batch(BATCH_SIZE)
optimizer = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(LR, EPOCHS * len(batches)), momentum=0.9)
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
        train_step(x, y)

accuracy = (model(test_images).numpy().argmax(1) == test_labels).mean()
print(f"test accuracy {accuracy:.1%}")
