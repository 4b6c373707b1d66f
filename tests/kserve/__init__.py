"""A real server of the open inference protocol, version 2: MLServer, in an environment of its own."""
