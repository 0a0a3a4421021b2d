"""The methods, one file each or one per family. A file that is put here is found; see `distill.registry.method`."""
