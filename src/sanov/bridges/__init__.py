"""Out to the libraries a user already has. Nothing of ours imports a bridge; importing one has no effect."""
