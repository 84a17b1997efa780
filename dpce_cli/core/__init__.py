"""The toolkit itself: no printing, no exits, usable as a library."""
