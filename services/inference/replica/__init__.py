"""One replica: an engine behind the queue. `python -m services.inference.replica <spec file> <socket> <pid>`."""
