"""keras_digits_plain.py under R8Scheduler: batches by loss, backups, and a loss for every sample."""

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback, R8Dataset

EPOCHS, BATCH_SIZE, LR = 15, 32, 0.05

keras.utils.set_random_seed(0)
digits = load_digits()
images, test_images, labels, test_labels = train_test_split(digits.data / 16, digits.target, random_state=0)

model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.SGD(LR, momentum=0.9), loss, metrics=["accuracy"])
r8 = R8Scheduler(len(labels), batch_size=BATCH_SIZE, num_epochs=EPOCHS, initial_lr=LR)
dataset = R8Dataset(images, labels, r8)
model.fit(dataset, epochs=EPOCHS, verbose=0, shuffle=False, callbacks=[R8Callback(dataset)])

print(f"test accuracy {model.evaluate(test_images, test_labels, verbose=0)[1]:.1%}")
