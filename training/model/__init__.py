"""The network: a backbone per view, an aggregation over views, two heads."""
