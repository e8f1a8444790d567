-- Passwords of compose.yaml's roles. Postgres is in a network of this machine, which only Tidegate's own processes share.
alter role tidegate_owner password 'local-only';
alter role tidegate_worker password 'local-only';
alter role tidegate_operator password 'local-only';
alter role tidegate_control password 'local-only';
