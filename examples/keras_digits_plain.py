"""Plain Keras on scikit-learn's digits; ``diff`` it with keras_digits.py."""

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

EPOCHS, BATCH_SIZE, LR = 15, 32, 0.05

keras.utils.set_random_seed(0)
digits = load_digits()
images, test_images, labels, test_labels = train_test_split(digits.data / 16, digits.target, random_state=0)

model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.SGD(LR, momentum=0.9), loss, metrics=["accuracy"])
model.fit(images, labels, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)

print(f"test accuracy {model.evaluate(test_images, test_labels, verbose=0)[1]:.1%}")
