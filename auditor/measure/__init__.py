"""Functions that probes and checks share: measurements that are taken when asked for."""
