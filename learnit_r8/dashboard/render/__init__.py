"""Drawing: pure functions of the view and the size that return lines of styled text. No terminal in it."""
