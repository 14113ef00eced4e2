"""The parts of the state machine of tests/test_state_machine.py."""
