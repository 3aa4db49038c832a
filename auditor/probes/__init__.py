"""Measurements that several checks share, each taken at most once per audit."""
