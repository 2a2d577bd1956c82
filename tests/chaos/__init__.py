"""Chaos: workflows of mixed DAGs while everything around them is killed, stopped, flushed and restarted."""
