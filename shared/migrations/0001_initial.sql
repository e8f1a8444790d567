-- Schema of Tidegate. One migration until the first release. Later changes expand first and contract a release later,
-- because the previous release may still be running.
--
-- Traffic tables have no foreign keys: no statement of intake or dispatch may wait for a row of another connection.

create table organizations (
    id          text primary key,
    name        text not null default '',
    created_at  timestamptz not null default now()
);

-- HTTP endpoints that answer conversations. `secret` is sealed with the token keyring.
create table agents (
    org_id          text not null references organizations (id) on delete cascade,
    id              text not null,
    name            text not null default '',
    mode            text not null default 'reply' check (mode in ('reply', 'forward')),
    url             text not null,
    secret          text not null,
    -- Timeout of one attempt.
    timeout_ms      integer not null default 60000 check (timeout_ms between 1000 and 600000),
    -- Maximum concurrent attempts over all workers.
    max_concurrent  integer not null default 16 check (max_concurrent between 1 and 1000),
    -- Maximum questions of one person in a minute.
    max_per_user    integer not null default 30 check (max_per_user between 1 and 1000000),
    -- Time from the first attempt after which a delivery is given up. Null: by mode (reply 1 h, forward 24 h).
    retry_for_ms    bigint check (retry_for_ms > 0),
    -- Maximum wait of a delivery for its first attempt.
    keep_for_ms     bigint not null default 259200000 check (keep_for_ms > 0),
    -- Forwarded webhooks are signed with the signing secret of a connection of the same organization.
    signs_as_slack  boolean not null default false,
    -- Sealed headers of calls, and the previous ones, which an agent that rejects the new ones gets for a while.
    headers                 text,
    headers_previous        text,
    headers_previous_until  timestamptz,
    -- Policy for edits of messages: no effect, or the agent receives the new text unless the answer has begun.
    edits           text not null default 'ignore' check (edits in ('ignore', 'rerun')),
    -- Policy for messages that arrive while an earlier one of their conversation is answered: wait, be answered
    -- together with other waiting messages, or also cancel the answer.
    overlap         text not null default 'queue' check (overlap in ('queue', 'merge', 'interrupt')),
    -- Set by an operator: no attempt begins, and waiting deliveries do not age.
    paused_at       timestamptz,
    created_at      timestamptz not null default now(),
    primary key (org_id, id)
);
create index agents_previous_headers on agents (headers_previous_until) where headers_previous_until is not null;

-- Rights to one running attempt of an agent. Slot 0 is only for interactive deliveries. A slot above the agent's
-- `max_concurrent` is not granted. No statement of intake writes this table.
create table agent_slots (
    org_id          text not null,
    agent_id        text not null,
    n               integer not null,
    connection_id   text,
    lane            bigint,
    worker          text,
    primary key (org_id, agent_id, n)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);
create index agent_slots_of_worker on agent_slots (worker) where worker is not null;

create function agents_make_slots() returns trigger language plpgsql security definer set search_path from current as $$
begin
    insert into agent_slots (org_id, agent_id, n)
    select new.org_id, new.id, n from generate_series(0, new.max_concurrent) n on conflict do nothing;
    return null;
end $$;
create trigger agents_make_slots after insert or update of max_concurrent on agents
    for each row execute function agents_make_slots();

-- Deleted agents, whose waiting deliveries end in steps.
create table deleted_agents (
    org_id      text not null,
    agent_id    text not null,
    deleted_at  timestamptz not null default now(),
    primary key (org_id, agent_id)
);
create index deleted_agents_at on deleted_agents (deleted_at);

create function agents_drop_slots() returns trigger language plpgsql security definer set search_path from current as $$
begin
    delete from agent_slots where org_id = old.org_id and agent_id = old.id;
    delete from agent_health where org_id = old.org_id and agent_id = old.id;
    -- An open pause would stop the clock of deliveries to a new agent with this id.
    delete from pauses where org_id = old.org_id and agent_id = old.id;
    insert into deleted_agents (org_id, agent_id) values (old.org_id, old.id)
        on conflict (org_id, agent_id) do update set deleted_at = excluded.deleted_at;
    return null;
end $$;
create trigger agents_drop_slots after delete on agents
    for each row execute function agents_drop_slots();

-- Open circuit breakers. A row exists while the circuit breaker of an agent is open.
create table agent_health (
    org_id      text not null,
    agent_id    text not null,
    opened_at   timestamptz not null default now(),
    -- Time of the next probe. The worker that raises it makes the probe.
    probe_at    timestamptz not null,
    probes      integer not null default 0,
    last_error  text not null default '',
    primary key (org_id, agent_id)
);

-- One sequence for all rows: a version is newer than every earlier one, even of deleted rows.
create sequence connection_versions;

-- Slack apps. Their webhooks arrive on the shared route, and workspaces install them by OAuth. Signing secrets are
-- sealed with the signing secret keyring, client secrets with the token keyring. A replaced secret stays valid for a
-- while.
create table apps (
    id                  text primary key,
    name                text not null default '',
    -- The organization that may install the app. Null: any organization.
    org_id              text references organizations (id),
    client_id           text not null,
    client_secret                 text not null,
    client_secret_previous        text,
    client_secret_previous_until  timestamptz,
    signing_secret                text not null,
    signing_secret_previous       text,
    signing_secret_previous_until timestamptz,
    scopes              text[] not null,
    optional_scopes     text[] not null default '{}',
    -- URL of the control API to which Slack redirects the browser.
    redirect_url        text not null,
    -- URLs to which a browser may be redirected after an installation: one of these, or below.
    return_urls         text[] not null default '{}',
    -- Agent of new connections, by its id in the organization that installs the app.
    agent_id            text,
    -- Contact for people who can't install the app.
    contact             text not null default '',
    version             bigint not null default nextval('connection_versions'),
    created_at          timestamptz not null default now(),
    updated_at          timestamptz not null default now(),
    check ((signing_secret_previous is null) = (signing_secret_previous_until is null)),
    check ((client_secret_previous is null) = (client_secret_previous_until is null))
);
create index apps_by_org on apps (org_id) where org_id is not null;

create table connections (
    id                  text primary key check (id ~ '^[0-9a-f]{32}$'),
    org_id              text not null references organizations (id),
    -- Agent of conversations without a binding. Optional.
    agent_id            text,
    platform            text not null default 'slack' check (platform in ('slack')),
    app_id              text not null,
    enterprise_id       text,
    team_id             text,
    preview_mode        boolean not null default false,
    status              text not null default 'pending'
                        check (status in ('pending', 'active', 'stopped', 'error', 'revoked')),
    -- Cause of `error` or `revoked`, for operators.
    status_reason       text not null default '',
    -- Sealed with the signing secret keyring. Null: those of the app.
    signing_secret                text,
    signing_secret_previous       text,
    signing_secret_previous_until timestamptz,
    -- Sealed with the token keyring.
    bot_token           text,
    bot_user_id         text,
    -- Scopes that Slack granted to an installation by OAuth, and the person who installed.
    scopes              text[] not null default '{}',
    installed_by        text,
    settings            jsonb not null default '{}',
    -- Set by an operator: nothing is sent to Slack, and waiting messages do not age.
    sending_paused_at   timestamptz,
    installed_at        timestamptz,
    version             bigint not null default nextval('connection_versions'),
    created_at          timestamptz not null default now(),
    updated_at          timestamptz not null default now(),
    foreign key (org_id, agent_id) references agents (org_id, id),
    check ((signing_secret_previous is null) = (signing_secret_previous_until is null))
);
-- A workspace is identified by its own id, with or without the id of its organization.
create unique index connections_one_per_app_and_team
    on connections (app_id, coalesce(team_id, enterprise_id, ''));
