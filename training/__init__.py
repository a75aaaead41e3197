"""From clips and annotations to a checkpoint. Knows mvfoul; never export or serving."""
