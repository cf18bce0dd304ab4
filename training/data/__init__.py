"""Datasets: pictures and captions, their sources, buckets, encoding and cache."""
