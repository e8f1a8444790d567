-- Who may do what in Postgres. Run it in Tidegate's database as a superuser (or whoever may create roles), before the first
-- `tidegate migrate` and after each: it may be run as often as one likes.
--
--   psql "$ADMIN_URL" -v ON_ERROR_STOP=1 -f deploy/postgres/roles.sql
--
-- tidegate_owner     owns the schema: `tidegate migrate`, and nothing else
-- tidegate_worker    workers: reads and writes rows, with the exceptions below
-- tidegate_operator  the other verbs of `tidegate`: rows, too, but no lease, cursor or worker
--
-- ingest has no role: it is not told where Postgres is. Roles have no password here; give them one, or certificates.
-- The tests run under exactly these roles, and tests/it/privilege.rs says what each may not do.

do $$
declare
    name text;
begin
    foreach name in array array['tidegate_owner', 'tidegate_worker', 'tidegate_operator'] loop
        begin
            execute format('create role %I login', name);
            -- Behind the session's own: whoever forgets a transaction must not hold its locks.
            execute format('alter role %I set idle_in_transaction_session_timeout = %L', name, '1min');
        exception when duplicate_object or unique_violation then
            null; -- it is there, or somebody else is making it
        end;
        execute format('grant connect on database %I to %I', current_database(), name);
    end loop;
    execute format('revoke temporary on database %I from public', current_database());
end $$;

revoke create on schema public from public;
grant usage, create on schema public to tidegate_owner;
grant usage on schema public to tidegate_worker, tidegate_operator;

-- Whatever a migration makes: rows may be read and written, by both; neither truncates, alters or drops.
alter default privileges for role tidegate_owner in schema public
    grant select, insert, update, delete on tables to tidegate_worker, tidegate_operator;
alter default privileges for role tidegate_owner in schema public
    grant usage on sequences to tidegate_worker, tidegate_operator;

-- Tables for which that is too much.
do $$
declare
    rule record;
begin
    for rule in select * from (values
        ('_sqlx_migrations',    'tidegate_worker',   'select'),
        ('_sqlx_migrations',    'tidegate_operator', 'select'),
        -- What is declared to a worker, it does not declare. Slots of agents are made and dropped by triggers.
        ('organizations',       'tidegate_worker',   'select'),
        ('organization_members', 'tidegate_worker',  'select'),
        ('user_identities',     'tidegate_worker',   'select'),
        ('agents',              'tidegate_worker',   'select'),
        ('connections',         'tidegate_worker',   'select, update'),
        ('link_codes',          'tidegate_worker',   'select, update'),
        -- Tombstones are written by a trigger, whoever deletes.
        ('deleted_connections', 'tidegate_worker',   'select'),
        ('deleted_connections', 'tidegate_operator', 'select'),
        -- There are 64 partitions; workers own them, nobody else.
        ('partition_cursors',   'tidegate_worker',   'select, update'),
        ('partition_leases',    'tidegate_worker',   'select, update'),
        ('partition_cursors',   'tidegate_operator', 'select'),
        ('partition_leases',    'tidegate_operator', 'select'),
        ('workers',             'tidegate_operator', 'select')
    ) as rules (tab, who, may) loop
        if to_regclass('public.' || rule.tab) is not null then
            execute format('revoke all on %I from %I', rule.tab, rule.who);
            execute format('grant %s on %I to %I', rule.may, rule.tab, rule.who);
        end if;
    end loop;
end $$;

-- Functions that act with the owner's rights. Triggers ask for no right of whoever fires them; what is called is the worker's.
do $$
declare
    called regprocedure := to_regprocedure('public.truncate_slot(text, integer)');
begin
    if called is not null then
        execute format('revoke all on function %s from public, tidegate_operator', called);
        execute format('grant execute on function %s to tidegate_worker', called);
    end if;
end $$;
