"""What the compiler did, told to a person: what kernels cost, why they are as they are, what differs in two bundles."""
