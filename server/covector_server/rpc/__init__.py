"""gRPC handlers. They translate and hold no logic."""
