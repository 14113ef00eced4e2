"""The models that the tests read and write."""
