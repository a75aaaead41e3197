"""From a checkpoint to a verified artifact. Knows mvfoul and the network; never serving."""
