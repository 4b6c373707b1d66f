"""A client-side load balancer for model replicas."""
