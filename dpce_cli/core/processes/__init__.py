"""Devices, communication between the processes of one job, and stop signals."""
