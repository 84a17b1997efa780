"""The image encoder, the text encoder and the two together."""
