"""What a rank's state consists of: which tensors are unique, how the rest is encoded, how it is put back."""
