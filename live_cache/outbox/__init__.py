"""
Writers that are not Django: triggers put what they change into an outbox table, and a listener ticks it.

``installing`` makes the table and the triggers, ``operations`` does so in a migration, ``listener`` reads the outbox.
"""