create index connections_by_agent on connections (org_id, agent_id);
create index connections_by_version on connections (version);
create index connections_previous_secrets on connections (signing_secret_previous_until)
    where signing_secret_previous_until is not null;
create index connections_revoked on connections (updated_at) where status = 'revoked';

-- Every change raises the version and notifies the workers.
create function connections_changed() returns trigger language plpgsql as $$
begin
    new.version := nextval('connection_versions');
    new.updated_at := now();
    return new;
end $$;
create trigger connections_changed before update on connections
    for each row execute function connections_changed();
create trigger apps_changed before update on apps
    for each row execute function connections_changed();

create function connections_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('connections', coalesce(new.id, old.id));
    return null;
end $$;
create trigger connections_notify after insert or update or delete on connections
    for each row execute function connections_notify();

-- A change of an app affects all of its connections: an empty notification makes workers read every row again.
create function apps_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('connections', '');
    return null;
end $$;
create trigger apps_notify after insert or update or delete on apps
    for each statement execute function apps_notify();

-- Changes of a connection's status. A trigger writes them, so that every change is recorded.
create table connection_status_history (
    id              bigint generated always as identity primary key,
    connection_id   text not null references connections (id) on delete cascade,
    at              timestamptz not null default now(),
    status          text not null,
    reason          text not null default ''
);
create index connection_status_history_of on connection_status_history (connection_id, id);
create index connection_status_history_at on connection_status_history (at);

create function connections_record_status() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' or old.status <> new.status then
        insert into connection_status_history (connection_id, status, reason)
        values (new.id, new.status, new.status_reason);
    end if;
    return null;
end $$;
create trigger connections_record_status after insert or update on connections
    for each row execute function connections_record_status();

-- Tombstones: webhooks of a deleted connection are ignored, those of an unknown one become dead letters. Retention deletes
-- them after 30 days: the stream keeps webhooks for 14 days.
create table deleted_connections (
    id          text primary key,
    deleted_at  timestamptz not null default now(),
    -- Time at which a worker purged the webhooks from the stream.
    purged_at   timestamptz,
    -- Time at which a worker found no traffic, a day or more after the deletion: no more arrives.
    emptied_at  timestamptz,
    check (emptied_at is null or purged_at is not null)
);
create index deleted_connections_emptied on deleted_connections (deleted_at) where emptied_at is not null;
create index deleted_connections_unemptied on deleted_connections (deleted_at, id) where emptied_at is null;
create index deleted_connections_unpurged on deleted_connections (deleted_at) where purged_at is null;

create function connections_add_tombstone() returns trigger
    language plpgsql security definer set search_path from current as $$
begin
    insert into deleted_connections (id) values (old.id) on conflict do nothing;
    return null;
end $$;
create trigger connections_add_tombstone after delete on connections
    for each row execute function connections_add_tombstone();

-- Credentials of token rotation, sealed with the token keyring. A separate table, so that a lease does not change the
-- connection. `generation` counts refreshes: the holder of an older one writes nothing.
create table token_rotations (
    connection_id   text primary key references connections (id) on delete cascade,
    -- Null: those of the app.
    client_id       text,
    client_secret   text,
    refresh_token   text not null,
    generation      bigint not null default 0,
    refresh_at      timestamptz not null,
    expires_at      timestamptz not null,
    leased_until    timestamptz not null default '-infinity',
    failures        integer not null default 0,
    last_error      text not null default '',
    check ((client_id is null) = (client_secret is null))
);
create index token_rotations_due on token_rotations (refresh_at);

-- Links by which a person installs an app for an organization. A used link is valid only for the same workspace.
create table install_links (
    link_hash       bytea primary key,
    org_id          text not null references organizations (id) on delete cascade,
    app_id          text not null references apps (id) on delete cascade,
    -- Agent of a new connection. Null: that of the app.
    agent_id        text,
    -- URL to which the browser is redirected afterwards. Null: a page of the control API.
    return_url      text,
    created_by      text not null default '',
    created_at      timestamptz not null default now(),
    expires_at      timestamptz not null,
    revoked_at      timestamptz,
    used_at         timestamptz,
    connection_id   text references connections (id) on delete set null,
    foreign key (org_id, agent_id) references agents (org_id, id) on delete cascade,
    check (expires_at <= created_at + interval '31 days')
);
create index install_links_expires on install_links (expires_at);
create index install_links_by_org on install_links (org_id, created_at);
create index install_links_by_app on install_links (app_id);
create index install_links_by_connection on install_links (connection_id) where connection_id is not null;

-- Installations begun in a browser, one per OAuth `state`. `redirect_url` is stored as sent: the exchange repeats it.
create table install_states (
    state_hash      bytea primary key,
    -- Cookie of the browser.
    browser_hash    bytea not null,
    link_hash       bytea not null references install_links (link_hash) on delete cascade,
    redirect_url    text not null,
    created_at      timestamptz not null default now(),
    expires_at      timestamptz not null,
    consumed_at     timestamptz
);
create index install_states_expires on install_states (expires_at);
create index install_states_by_link on install_states (link_hash);

-- Erases the tokens of an installation by OAuth when the connection is revoked: a person removed the app, or Slack
-- reports that its tokens are invalid. A rotation that a refresh has locked is skipped here, and erased by retention.
create function connections_erase_tokens() returns trigger
    language plpgsql security definer set search_path from current as $$
begin
    new.bot_token := null;
    delete from token_rotations where connection_id in (
        select connection_id from token_rotations where connection_id = new.id for update skip locked);
    return new;
end $$;
create trigger connections_erase_tokens before update on connections
    for each row when (new.status = 'revoked' and old.status <> 'revoked' and new.installed_by is not null)
    execute function connections_erase_tokens();

-- Deletes rows that reference a connection, at most `most` of each table, so that the deletion of the connection is
-- short. Returns their number.
create function delete_connection_references(of_connection text, most integer) returns bigint
    language plpgsql security definer set search_path from current as $$
declare
    deleted bigint;
    total bigint := 0;
    tab text;
begin
    if exists (select from connections where id = of_connection and status not in ('stopped', 'revoked')) then
        raise exception 'the connection is not stopped';
    end if;
    foreach tab in array array['channel_bindings', 'conversation_sessions', 'welcomed_users', 'connection_status_history'] loop
        execute format('delete from %1$I where ctid = any (array (
                            select ctid from %1$I where connection_id = $1 limit $2))', tab)
          using of_connection, most;
        get diagnostics deleted = row_count;
        total := total + deleted;
    end loop;
    return total;
end $$;

