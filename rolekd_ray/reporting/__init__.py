"""What a run shows: history, TensorBoard, console. Reads the run directory and the log's records alone."""
