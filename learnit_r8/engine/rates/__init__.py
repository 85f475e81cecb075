"""The learning rate of each step: of the search before a run, of its schedule, and of the cool-down that ends it."""
