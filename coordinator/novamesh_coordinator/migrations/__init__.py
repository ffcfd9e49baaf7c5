"""Steps from one database schema to the next, run by Alembic when a store is opened."""
