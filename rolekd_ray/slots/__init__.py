"""Where intervals are trained: a worker in this process, or one that lives in a Ray actor through a whole search."""
