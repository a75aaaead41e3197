"""From an artifact to decisions over the network. Knows mvfoul; never torch, training or export."""
