"""Who suits a call best: which replicas serve it, who is at home with its prefix, who holds it, and the pick."""
