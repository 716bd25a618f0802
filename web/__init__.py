"""The page that trains by itself: the course's own step and reading as ONNX graphs, and the module that runs them."""
