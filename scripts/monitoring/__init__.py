"""Grafana dashboards as code, and a demonstration of them without Grafana.

python -m scripts.monitoring          write k8s/monitoring/dashboards/*.json anew (a test compares them)
python -m scripts.monitoring.demo     server, load, Prometheus, and a page with the panels (`make monitoring-demo`)

queries.py is the one home of every query; dashboards.py arranges them; grafana.py alone knows Grafana.
"""
