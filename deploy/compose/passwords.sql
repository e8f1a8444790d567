-- Passwords of the roles in compose.yaml. Postgres is in a network of this machine that only Tidegate's processes use.
alter role tidegate_owner password 'local-only';
alter role tidegate_worker password 'local-only';
alter role tidegate_operator password 'local-only';
alter role tidegate_control password 'local-only';
