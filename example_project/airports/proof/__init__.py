"""The proof that ``manage.py demo --once`` gives: times of live reads, and freshness after every kind of write."""
