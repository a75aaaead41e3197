"""A synthetic multi-camera data set in SoccerNet-MVFoul's layout, for the demo and for tests."""
