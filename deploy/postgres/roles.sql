-- Who may do what in Postgres. Run it in Tidegate's database as a superuser (or whoever may create roles), before the first
-- `tidegate migrate` and after each: it may be run as often as one likes.
--
--   psql "$ADMIN_URL" -v ON_ERROR_STOP=1 -f deploy/postgres/roles.sql
--
-- tidegate_owner     owns the schema: `tidegate migrate`, and nothing else
-- tidegate_worker    workers: reads and writes rows, with the exceptions below
-- tidegate_operator  the other verbs of `tidegate`: rows, too, but no lease, cursor or worker
-- tidegate_control   the control API: only the tables and columns below
-- tidegate_reader    the verbs of `tidegate` that only look, for people who change nothing: reads all rows, sealed values as they are
--
-- ingest has no role: it is not told where Postgres is. Roles have no password here; give them one, or certificates.
-- The tests run under exactly these roles, and tests/integration/deployment/permissions.rs says what each may not do.

do $$
declare
    name text;
begin
    foreach name in array array['tidegate_owner', 'tidegate_worker', 'tidegate_operator', 'tidegate_control', 'tidegate_reader'] loop
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
grant usage on schema public to tidegate_worker, tidegate_operator, tidegate_control, tidegate_reader;

-- Whatever a migration makes: rows may be read and written, by both; neither truncates, alters or drops.
alter default privileges for role tidegate_owner in schema public
    grant select, insert, update, delete on tables to tidegate_worker, tidegate_operator;
alter default privileges for role tidegate_owner in schema public
    grant select on tables to tidegate_reader;
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
        ('user_identities',     'tidegate_worker',   'select, delete'),
        -- The control API and the command line request erasures; workers carry them out, and request none.
        ('erasures',            'tidegate_worker',   'select, update (state, note, rows, webhooks, next_at, direct_channels), delete'),
        ('erasures',            'tidegate_control',  'select, insert, update (next_at)'),
        ('agents',              'tidegate_worker',   'select, update (headers_previous, headers_previous_until)'),
        ('apps',                'tidegate_worker',   'select, update (signing_secret_previous, signing_secret_previous_until)'),
        ('connections',         'tidegate_worker',   'select, update'),
        ('link_codes',          'tidegate_worker',   'select, update'),
        -- Tombstones are written by a trigger, whoever deletes.
        ('deleted_connections', 'tidegate_worker',   'select, update (purged_at, emptied_at), delete'),
        ('deleted_connections', 'tidegate_operator', 'select'),
        -- There are 64 partitions; workers own them, nobody else.
        ('partition_cursors',   'tidegate_worker',   'select, update'),
        ('partition_leases',    'tidegate_worker',   'select, update'),
        ('partition_cursors',   'tidegate_operator', 'select'),
        ('partition_leases',    'tidegate_operator', 'select'),
        ('workers',             'tidegate_operator', 'select'),
        -- Whoever changes something adds a row. Ids and times are Postgres's, and rows stay.
        ('audit_log', 'tidegate_worker',
         'insert (actor, action, object_kind, object_id, org_id, before, after)'),
        ('audit_log', 'tidegate_operator',
         'select, insert (actor, action, object_kind, object_id, org_id, before, after)'),
        -- Keys of the control API are no business of workers. They delete old responses.
        ('api_keys',            'tidegate_worker',   null),
        ('console_sessions',    'tidegate_worker',   null),
        ('console_sessions',    'tidegate_operator', null),
        ('install_links',       'tidegate_worker',   null),
        ('install_states',      'tidegate_worker',   null),
        ('idempotency_keys',    'tidegate_worker',   'select, delete'),
        -- Decisions of people are made by workers only.
        ('approvals',           'tidegate_operator', 'select, update (content), delete'),
        ('feedback',            'tidegate_worker',   'select, insert, delete'),
        ('feedback',            'tidegate_operator', 'select, delete'),
        -- Triggers write notifications. Workers send them.
        ('notification_endpoint', 'tidegate_worker', 'select'),
        ('notifications',       'tidegate_worker',   'select, update, delete'),
        ('notifications',       'tidegate_operator', 'select, delete'),
        ('notification_endpoint', 'tidegate_control', 'select, insert, update, delete'),
        ('notifications',       'tidegate_control',  'select, delete'),
        -- The control API gets each table by itself. It creates no API key, and reads a body only where the console reveals it.
        -- Workers delete the traffic of the connections that it deletes.
        ('_sqlx_migrations',    'tidegate_control',  'select'),
        ('organizations',       'tidegate_control',  'select, insert, update (name), delete'),
        ('organization_members', 'tidegate_control', 'select, insert, delete'),
        ('user_identities',     'tidegate_control',  'select, insert, update (user_id), delete'),
        ('agents',              'tidegate_control',  'select, insert, update, delete'),
        ('agent_slots',         'tidegate_control',  'select'),
        ('agent_health',        'tidegate_control',  'select'),
        ('apps',                'tidegate_control',  'select, insert, update, delete'),
        ('connections',         'tidegate_control',
         'select, insert, delete, update (org_id, agent_id, enterprise_id, preview_mode, status, status_reason, signing_secret,
                                          signing_secret_previous, signing_secret_previous_until, bot_token, bot_user_id,
                                          settings, scopes, installed_by, installed_at, sending_paused_at)'),
        ('token_rotations',     'tidegate_control',
         'select (connection_id, generation), insert, update, delete'),
        ('install_links',       'tidegate_control',  'select, insert, update (revoked_at, used_at, connection_id), delete'),
        ('install_states',      'tidegate_control',  'select, insert, update (consumed_at), delete'),
        ('connection_status_history', 'tidegate_control', 'select, insert'),
        ('connection_usage',    'tidegate_control',  'select'),
        ('connection_backlog',  'tidegate_control',  'select'),
        ('deleted_connections', 'tidegate_control',  'select'),
        ('pauses',              'tidegate_control',  'select, insert, update'),
        ('link_codes',          'tidegate_control',  'select, insert, delete, update (revoked_at, expires_at, consumed_channel, consumed_user)'),
        ('channel_bindings',    'tidegate_control',
         'select, insert, delete, update (org_id, agent_id, bound_by, bound_at)'),
        ('channel_binding_history', 'tidegate_control', 'select, insert'),
        ('processed_keys',      'tidegate_control',  'select'),
        ('ignored_webhooks',    'tidegate_control',  'select'),
        ('response_url_uses',   'tidegate_control',  'select'),
        ('deliveries',          'tidegate_control',  'select, insert, delete'),
        ('delivery_lanes',      'tidegate_control',  'select, insert, update'),
        ('delivery_log',        'tidegate_control',  'select, insert'),
        ('dead_letters',        'tidegate_control',  'select, update (redrive_at, redrive_starts), delete'),
        ('runs',                'tidegate_control',  'select, delete'),
        ('run_parts',           'tidegate_control',  'select (connection_id, lane, position), delete'),
        ('replays',             'tidegate_control',  'select, insert, update (state, epoch)'),
        ('replay_results',      'tidegate_control',  'select'),
        ('outbox',              'tidegate_control',  'select, insert'),
        ('outbox_lanes',        'tidegate_control',  'select, insert, update'),
        ('outbox_channels',     'tidegate_control',  'select, insert, update'),
        ('outbox_log',          'tidegate_control',  'select'),
        ('outbox_failures',     'tidegate_control',  'select, update (attempts), delete'),
        ('api_keys',            'tidegate_control',  'select, update (last_used_at)'),
        ('console_sessions',    'tidegate_control',  'select, insert, update (used_at), delete'),
        ('idempotency_keys',    'tidegate_control',  'select, insert, update, delete'),
        ('audit_log',           'tidegate_control',
         'select, insert (actor, action, object_kind, object_id, org_id, before, after)')
    ) as rules (tab, who, may) loop
        if to_regclass('public.' || rule.tab) is not null then
            execute format('revoke all on %I from %I', rule.tab, rule.who);
            if rule.may is not null then
                execute format('grant %s on %I to %I', rule.may, rule.tab, rule.who);
            end if;
        end if;
    end loop;
    -- Versions of changed connections, and turns of messages that are sent again.
    for rule in select unnest(array['connection_versions', 'outbox_turns']) as tab loop
        if to_regclass('public.' || rule.tab) is not null then
            execute format('grant usage on sequence %I to tidegate_control', rule.tab);
        end if;
    end loop;
