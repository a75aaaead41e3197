"""A local stream server: clips as live cameras in real time, with faults on demand. For demos and tests."""
