"""What a person teaches: captions of a gallery's photos, how well the model does on them, and training on them."""
