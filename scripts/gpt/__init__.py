"""What scripts/train_gpt.py trains: a small byte-level GPT on the text of Python's own standard library."""
