"""The built-in data set: cartoon street scenes."""
