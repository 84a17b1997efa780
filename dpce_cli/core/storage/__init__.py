"""Files that appear only when they are complete, and HDF5 stores that are filled over hours."""
