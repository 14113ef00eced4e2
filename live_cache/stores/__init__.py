"""Where entries are kept: memory, disk, Redis, nowhere, or several of them as one. See stores.base for the contract."""
