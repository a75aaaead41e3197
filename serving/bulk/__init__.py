"""A whole split through a server, into SoccerNet's prediction file: `python -m serving.bulk`."""
