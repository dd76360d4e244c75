"""W&B, TensorBoard, Trackio and others: one file a tracker, behind one base class."""
