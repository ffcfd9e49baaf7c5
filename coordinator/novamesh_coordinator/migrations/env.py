"""How Alembic runs our steps: on the connection that the store hands over, in its transaction."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    transactional_ddl=True,  # or a kill half way through leaves tables and no version
)
with context.begin_transaction():
    context.run_migrations()
