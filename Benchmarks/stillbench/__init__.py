"""Measures Stillpoint beside its peers on this machine; `Scripts/bench` runs it."""
