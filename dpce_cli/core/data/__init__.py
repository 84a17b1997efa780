"""Captioned-image data sets, the image pipeline and position shift."""
