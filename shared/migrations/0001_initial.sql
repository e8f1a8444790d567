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
    -- Limit of one attempt.
    timeout_ms      integer not null default 60000 check (timeout_ms between 1000 and 600000),
    -- Maximum concurrent attempts over all workers.
    max_concurrent  integer not null default 16 check (max_concurrent between 1 and 1000),
    -- Time from the first attempt after which a delivery is given up. Null: by mode (reply 1 h, forward 24 h).
    retry_for_ms    bigint check (retry_for_ms > 0),
    -- Maximum wait of a delivery for its first attempt.
    keep_for_ms     bigint not null default 259200000 check (keep_for_ms > 0),
    -- Set by an operator: no attempt begins, and waiting deliveries do not age.
    paused_at       timestamptz,
    created_at      timestamptz not null default now(),
    primary key (org_id, id)
);

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
    -- Sealed with the signing secret keyring.
    signing_secret                text not null,
    signing_secret_previous       text,
    signing_secret_previous_until timestamptz,
    -- Sealed with the token keyring.
    bot_token           text,
    bot_user_id         text,
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
create unique index connections_one_per_app_and_team
    on connections (app_id, coalesce(enterprise_id, ''), coalesce(team_id, ''));
create index connections_by_agent on connections (org_id, agent_id);
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

create function connections_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('connections', coalesce(new.id, old.id));
    return null;
end $$;
create trigger connections_notify after insert or update or delete on connections
    for each row execute function connections_notify();

-- Changes of a connection's status. A trigger writes them, so that every change is recorded.
create table connection_status_history (
    id              bigint generated always as identity primary key,
    connection_id   text not null references connections (id) on delete cascade,
    at              timestamptz not null default now(),
    status          text not null,
    reason          text not null default ''
);
create index connection_status_history_of on connection_status_history (connection_id, id);

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

-- Tombstones: webhooks of a deleted connection are ignored, those of an unknown one become dead letters.
create table deleted_connections (
    id          text primary key,
    deleted_at  timestamptz not null default now()
);

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
    client_id       text not null,
    client_secret   text not null,
    refresh_token   text not null,
    generation      bigint not null default 0,
    refresh_at      timestamptz not null,
    expires_at      timestamptz not null,
    leased_until    timestamptz not null default '-infinity',
    failures        integer not null default 0,
    last_error      text not null default ''
);
create index token_rotations_due on token_rotations (refresh_at);

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

-- Sessions of conversations. Without a row the session is the first.
create table conversation_sessions (
    connection_id   text not null references connections (id) on delete cascade,
    team_id         text not null,
    channel_id      text not null,
    number          bigint not null,
    primary key (connection_id, team_id, channel_id)
);

-- Welcomed people: each is welcomed once, however often Slack reports them.
create table welcomed_users (
    connection_id   text not null references connections (id) on delete cascade,
    team_id         text not null,
    user_id         text not null,
    at              timestamptz not null default now(),
    primary key (connection_id, team_id, user_id)
);

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
    -- Whether the process reaches NATS. One that does not gives its partitions to others.
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
    event_id        text,
    channel_id      text,
    ts              text,
    user_id         text,
    stored_at       timestamptz,
    reason          text not null,
    last_error      text not null default '',
    attempts        integer not null,
    -- Null: the connection had too many dead letters, and the bytes are only in the stream.
    payload         bytea,
    -- Time of an operator's redrive, which the owner of the partition performs.
    redrive_at      timestamptz,
    -- Starts of this redrive: a process may end while it decides the webhook.
    redrive_starts  integer not null default 0,
    at              timestamptz not null default now()
);
alter table dead_letters alter column payload set storage external;
create index dead_letters_to_redrive on dead_letters (partition, redrive_at) where redrive_at is not null;
create index dead_letters_of on dead_letters (connection_id, id);
create index dead_letters_by_key on dead_letters (dedup_key);
create index dead_letters_at on dead_letters (at);

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
    primary key (connection_id, lane, position, part)
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

-- Pauses of agents, and of sending for connections. Their time does not count as age.
create table pauses (
    id              bigint generated always as identity primary key,
    org_id          text,
    agent_id        text,
    connection_id   text,
    started_at      timestamptz not null,
    ended_at        timestamptz
);
create index pauses_of_agent on pauses (org_id, agent_id, started_at) where agent_id is not null;
create index pauses_of_connection on pauses (connection_id, started_at) where connection_id is not null;

-- Replays: a range of a connection's webhooks, decided again by a worker. Without `apply` nothing is called or changed.
-- With it deliveries are enqueued, in lanes and with dedup keys of their own.
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

create table replay_results (
    replay      text not null references replays (id) on delete cascade,
    sequence    bigint not null,
    stored_at   timestamptz not null,
    kind        text not null,
    outcome     text not null,
    -- Effects that were or would be applied. No text of people.
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
    -- Key of the pace: a channel, or the lane of a message that is posted into none.
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
    -- Order within a channel, lowest first. Drawn when a message becomes the head.
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

-- Pace per channel. `pending` counts the channel's messages: only at 0 nothing waits.
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

-- Rate limits of Slack per connection and method. After a 429 calls keep an interval, which shrinks again.
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

-- Messages that Slack rejected for good, until an operator retries or deletes them.
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
-- dump holds it, and all inserts would wait behind this function.
create function truncate_slot(family text, slot integer) returns void
    language plpgsql security definer set search_path from current set lock_timeout = '200ms' as $$
begin
    if family not in ('processed_keys', 'ignored_webhooks', 'delivery_log', 'outbox_log') then
        raise exception 'no rotating table is named %', family;
    end if;
    execute format('truncate %I', family || '_' || slot);
end $$;
