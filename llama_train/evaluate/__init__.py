"""How good a model is: the loss on held-out documents, and tasks."""