-- Deletes connections that people installed and uninstalled, after the `skip` oldest. Those with many rows take several
-- calls. Returns the number of connections that were deleted, or lost a step of their rows. Workers lack the right to
-- delete connections, and a compromised worker must not delete recently uninstalled ones.
create function delete_uninstalled_connections(keep interval, most integer, skip integer) returns bigint
    language plpgsql security definer set search_path from current as $$
declare
    step constant integer := 5000;
    gone text[];
    large text[];
begin
    if keep < interval '1 day' then
        raise exception 'the data of an uninstalled app is kept for a day at least';
    end if;
    gone := array (select id from connections
                    where status = 'revoked' and installed_by is not null and updated_at < now() - keep
                    order by updated_at offset skip limit most for update skip locked);
    large := array (select id from unnest(gone) id where delete_connection_references(id, step) >= step);
    gone := array (select id from unnest(gone) id where id <> all (large));
    update link_codes set consumed_channel = null, consumed_user = null
     where consumed_connection = any (gone) and (connection_id is null or connection_id <> all (gone));
    delete from connections where id = any (gone);
    return cardinality(gone) + cardinality(large);
end $$;

-- Consecutive rejections of an installation's token. A separate table, because a change of the connection would
-- invalidate the workers' caches.
create table token_failures (
    connection_id           text primary key references connections (id) on delete cascade,
    installed_at            timestamptz,
    consecutive_failures    integer not null,
    at                      timestamptz not null default now()
);

-- Single-use link codes. Without a connection a code is valid on any preview connection.
create table link_codes (
    code_hash           bytea primary key,
    org_id              text not null,
    agent_id            text not null,
    platform            text not null default 'slack' check (platform in ('slack')),
    surfaces            text[] not null check (cardinality(surfaces) > 0 and surfaces <@ array['dm', 'channel']),
    connection_id       text references connections (id) on delete cascade,
    created_by          text not null default '',
    created_at          timestamptz not null default now(),
    expires_at          timestamptz not null,
    -- Set for a code that was revoked before its use, with `expires_at`.
    revoked_at          timestamptz,
    consumed_at         timestamptz,
    consumed_by         text,
    consumed_connection text,
    consumed_team       text,
    consumed_channel    text,
    consumed_user       text,
    foreign key (org_id, agent_id) references agents (org_id, id) on delete cascade,
    check (expires_at <= created_at + interval '60 minutes'),
    check ((consumed_at is null) = (consumed_by is null))
);
create index link_codes_expires on link_codes (expires_at);
create index link_codes_by_agent on link_codes (org_id, agent_id);
create index link_codes_consumed_on on link_codes (consumed_connection) where consumed_connection is not null;

-- Recent wrong link codes, per person and per workspace. Retention deletes expired rows.
create table link_code_attempts (
    who     text primary key,
    misses  integer not null,
    until   timestamptz not null
);
create index link_code_attempts_until on link_code_attempts (until);

-- Bindings of a connection's channels to agents, possibly of another organization.
create table channel_bindings (
    connection_id   text not null references connections (id) on delete cascade,
    team_id         text not null,
    channel_id      text not null,
    org_id          text not null,
    agent_id        text not null,
    bound_by        text not null,
    bound_at        timestamptz not null default now(),
    -- Last rejection of a message to this conversation by Slack, and its error.
    refused_at      timestamptz,
    last_send_error text,
    primary key (connection_id, team_id, channel_id),
    foreign key (org_id, agent_id) references agents (org_id, id) on delete cascade
);
create index channel_bindings_by_agent on channel_bindings (org_id, agent_id);
create index channel_bindings_by_channel on channel_bindings (connection_id, channel_id);

-- Changes of bindings. A trigger writes them, so that every change is recorded. Without an agent the binding was
-- removed.
create table channel_binding_history (
    id              bigint generated always as identity primary key,
    at              timestamptz not null default now(),
    connection_id   text not null,
    team_id         text not null,
    channel_id      text not null,
    org_id          text,
    agent_id        text,
    changed_by      text not null default ''
);
create index channel_binding_history_of on channel_binding_history (connection_id, id);
create index channel_binding_history_at on channel_binding_history (at);

create function channel_bindings_record() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' then
        insert into channel_binding_history (connection_id, team_id, channel_id, changed_by)
        values (old.connection_id, old.team_id, old.channel_id,
                coalesce(current_setting('tidegate.changed_by', true), ''));
    else
        insert into channel_binding_history (connection_id, team_id, channel_id, org_id, agent_id, changed_by)
        values (new.connection_id, new.team_id, new.channel_id, new.org_id, new.agent_id, new.bound_by);
    end if;
    return null;
end $$;
create trigger channel_bindings_record
    after insert or delete or update of org_id, agent_id, bound_by on channel_bindings
    for each row execute function channel_bindings_record();

-- Private channels and direct messages that a bot is in, known from an event or from a message that was sent there.
-- Retention deletes a connection's rows above a maximum, lowest `id` first, here and in `conversation_sessions` and
-- `welcomed_users`.
create table known_channels (
    connection_id   text not null,
    channel_id      text not null,
    id              bigint generated always as identity,
    at              timestamptz not null default now(),
    primary key (connection_id, channel_id)
);
create index known_channels_oldest on known_channels (connection_id, id);

-- Messages that people deleted. An answer to one is dropped.
create table deleted_messages (
    connection_id   text not null,
    channel_id      text not null,
    ts              text not null,
    at              timestamptz not null default now(),
    primary key (connection_id, channel_id, ts)
);
create index deleted_messages_at on deleted_messages (at);
create index deleted_messages_recent on deleted_messages (connection_id, at);

-- Sessions of conversations. Without a row the session is the first. A new session gets a new `id`.
create table conversation_sessions (
    connection_id   text not null references connections (id) on delete cascade,
    team_id         text not null,
    channel_id      text not null,
    number          bigint not null,
    id              bigint generated always as identity,
    primary key (connection_id, team_id, channel_id)
);
create index conversation_sessions_oldest on conversation_sessions (connection_id, id);

-- Welcomed people: each is welcomed once, however often Slack reports them.
create table welcomed_users (
    connection_id   text not null references connections (id) on delete cascade,
    team_id         text not null,
    user_id         text not null,
    id              bigint generated always as identity,
    at              timestamptz not null default now(),
    primary key (connection_id, team_id, user_id)
);
create index welcomed_users_oldest on welcomed_users (connection_id, id);

create table user_identities (
    platform            text not null check (platform in ('slack')),
    team_id             text not null,
    platform_user_id    text not null,
    user_id             text not null,
    created_at          timestamptz not null default now(),
    primary key (platform, team_id, platform_user_id)
);

-- Users (see `user_identities`) who may bind an organization's agents by name, without a code.
create table organization_members (
    org_id      text not null references organizations (id) on delete cascade,
    user_id     text not null,
    primary key (org_id, user_id)
);
create index organization_members_user on organization_members (user_id);

-- ---------------------------------------------------------------------------------------------------------------------
-- Workers and partitions.

