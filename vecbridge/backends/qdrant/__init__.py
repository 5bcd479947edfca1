"""Collections in Qdrant: a server by gRPC or REST, a cluster, or Edge inside this process."""
