"""Files that appear whole or not at all, and HDF5 stores that are filled over hours."""
