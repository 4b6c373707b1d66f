"""How much work stands at each replica: own charges, what replicas report, and what others will have sent since."""