end $$;

-- Functions that act with the owner's rights. Triggers ask for no right of whoever fires them; what is called is the
-- worker's or the operator's.
do $$
declare
    rule record;
begin
    for rule in select * from (values
        (to_regprocedure('public.truncate_slot(text, integer)'), 'tidegate_worker'),
        (to_regprocedure('public.prune_audit_log(interval, integer)'), 'tidegate_worker'),
        (to_regprocedure('public.delete_uninstalled_connections(interval, integer, integer)'), 'tidegate_worker'),
        (to_regprocedure('public.delete_connection_references(text, integer)'), 'tidegate_operator, tidegate_control, tidegate_worker'),
        -- Of these each requires an open erasure.
        (to_regprocedure('public.erase_person_from_audit_log(text, bigint, integer)'), 'tidegate_operator, tidegate_worker'),
        (to_regprocedure('public.erase_organization_from_audit_log(text, bigint, integer)'), 'tidegate_operator, tidegate_worker'),
        (to_regprocedure('public.delete_erased_connection(text)'), 'tidegate_operator, tidegate_worker'),
        (to_regprocedure('public.delete_erased_organization(text)'), 'tidegate_operator, tidegate_worker')
    ) as rules (called, who) loop
        if rule.called is not null then
            execute format('revoke all on function %s from public, tidegate_worker, tidegate_operator, tidegate_control, tidegate_reader',
                           rule.called);
            execute format('grant execute on function %s to %s', rule.called, rule.who);
        end if;
    end loop;
end $$;
