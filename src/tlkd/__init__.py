"""Does a bigger teacher make a fine-tuned small network better: by how much, how surely, and why."""

__version__ = "0.1.0"
