"""The loop and its parts: `loop` reads top to bottom as the algorithm, the other files hold the detail."""
