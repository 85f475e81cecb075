"""The place where an incident began: a refused batch runs once more, watched, before anything is put back."""
