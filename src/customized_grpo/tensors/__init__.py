"""What weights and activations go through whatever the model: shards, an exchange for a while, the bytes that live."""
