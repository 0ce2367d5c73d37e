"""What people look at: the machine, curves, view contact sheets, embeddings and the page that holds them all."""
