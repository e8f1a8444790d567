-- Whether a worker reaches NATS, as it says with each sign of life: one that does not gives its partitions to those that do.
alter table workers add column reads boolean not null default true;
