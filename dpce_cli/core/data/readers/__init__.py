"""One reader per form of data set."""
