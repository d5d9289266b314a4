"""stmae: point it at a folder of unlabelled videos and get a video encoder."""
