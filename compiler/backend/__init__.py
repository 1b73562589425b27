"""From a quantised Network and a spec to a Program: place, pack, map, schedule, emit (build runs it all)."""
