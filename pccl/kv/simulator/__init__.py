"""Traces of requests, replayed against a model of two clusters and a link, under any policy of offloading."""