-- Running processes. `id` is random per process start. Running lanes refer to it, and are freed after it expires.
create table workers (
    id          text primary key,
    name        text not null,
    started_at  timestamptz not null default now(),
    alive_until timestamptz not null,
    -- True if the process reaches NATS. Otherwise it gives its partitions to others.
    reads       boolean not null default true,
    -- Set when the process stops: it takes no partitions.
    stopping    boolean not null default false
) with (fillfactor = 50);

-- Partitions: fencing token, position of intake, and the last committed message, which identifies the stream. Only
-- claims and commits write this table.
create table partition_cursors (
    partition           smallint primary key check (partition between 0 and 63),
    owner               text,
    epoch               bigint not null default 0,
    generation          integer not null default 1,
    cursor              bigint not null default 0,
    -- Creation time of the stream, in ns since 1970. Null before the first read.
    stream_created_ns   bigint,
    -- Last message of the partition: sequence, dedup key and server time.
    last_sequence       bigint,
    last_key            text,
    last_stored_at      timestamptz,
    -- Everything that the stream stored before this time is committed.
    read_through        timestamptz not null default 'epoch',
    -- Messages committed since the first sequence of this generation.
    messages            bigint not null default 0,
    generation_from     bigint not null default 0,
    -- Claims since the cursor moved, and the webhook that was decided alone when its process ended.
    claims              integer not null default 0,
    suspect_sequence    bigint,
    suspect_count       integer not null default 0
) with (fillfactor = 50);

-- Leases. Renewals write here, so that they never wait for a commit. A lease repeats its epoch: a renewal that waited
-- for a claim's lock checks only this row again.
create table partition_leases (
    partition   smallint primary key references partition_cursors (partition),
    epoch       bigint not null default 0,
    lease_until timestamptz not null default '-infinity'
) with (fillfactor = 50);
insert into partition_cursors (partition) select generate_series(0, 63);
insert into partition_leases (partition) select generate_series(0, 63);

-- Messages that were purged or deleted from the stream, per partition and generation. `ledger verify` subtracts them.
create table stream_removals (
    id          bigint generated always as identity primary key,
    partition   smallint not null,
    generation  integer not null,
    subject     text not null,
    up_to       bigint not null,
    removed     bigint,
    at          timestamptz not null default now()
);
create index stream_removals_of on stream_removals (partition, generation);

-- ---------------------------------------------------------------------------------------------------------------------
-- Intake.

-- Dedup keys of webhooks with an effect. `day` is the day of the webhook's own time, equal in every copy. `slot` is
-- that day modulo 8. A slot is truncated when its day is over in every partition, so that no row is searched or
-- deleted.
create table processed_keys (
    slot        smallint not null,
    partition   smallint not null,
    day         integer not null,
    -- First 16 bytes of the SHA-256 of the dedup key.
    key         bytea not null,
    generation  integer not null,
    sequence    bigint not null,
    outcome     smallint not null,
    primary key (slot, partition, day, key)
) partition by list (slot);

-- Ignored webhooks that addressed the app, without body. Slots by day of receipt modulo 8.
create table ignored_webhooks (
    slot            smallint not null,
    at              timestamptz not null default now(),
    connection_id   text not null,
    partition       smallint not null,
    generation      integer not null,
    sequence        bigint not null,
    dedup_key       text not null,
    event_id        text,
    channel_id      text,
    ts              text,
    user_id         text,
    reason          text not null
) partition by list (slot);
create index ignored_webhooks_of on ignored_webhooks (connection_id, at);
create index ignored_webhooks_by_key on ignored_webhooks (dedup_key);

-- Questions of one person to agents within the newest minute, by the stream's time. A partition writes its own rows,
-- and the limit counts those of all partitions. Unlogged: a crash of Postgres loses the counts of one minute.
create unlogged table user_questions (
    connection_id   text not null,
    user_id         text not null,
    partition       smallint not null,
    -- Minute since 1970 in which the stream stored the questions.
    minute          integer not null,
    asked           integer not null,
    -- True if the person got a notice that the limit is reached.
    told            boolean not null,
    at              timestamptz not null default now(),
    primary key (connection_id, user_id, partition)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
create index user_questions_at on user_questions (at);

-- Hourly usage of connections, added once a minute from counters.
create table connection_usage (
    connection_id   text not null,
    hour            timestamptz not null,
    webhooks        bigint not null default 0,
    ignored         bigint not null default 0,
    deliveries      bigint not null default 0,
    attempts        bigint not null default 0,
    agent_ms        bigint not null default 0,
    replies         bigint not null default 0,
    failures        bigint not null default 0,
    primary key (connection_id, hour)
);
create index connection_usage_by_hour on connection_usage (hour);

-- Webhooks and deliveries given up on, until an operator decides. `payload` is sealed: headers and body.
create table dead_letters (
    id              bigint generated always as identity primary key,
    -- `intake`: undecided. `dispatch`: a delivery to an agent.
    stage           text not null check (stage in ('intake', 'dispatch')),
    partition       smallint not null,
    generation      integer not null,
    sequence        bigint not null,
    subject         text not null,
    connection_id   text,
    lane            bigint,
    org_id          text,
    agent_id        text,
    session         bigint,
    kind            text,
    dedup_key       text,
    hops            integer not null default 0,
    event_id        text,
    team_id         text,
    channel_id      text,
    thread_ts       text,
    ts              text,
    user_id         text,
    traceparent     text,
    received_at     timestamptz,
    stored_at       timestamptz,
    -- Id of the replay that enqueued the delivery.
    replay          text,
    reason          text not null,
    last_error      text not null default '',
    attempts        integer not null,
    -- Null: the connection had too many open deliveries or dead letters, and the bytes are only in the stream.
    payload         bytea,
    payload_bytes   integer not null generated always as (coalesce(octet_length(payload), 0)) stored,
    -- Time of an operator's redrive, which the owner of the partition performs.
    redrive_at      timestamptz,
    -- Starts of this redrive: a process may end while it decides the webhook.
    redrive_starts  integer not null default 0,
    at              timestamptz not null default now()
);
alter table dead_letters alter column payload set storage external;
create index dead_letters_to_redrive on dead_letters (partition, redrive_at) where redrive_at is not null;
create index dead_letters_of on dead_letters (connection_id, id) include (payload_bytes);
create index dead_letters_by_key on dead_letters (dedup_key);
create index dead_letters_at on dead_letters (at);

-- Connections with a large backlog at the last count, which one worker makes. Intake reads the flags by key.
create table connection_backlog (
    connection_id       text primary key,
    deliveries          bigint not null,
    delivery_bytes      bigint not null,
    dead_letters        bigint not null,
    dead_letter_bytes   bigint not null,
    -- Messages to Slack that wait or were rejected.
    messages            bigint not null default 0,
    -- A new delivery becomes a dead letter without bytes.
    deliveries_full     boolean not null,
    -- Intake enqueues no message.
    messages_full       boolean not null default false,
    -- A new dead letter is stored without bytes.
    dead_letters_full   boolean not null,
    -- Dead letters are at twice their limit: a webhook that would become one is ignored.
    ignores             boolean not null
) with (fillfactor = 70);

-- ---------------------------------------------------------------------------------------------------------------------
-- Operations.

-- Keys of the control API. A key has 256 random bits; its hash is stored, and `id` is the beginning of the hash.
create table api_keys (
    id              text primary key,
    key_hash        bytea not null unique,
    name            text not null default '',
    role            text not null check (role in ('viewer', 'operator', 'owner')),
    -- Null: all organizations.
    org_id          text references organizations (id) on delete cascade,
    created_by      text not null,
    created_at      timestamptz not null default now(),
    expires_at      timestamptz not null,
    revoked_at      timestamptz,
    -- Written at most once a minute.
    last_used_at    timestamptz
);
create index api_keys_by_org on api_keys (org_id) where org_id is not null;

-- Sessions of browsers in the console, each begun with an API key, whose role and organization it has.
create table console_sessions (
    session_hash    bytea primary key,
    api_key_id      text not null references api_keys (id) on delete cascade,
    created_at      timestamptz not null default now(),
    expires_at      timestamptz not null,
    -- Written at most once a minute.
    used_at         timestamptz not null default now()
);
create index console_sessions_expires on console_sessions (expires_at);
create index console_sessions_of_key on console_sessions (api_key_id);

-- Responses of writes by the control API, for repeated requests. `response` is sealed.
create table idempotency_keys (
    api_key_id      text not null references api_keys (id) on delete cascade,
    key             text not null,
    request_hash    bytea not null,
    -- Null: the request has not ended.
    status          smallint,
    response        text,
    at              timestamptz not null default now(),
    primary key (api_key_id, key),
    check ((status is null) = (response is null))
);
create index idempotency_keys_at on idempotency_keys (at);

-- Changes by people and programs. A change and its row are one transaction. The roles may only add and read rows (an
-- erasure replaces names by a function), and set neither id nor time. `before` and `after` have no secrets.
create table audit_log (
    id              bigint generated always as identity primary key,
    at              timestamptz not null default now(),
    actor           text not null,
    action          text not null,
    object_kind     text not null,
    object_id       text not null,
    -- Organization that the object belongs to. Null: none, or several.
    org_id          text,
    before          jsonb,
    after           jsonb
);
create index audit_log_at on audit_log (at);
create index audit_log_of on audit_log (object_kind, object_id, id);
create index audit_log_by_actor on audit_log (actor, id);
create index audit_log_by_org on audit_log (org_id, id);

-- Deletes old rows of the audit log. Workers lack the right to delete them, and a compromised worker must not delete
-- those of the last 30 days.
create function prune_audit_log(keep interval, most integer) returns bigint
    language plpgsql security definer set search_path from current as $$
declare
    pruned bigint;
begin
    if keep < interval '30 days' then
        raise exception 'the audit log keeps 30 days at least';
    end if;
    delete from audit_log where id in (
        select id from audit_log where at < now() - keep order by at limit most);
    get diagnostics pruned = row_count;
    return pruned;
end $$;

-- Replaces the id of a person in the next `most` rows of the audit log, which no role may change otherwise. Returns the
-- id of the last of these rows, null if there is none, and the number of changed rows.
create function erase_person_from_audit_log(person text, after_id bigint, most integer, out last bigint, out erased bigint)
    language plpgsql security definer set search_path from current as $$
declare
    word text := '\m' || person || '\M';
begin
    if person !~ '^[A-Za-z0-9]{1,64}$' then
        raise exception 'no id of a person';
    end if;
    if not exists (select from erasures where state = 'open' and user_id = person) then
        raise insufficient_privilege using message = 'there is no open erasure of the person';
    end if;
    select max(id) into last from (select id from audit_log where id > after_id order by id limit most) page;
    update audit_log
       set actor = regexp_replace(actor, word, 'erased', 'g'), object_id = regexp_replace(object_id, word, 'erased', 'g'),
           before = regexp_replace(before::text, word, 'erased', 'g')::jsonb,
           after = regexp_replace(after::text, word, 'erased', 'g')::jsonb
     where id > after_id and id <= last
       and (actor ~ word or object_id ~ word or before::text ~ word or after::text ~ word);
    get diagnostics erased = row_count;
end $$;

-- Removes details from the next `most` rows of the audit log about an organization. Author, action, kind of object and
-- time remain. Returns the same as the function above.
create function erase_organization_from_audit_log(organization text, after_id bigint, most integer, out last bigint,
                                                  out erased bigint)
    language plpgsql security definer set search_path from current as $$
begin
    if not exists (select from erasures where state = 'open' and org_id = organization) then
        raise insufficient_privilege using message = 'there is no open erasure of the organization';
    end if;
    select max(id) into last
      from (select id from audit_log where org_id = organization and id > after_id order by id limit most) page;
    update audit_log
       set before = null, after = null, object_id = regexp_replace(object_id, '/.*', '/erased'),
           actor = case when actor like 'slack-user:%' then 'slack-user:erased' else actor end
     where org_id = organization and id > after_id and id <= last;
    get diagnostics erased = row_count;
end $$;

-- Requests to erase a person or an organization, which workers or the command line carry out. The ids of a person and of
-- the person's direct messages are deleted when the erasure is done.
create table erasures (
    id              text primary key,
    org_id          text,
    team_id         text,
    user_id         text,
    -- Direct messages of the person, found before the rows that identify them were erased.
    direct_channels text[] not null default '{}',
    -- As in the audit log.
    requested_by    text not null default '',
    state           text not null default 'open' check (state in ('open', 'done')),
    -- Reason why the erasure is open.
    note            text not null default '',
    rows            bigint not null default 0,
    webhooks        bigint not null default 0,
    next_at         timestamptz not null default now(),
    created_at      timestamptz not null default now(),
    ended_at        timestamptz,
    check (state = 'done' or (org_id is null) <> (team_id is null or user_id is null))
);
create index erasures_due on erasures (next_at) where state = 'open';
create index erasures_created on erasures (created_at, id);
create unique index erasures_of_person on erasures (team_id, user_id) where state = 'open' and user_id is not null;
create unique index erasures_of_organization on erasures (org_id) where state = 'open' and org_id is not null;

create function erasures_forget_person() returns trigger
    language plpgsql as $$
begin
    new.team_id := null;
    new.user_id := null;
    new.direct_channels := '{}';
    new.ended_at := now();
    return new;
end $$;
create trigger erasures_forget_person before update on erasures
    for each row when (new.state = 'done') execute function erasures_forget_person();

-- Deletes a connection of an organization that is being erased. Workers lack the right to delete other connections.
create function delete_erased_connection(connection text) returns boolean
    language plpgsql security definer set search_path from current as $$
begin
    if not exists (select from connections c join erasures e on e.org_id = c.org_id and e.state = 'open'
                    where c.id = connection) then
        raise insufficient_privilege using message = 'there is no open erasure of the connection';
    end if;
    update link_codes set consumed_channel = null, consumed_user = null
     where consumed_connection = connection and connection_id is distinct from connection;
    delete from connections where id = connection;
    return found;
end $$;

-- Deletes an organization that is being erased, with its agents, members and API keys, once it has no connections.
-- Returns whether it existed.
create function delete_erased_organization(organization text) returns boolean
    language plpgsql security definer set search_path from current as $$
declare
    people text[];
begin
    if not exists (select from erasures where state = 'open' and org_id = organization) then
        raise insufficient_privilege using message = 'there is no open erasure of the organization';
    end if;
    people := array (select user_id from organization_members where org_id = organization);
    delete from organizations where id = organization;
    if not found then
        return false;
    end if;
    delete from user_identities i where i.user_id = any (people)
       and not exists (select from organization_members m where m.user_id = i.user_id);
    return true;
end $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- Dispatch.

-- Webhooks that an agent receives, with their bytes. Rows are never updated. Their state is in `delivery_lanes`.
create table deliveries (
    connection_id   text not null,
    lane            bigint not null,
    position        bigint not null,
    part            smallint not null default 0,
    partition       smallint not null,
    generation      integer not null,
    sequence        bigint not null,
    org_id          text not null,
    agent_id        text not null,
    session         bigint not null,
    kind            text not null,
    -- 0: a person waits (commands, clicks, submissions). 1: all others.
    priority        smallint not null,
    dedup_key       text not null,
    hops            integer not null default 0,
    event_id        text,
    team_id         text,
    channel_id      text,
    thread_ts       text,
    ts              text,
    user_id         text,
    traceparent     text,
    received_at     timestamptz not null,
    stored_at       timestamptz not null,
    -- Id of the replay that enqueued the delivery.
    replay          text,
    -- Sealed headers and body.
    payload         bytea not null,
    size            integer not null,
    schema          smallint not null,
    inserted_at     timestamptz not null default now(),
    -- The count of the backlog reads only the index.
    primary key (connection_id, lane, position, part) include (size, inserted_at)
) with (autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02);
alter table deliveries alter column payload set storage external;
create index deliveries_by_key on deliveries (dedup_key);

-- Conversations with deliveries: those between `head` and `tail`, inclusive, wait. The row has the state of the head.
-- Enqueueing and ending read only its newest version.
create table delivery_lanes (
    connection_id       text not null,
    lane                bigint not null,
    partition           smallint not null,
    head                bigint not null,
    tail                bigint not null,
    -- Agent and priority of the head.
    org_id              text not null,
    agent_id            text not null,
    priority            smallint not null,
    attempts            integer not null default 0,
    -- Attempts that failed because of this delivery.
    faults              integer not null default 0,
    -- Attempts without an outcome: a panic, or a worker that died.
    crashes             integer not null default 0,
    -- Deliveries that the head's attempts answer together: the head and those behind it.
    merged              integer not null default 1 check (merged >= 1),
    first_attempt_at    timestamptz,
    -- Time at which the head is due. Infinity while it runs, and when nothing waits.
    next_at             timestamptz not null,
    -- Worker of the running head, and the number of its claim, which is unique.
    worker              text,
    claim               bigint,
    last_error          text not null default '',
    cancel_requested    boolean not null default false,
    told_at             timestamptz,
    -- The lane is first: with the connection first, Postgres would find a queue by this key and sort all of its lanes.
    primary key (lane, connection_id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
create sequence delivery_claims;
-- A queue is (partition, priority, agent, connection). Claims visit queues in this order and read due heads by time.
create index delivery_lanes_queues on delivery_lanes (partition, priority, org_id, agent_id, connection_id, next_at)
    where next_at < 'infinity';
create index delivery_lanes_of_worker on delivery_lanes (worker) where worker is not null;
create index delivery_lanes_empty on delivery_lanes (partition) where head > tail;
create index delivery_lanes_by_agent on delivery_lanes (org_id, agent_id);

-- Runs: deliveries whose agent answers by a stream. A row exists from the headers of the agent's response to the end of
-- the delivery. The fence of every write is (worker, claim) of the lane.
create table runs (
    connection_id   text not null,
    lane            bigint not null,
    position        bigint not null,
    id              text not null,
    org_id          text not null,
    agent_id        text not null,
    channel_id      text not null,
    thread_ts       text not null,
    trigger_ts      text not null,
    -- Id of the agent's last event that is in a part.
    last_event_id   text,
    parts           integer not null default 0,
    -- Last part that Slack confirmed.
    sent            integer not null default 0,
    -- Message in Slack that is being written: its first part, and its id.
    segment_from    integer not null default 0,
    segment         text not null default 'none' check (segment in ('none', 'starting', 'open')),
    segment_at      timestamptz not null default now(),
    -- The segment is a message that is edited, instead of a stream.
    edited          boolean not null default false,
    ts              text,
    text_bytes      bigint not null default 0,
    -- Outcome, once the agent has ended.
    ended           text,
    -- Sealed question to a person that ends the answer.
    ask             text,
    started_at      timestamptz not null default now(),
    -- Time of the newest part: later failures are counted from it.
    progressed_at   timestamptz,
    primary key (connection_id, lane, position)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);
create index runs_by_agent on runs (org_id, agent_id);
create index runs_started on runs (started_at);

-- Parts of an answer, each stored before it is sent to Slack. `payload` is sealed: it contains text.
create table run_parts (
    connection_id   text not null,
    lane            bigint not null,
    position        bigint not null,
    n               integer not null,
    -- The part begins a segment.
    begins          boolean not null,
    payload         bytea not null,
    primary key (connection_id, lane, position, n)
) with (autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02);

-- Requests to end runs. A stop applies to the runs of a conversation whose question is older, even if they begin later.
-- An edit or an interruption applies to the runs of one message.
create table run_controls (
    id              bigint generated always as identity primary key,
    connection_id   text not null,
    channel_id      text not null,
    -- Null: all of a direct message.
    thread_ts       text,
    -- Time of the request by Slack's clock.
    ts              text not null,
    reason          text not null default 'stop' check (reason in ('stop', 'edit', 'interrupt')),
    message_ts      text,
    at              timestamptz not null default now(),
    check ((reason = 'stop') = (message_ts is null))
);
create index run_controls_of on run_controls (connection_id, channel_id, thread_ts);
create index run_controls_at on run_controls (at);
create index run_controls_recent on run_controls (connection_id, at);

-- Questions of agents to people, answered by a button. The first click of an allowed person decides, under the lock of
-- the row. `content` is sealed: the prompt and the options.
create table approvals (
    -- Random. The value of the buttons. Not a credential.
    id              text primary key,
    connection_id   text not null,
    partition       smallint not null,
    lane            bigint not null,
    team_id         text not null,
    channel_id      text not null,
    thread_ts       text,
    org_id          text not null,
    agent_id        text not null,
    session         bigint not null,
    -- Run that asked, and the id that the agent gave its question.
    run_id          text not null,
    ask_id          text not null,
    content         text not null,
    -- People who may decide.
    allowed         text[] not null check (cardinality(allowed) between 1 and 50),
    -- Message with the buttons, once it is known.
    message_ts      text,
    state           text not null default 'open' check (state in ('open', 'decided', 'expired')),
    -- Id of the chosen option.
    decision        text,
    decided_by      text,
    decided_at      timestamptz,
    expires_at      timestamptz not null,
    created_at      timestamptz not null default now(),
    check ((state = 'decided') = (decision is not null and decided_by is not null and decided_at is not null)),
    check (expires_at <= created_at + interval '15 days')
);
create index approvals_of on approvals (connection_id);
create index approvals_open on approvals (org_id, agent_id) where state = 'open';
create index approvals_due on approvals (expires_at) where state = 'open';
create index approvals_created on approvals (created_at);

-- Feedback of people on answers, from Slack's feedback buttons. The last value of a person on a message counts.
create table feedback (
    id              bigint generated always as identity primary key,
    connection_id   text not null,
    channel_id      text not null,
    ts              text not null,
    user_id         text not null,
    org_id          text not null,
    agent_id        text not null,
    -- Value that the agent gave the button.
    value           text not null check (length(value) <= 100),
    at              timestamptz not null default now()
);
create index feedback_of on feedback (connection_id, channel_id, ts);
create index feedback_by_agent on feedback (org_id, agent_id, at);
create index feedback_at on feedback (at);

-- Outcomes of deliveries, for operators. No body. Slots by day modulo 32.
create table delivery_log (
    slot            smallint not null,
    at              timestamptz not null default now(),
    connection_id   text not null,
    partition       smallint not null,
    generation      integer not null,
    sequence        bigint not null,
    lane            bigint not null,
    dedup_key       text not null,
    event_id        text,
    channel_id      text,
    ts              text,
    thread_ts       text,
    user_id         text,
    org_id          text not null,
    agent_id        text not null,
    kind            text not null,
    outcome         text not null,
    error           text not null default '',
    attempts        integer not null,
    worker          text not null default '',
    received_at     timestamptz,
    stored_at       timestamptz,
    inserted_at     timestamptz,
    first_attempt_at timestamptz
) partition by list (slot);
create index delivery_log_by_event on delivery_log (connection_id, event_id);
create index delivery_log_by_message on delivery_log (connection_id, channel_id, ts);
create index delivery_log_by_agent on delivery_log (org_id, agent_id, at);
create index delivery_log_by_key on delivery_log (dedup_key);
create index delivery_log_by_user on delivery_log (user_id, at) where user_id is not null;
create index delivery_log_at on delivery_log (at);

-- Pauses of agents, and of sending for connections. Their time does not count as age.
create table pauses (
    id              bigint generated always as identity primary key,
    org_id          text,
    agent_id        text,
    connection_id   text,
    started_at      timestamptz not null,
    ended_at        timestamptz
);
create index pauses_ended on pauses (ended_at) where ended_at is not null;
create index pauses_of_agent on pauses (org_id, agent_id, started_at) where agent_id is not null;
create index pauses_of_connection on pauses (connection_id, started_at) where connection_id is not null;

-- Replays: a range of a connection's webhooks, decided again by a worker. Without `apply` nothing is called or changed.
-- With `apply` deliveries are enqueued, in separate lanes and with separate dedup keys.
create table replays (
    id              text primary key,
    connection_id   text not null,
    from_time       timestamptz not null,
    to_time         timestamptz not null,
    apply           boolean not null,
    state           text not null default 'open' check (state in ('open', 'done', 'failed', 'cancelled')),
    note            text not null default '',
    -- Approximate number of webhooks, and the sequence up to which they were decided.
    total           bigint,
    cursor          bigint not null default 0,
    worker          text,
    epoch           bigint not null default 0,
    lease_until     timestamptz not null default '-infinity',
    created_at      timestamptz not null default now()
);
create index replays_open on replays (lease_until) where state = 'open';
create index replays_created on replays (created_at);
create index replays_of on replays (connection_id);

create table replay_results (
    replay      text not null references replays (id) on delete cascade,
    sequence    bigint not null,
    stored_at   timestamptz not null,
    kind        text not null,
    outcome     text not null,
    -- Effects that were or would be applied. No message text.
    effects     text[] not null,
    primary key (replay, sequence)
);

-- ---------------------------------------------------------------------------------------------------------------------
-- Outbox.

-- Messages to Slack, committed with their effects. Rows are never updated. Their state is in `outbox_lanes`. `request`
-- is sealed: it contains people's text, and a `response_url` is a secret.
create table outbox (
    connection_id   text not null,
    lane            bigint not null,
    position        bigint not null,
    id              bigint generated always as identity unique,
    partition       smallint not null,
    -- Key of the pacing: the channel, or the lane of a message without a channel.
    channel_key     text not null,
    method          text not null,
    dedup_key       text not null,
    request         text not null,
    created_at      timestamptz not null default now(),
    primary key (connection_id, lane, position)
) with (autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02);

create table outbox_lanes (
    connection_id   text not null,
    lane            bigint not null,
    partition       smallint not null,
    head            bigint not null,
    tail            bigint not null,
    -- Channel of the head.
    channel_key     text not null,
    -- Order within a channel, lowest first. Taken from a sequence when a message becomes the head.
    turn            bigint not null,
    attempts        integer not null default 0,
    crashes         integer not null default 0,
    next_at         timestamptz not null,
    worker          text,
    -- Time until which a call may last, set before the call. After that time the message may have been sent.
    sending_until   timestamptz,
    ambiguous       boolean not null default false,
    resend_count    integer not null default 0,
    last_error      text not null default '',
    primary key (lane, connection_id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
create sequence outbox_turns;
create index outbox_lanes_of_channel on outbox_lanes (connection_id, channel_key, turn) where next_at < 'infinity';
create index outbox_lanes_of_worker on outbox_lanes (worker) where worker is not null;
create index outbox_lanes_empty on outbox_lanes (partition) where head > tail;

-- Pacing per channel. `pending` counts the channel's waiting messages.
create table outbox_channels (
    connection_id   text not null,
    channel_key     text not null,
    partition       smallint not null,
    pending         bigint not null,
    -- Time of the next visit. Infinity when nothing waits.
    next_at         timestamptz not null,
    -- No message is sent before this time.
    paced_until     timestamptz not null default '-infinity',
    primary key (connection_id, channel_key)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
create index outbox_channels_due on outbox_channels (partition, connection_id, next_at) where next_at < 'infinity';
create index outbox_channels_idle on outbox_channels (partition) where pending = 0;

-- Rate limits of Slack per connection and method. After a 429, calls keep a minimum interval, which shrinks over time.
create table slack_rate_limits (
    connection_id           text not null references connections (id) on delete cascade,
    method                  text not null,
    blocked_until           timestamptz not null,
    next_at                 timestamptz not null default '-infinity',
    min_interval_seconds    double precision not null default 0,
    limited_at              timestamptz not null default now(),
    primary key (connection_id, method)
);

create function slack_rate_limits_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('slack_rate_limits', format('%s %s %s', new.connection_id, new.method,
        ceil(extract(epoch from new.blocked_until - now()) * 1000)));
    return null;
end $$;
create trigger slack_rate_limits_notify after insert or update of blocked_until on slack_rate_limits
    for each row execute function slack_rate_limits_notify();

-- Uses of a `response_url`, which Slack limits to five, by the webhook that brought it.
create table response_url_uses (
    dedup_key       text primary key,
    connection_id   text not null,
    uses            integer not null,
    at              timestamptz not null default now()
);
create index response_url_uses_of on response_url_uses (connection_id);
create index response_url_uses_at on response_url_uses (at);

-- Sent messages. No text. Slots by day modulo 32.
create table outbox_log (
    slot            smallint not null,
    at              timestamptz not null default now(),
    outbox_id       bigint not null,
    connection_id   text not null,
    lane            bigint not null,
    channel_key     text not null,
    method          text not null,
    dedup_key       text not null,
    attempts        integer not null,
    resend_count    integer not null,
    created_at      timestamptz not null
) partition by list (slot);
create index outbox_log_by_key on outbox_log (dedup_key);
create index outbox_log_of on outbox_log (connection_id);

-- Messages that Slack rejected permanently, until an operator retries or deletes them.
create table outbox_failures (
    id              bigint primary key,
    connection_id   text not null,
    lane            bigint not null,
    partition       smallint not null,
    channel_key     text not null,
    method          text not null,
    dedup_key       text not null,
    request         text not null,
    error           text not null,
    attempts        integer not null,
    resend_count    integer not null default 0,
    created_at      timestamptz not null,
    at              timestamptz not null default now()
);
create index outbox_failures_of on outbox_failures (connection_id, id);
create index outbox_failures_by_key on outbox_failures (dedup_key);
create index outbox_failures_at on outbox_failures (at);

-- ---------------------------------------------------------------------------------------------------------------------
-- Notifications.

-- Backend of the operator that is notified of events. At most one row. `secret` is sealed with the token keyring.
create table notification_endpoint (
    id      boolean primary key default true check (id),
    url     text not null,
    secret  text not null,
    events  text[] not null
);

-- Notifications that the backend has not confirmed. Triggers write them in the transaction of their event. Those of a
-- connection are sent one after the other, in the order of `id`.
create table notifications (
    id              bigint generated always as identity primary key,
    connection_id   text not null,
    event           text not null,
    data            jsonb not null,
    at              timestamptz not null default now(),
    attempts        integer not null default 0,
    next_at         timestamptz not null default now(),
    last_error      text not null default ''
);
create index notifications_of on notifications (connection_id, id);

-- Adds a notification, if the backend is notified of such events. At most 100 of a connection wait. The last of them
-- reports that events are missing.
create function add_notification(of_connection text, kind text, details jsonb) returns void
    language plpgsql security definer set search_path from current as $$
declare
    most constant integer := 100;
    waiting integer;
begin
    if not exists (select from notification_endpoint where kind = any (events)) then
        return;
    end if;
    select count(*) into waiting
      from (select from notifications where connection_id = of_connection limit most) n;
    if waiting < most - 1 then
        insert into notifications (connection_id, event, data) values (of_connection, kind, details);
    elsif waiting = most - 1 then
        insert into notifications (connection_id, event, data)
        values (of_connection, 'notifications.missing', '{}');
    end if;
end $$;
revoke all on function add_notification(text, text, jsonb) from public;

-- Adds notifications about a connection. It is installed when it gets a token.
create function connections_add_notification() returns trigger
    language plpgsql security definer set search_path from current as $$
declare
    scopes jsonb := to_jsonb(new) -> 'scopes';
begin
    if new.status = 'active' and (tg_op = 'INSERT' or new.installed_at is distinct from old.installed_at) then
        perform add_notification(new.id, 'connection.installed',
            jsonb_build_object('installed_at', new.installed_at, 'scopes', scopes,
                               'again', tg_op = 'UPDATE' and old.installed_at is not null));
    end if;
    if tg_op = 'UPDATE' then
        if new.status <> old.status and new.status = 'revoked' then
            perform add_notification(new.id, 'connection.uninstalled', jsonb_build_object('reason', new.status_reason));
        elsif new.status <> old.status and new.status = 'error' then
            perform add_notification(new.id, 'connection.token_failed', jsonb_build_object('reason', new.status_reason));
        end if;
        if old.installed_at is not null and scopes is distinct from to_jsonb(old) -> 'scopes' then
            perform add_notification(new.id, 'connection.scopes_changed',
                jsonb_build_object('before', to_jsonb(old) -> 'scopes', 'after', scopes));
        end if;
    end if;
    return null;
end $$;
create trigger connections_add_notification after insert or update on connections
    for each row execute function connections_add_notification();

create function link_codes_add_notification() returns trigger
    language plpgsql security definer set search_path from current as $$
begin
    perform add_notification(new.consumed_connection, 'link_code.used', jsonb_build_object(
        'link_code', substr(encode(new.code_hash, 'hex'), 1, 16), 'agent', new.org_id || '/' || new.agent_id,
        'channel', new.consumed_channel, 'user', new.consumed_user));
    return null;
end $$;
create trigger link_codes_add_notification after update of consumed_at on link_codes
    for each row when (old.consumed_at is null and new.consumed_at is not null)
    execute function link_codes_add_notification();

-- One notification stands for all dead letters of a connection until it is sent.
create function dead_letters_add_notification() returns trigger
    language plpgsql security definer set search_path from current as $$
begin
    perform add_notification(l.connection_id, 'dead_letter.added', jsonb_build_object('dead_letter', l.first))
       from (select connection_id, min(id) as first from added where connection_id is not null group by connection_id) l
      where not exists (select from notifications n where n.connection_id = l.connection_id
                           and n.event = 'dead_letter.added' and n.attempts = 0);
    return null;
end $$;
create trigger dead_letters_add_notification after insert on dead_letters
    referencing new table as added for each statement execute function dead_letters_add_notification();

create function connection_backlog_add_notification() returns trigger
    language plpgsql security definer set search_path from current as $$
begin
    if new.deliveries_full and (tg_op = 'INSERT' or not old.deliveries_full) then
        perform add_notification(new.connection_id, 'limit.reached', '{"limit": "deliveries"}');
    end if;
    if new.dead_letters_full and (tg_op = 'INSERT' or not old.dead_letters_full) then
        perform add_notification(new.connection_id, 'limit.reached', '{"limit": "dead_letters"}');
    end if;
    return null;
end $$;
create trigger connection_backlog_add_notification after insert or update on connection_backlog
    for each row execute function connection_backlog_add_notification();

-- Rotating tables: a fixed number of slots, each truncated before its day recurs.
do $$
begin
    for slot in 0..7 loop
        execute format('create table processed_keys_%s partition of processed_keys for values in (%s)', slot, slot);
        execute format('create table ignored_webhooks_%s partition of ignored_webhooks for values in (%s)', slot, slot);
    end loop;
    for slot in 0..31 loop
        execute format('create table delivery_log_%s partition of delivery_log for values in (%s)', slot, slot);
        execute format('create table outbox_log_%s partition of outbox_log for values in (%s)', slot, slot);
    end loop;
end $$;

-- Truncates a slot of a rotating table. Workers lack the right to truncate tables. The lock has a timeout: a running
-- dump would block this function, and all inserts would wait behind it.
create function truncate_slot(family text, slot integer) returns void
    language plpgsql security definer set search_path from current set lock_timeout = '200ms' as $$
begin
    if family not in ('processed_keys', 'ignored_webhooks', 'delivery_log', 'outbox_log') then
        raise exception 'no rotating table is named %', family;
    end if;
    execute format('truncate %I', family || '_' || slot);
end $$;
