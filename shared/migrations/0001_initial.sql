-- The schema of Tidegate. Until the first release it is one migration; afterwards changes expand first and contract a
-- release later, because the release before may still be running.
--
-- Tables of traffic have no foreign keys: no statement of intake or dispatch may wait for a row of another tenant.

create table organizations (
    id          text primary key,
    name        text not null default '',
    created_at  timestamptz not null default now()
);

-- HTTP endpoints that answer conversations. `secret` is sealed under the token keyring.
create table agents (
    org_id          text not null references organizations (id) on delete cascade,
    id              text not null,
    name            text not null default '',
    mode            text not null default 'reply' check (mode in ('reply', 'forward')),
    url             text not null,
    secret          text not null,
    -- Limit of one attempt.
    timeout_ms      integer not null default 60000 check (timeout_ms between 1000 and 600000),
    -- Attempts that run at once, on all workers together.
    max_concurrent  integer not null default 16 check (max_concurrent between 1 and 1000),
    -- Time from the first attempt after which a delivery is given up; null: by mode (reply 1 h, forward 24 h).
    retry_for_ms    bigint check (retry_for_ms > 0),
    -- Time that a delivery may wait for its first attempt.
    keep_for_ms     bigint not null default 259200000 check (keep_for_ms > 0),
    -- Set by an operator: no attempt begins, and what waits does not age.
    paused_at       timestamptz,
    created_at      timestamptz not null default now(),
    primary key (org_id, id)
);

-- The right to one running attempt of an agent. Slot 0 is for interactive deliveries alone; a slot above the agent's
-- `max_concurrent` is not given out. Written by no statement of intake.
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

-- Agents that were deleted: what waits for them ends in steps.
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

-- Open circuit breakers; a row exists only while the circuit of an agent is open.
create table agent_health (
    org_id      text not null,
    agent_id    text not null,
    opened_at   timestamptz not null default now(),
    -- When the next probe may begin. Whoever moves it on makes the probe.
    probe_at    timestamptz not null,
    probes      integer not null default 0,
    last_error  text not null default '',
    primary key (org_id, agent_id)
);

-- One sequence for all rows: a version is newer than every earlier one, also across a delete.
create sequence connection_versions;

create table connections (
    id                  text primary key check (id ~ '^[0-9a-f]{32}$'),
    org_id              text not null references organizations (id),
    -- The agent of conversations without a binding. An install needs none.
    agent_id            text,
    platform            text not null default 'slack' check (platform in ('slack')),
    app_id              text not null,
    enterprise_id       text,
    team_id             text,
    preview_mode        boolean not null default false,
    status              text not null default 'pending'
                        check (status in ('pending', 'active', 'stopped', 'error', 'revoked')),
    -- Why it is in `error`, or was revoked; for people.
    status_reason       text not null default '',
    -- Sealed under the signing secret keyring.
    signing_secret                text not null,
    signing_secret_previous       text,
    signing_secret_previous_until timestamptz,
    -- Sealed under the token keyring.
    bot_token           text,
    bot_user_id         text,
    settings            jsonb not null default '{}',
    -- Set by an operator: nothing is sent to Slack for it, and what waits does not age.
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

-- Every change raises the version and tells the workers, whoever makes it and however.
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

-- How its status changed, when and why. Written by a trigger, so that every way of changing it is recorded.
create table connection_status_history (
    id              bigint generated always as identity primary key,
    connection_id   text not null references connections (id) on delete cascade,
    at              timestamptz not null default now(),
    status          text not null,
    reason          text not null default ''
);
create index connection_status_history_of on connection_status_history (connection_id, id);

create function connections_remember() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' or old.status <> new.status then
        insert into connection_status_history (connection_id, status, reason)
        values (new.id, new.status, new.status_reason);
    end if;
    return null;
end $$;
create trigger connections_remember after insert or update on connections
    for each row execute function connections_remember();

-- Tombstones: webhooks of a deleted connection are ignored, those of an unknown one are dead letters.
create table deleted_connections (
    id          text primary key,
    deleted_at  timestamptz not null default now()
);

create function connections_bury() returns trigger language plpgsql security definer set search_path from current as $$
begin
    insert into deleted_connections (id) values (old.id) on conflict do nothing;
    return null;
end $$;
create trigger connections_bury after delete on connections
    for each row execute function connections_bury();

-- What a rotating token is refreshed with. A table of its own: a lease taken here is no change of the connection.
-- Secrets are sealed under the token keyring. `generation` counts refreshes: the holder of an older one writes nothing.
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

-- How often in a row Slack refused the token of an installation. Not in the connection's row: counting must not change
-- what workers cache.
create table token_failures (
    connection_id           text primary key references connections (id) on delete cascade,
    installed_at            timestamptz,
    consecutive_failures    integer not null,
    at                      timestamptz not null default now()
);

-- Single-use link codes. Without a connection a code is good on any preview connection.
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
    -- Revoked before anybody used it; `expires_at` is then set, too.
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

-- Recent wrong link codes, per person and per workspace. A row is deleted when its time is over.
create table link_code_attempts (
    who     text primary key,
    misses  integer not null,
    until   timestamptz not null
);
create index link_code_attempts_until on link_code_attempts (until);

-- Assigns a channel of a connection to an agent, maybe of another organization.
create table channel_bindings (
    connection_id   text not null references connections (id) on delete cascade,
    team_id         text not null,
    channel_id      text not null,
    org_id          text not null,
    agent_id        text not null,
    bound_by        text not null,
    bound_at        timestamptz not null default now(),
    -- When Slack last refused a message to this conversation, and its error.
    refused_at      timestamptz,
    last_send_error text,
    primary key (connection_id, team_id, channel_id),
    foreign key (org_id, agent_id) references agents (org_id, id) on delete cascade
);
create index channel_bindings_by_agent on channel_bindings (org_id, agent_id);
create index channel_bindings_by_channel on channel_bindings (connection_id, channel_id);

-- The session of a conversation; without a row it is the first.
create table conversation_sessions (
    connection_id   text not null references connections (id) on delete cascade,
    team_id         text not null,
    channel_id      text not null,
    number          bigint not null,
    primary key (connection_id, team_id, channel_id)
);

-- People who were greeted: once is enough, however often Slack reports them.
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

-- Users (see `user_identities`) who may link an organization's agents by name, without a code.
create table organization_members (
    org_id      text not null references organizations (id) on delete cascade,
    user_id     text not null,
    primary key (org_id, user_id)
);
create index organization_members_user on organization_members (user_id);

-- ---------------------------------------------------------------------------------------------------------------------
-- Workers and partitions.

-- One row per running process. `id` is random per process start; running lanes name it, and are freed once it expired.
create table workers (
    id          text primary key,
    name        text not null,
    started_at  timestamptz not null default now(),
    alive_until timestamptz not null,
    -- Whether it reaches NATS: one that does not gives its partitions to those that do.
    reads       boolean not null default true,
    -- It takes no partitions any more.
    stopping    boolean not null default false
) with (fillfactor = 50);

-- One row per partition, written by claims and commits alone: the fencing token, how far intake has committed, and the
-- last message that it committed, by which another stream is recognized.
create table partition_cursors (
    partition           smallint primary key check (partition between 0 and 63),
    owner               text,
    epoch               bigint not null default 0,
    generation          integer not null default 1,
    cursor              bigint not null default 0,
    -- When the stream was created, in ns since 1970; null before it was first read.
    stream_created_ns   bigint,
    -- The last own message: its sequence, dedup key and server time.
    last_sequence       bigint,
    last_key            text,
    last_stored_at      timestamptz,
    -- Everything that the stream got before this time is committed.
    read_through        timestamptz not null default 'epoch',
    -- Messages committed since the first sequence of this generation.
    messages            bigint not null default 0,
    generation_from     bigint not null default 0,
    -- Claims since the cursor moved, and the webhook that was decided alone when its process ended.
    claims              integer not null default 0,
    suspect_sequence    bigint,
    suspect_count       integer not null default 0
) with (fillfactor = 50);

-- Renewals write here, so that they never wait for a commit. The lease repeats its epoch: a renewal that waited for a
-- claim's lock re-checks only the row that it writes.
create table partition_leases (
    partition   smallint primary key references partition_cursors (partition),
    epoch       bigint not null default 0,
    lease_until timestamptz not null default '-infinity'
) with (fillfactor = 50);
insert into partition_cursors (partition) select generate_series(0, 63);
insert into partition_leases (partition) select generate_series(0, 63);

-- Messages that were purged or deleted from the stream, per partition and generation; subtracted by `ledger verify`.
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

-- Dedup keys of webhooks that had an effect. `day` is of the webhook's own time, the same in every copy; `slot` is that
-- day modulo 8. A slot is truncated once its day is over for every partition, so nothing is searched or deleted by row.
create table processed_keys (
    slot        smallint not null,
    partition   smallint not null,
    day         integer not null,
    -- The first 16 bytes of the SHA-256 of the dedup key.
    key         bytea not null,
    generation  integer not null,
    sequence    bigint not null,
    outcome     smallint not null,
    primary key (slot, partition, day, key)
) partition by list (slot);

-- Webhooks that were addressed to the app and ignored. No body. By day of receipt modulo 8.
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

-- Figures of a connection per hour, added up once a minute from counters.
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
    -- `intake`: never decided; `dispatch`: an agent was to get it.
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
    -- Null: the connection had too much open already, and the bytes are in the stream alone.
    payload         bytea,
    -- When an operator asked to process it again; the owner of its partition does.
    redrive_at      timestamptz,
    at              timestamptz not null default now()
);
alter table dead_letters alter column payload set storage external;
create index dead_letters_to_redrive on dead_letters (partition, redrive_at) where redrive_at is not null;
create index dead_letters_of on dead_letters (connection_id, id);
create index dead_letters_by_key on dead_letters (dedup_key);
create index dead_letters_at on dead_letters (at);

-- ---------------------------------------------------------------------------------------------------------------------
-- Dispatch.

-- Webhooks that an agent is to get, with their bytes. Rows are never updated: what changes is in `delivery_lanes`.
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
    -- 0: a person waits (commands, clicks, submissions); 1: all else.
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
    -- Set for a replayed delivery: whose replay it is.
    replay          text,
    -- Sealed: headers and body as they were in the stream.
    payload         bytea not null,
    size            integer not null,
    schema          smallint not null,
    inserted_at     timestamptz not null default now(),
    primary key (connection_id, lane, position, part)
) with (autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02);
alter table deliveries alter column payload set storage external;
create index deliveries_by_key on deliveries (dedup_key);

-- One row per conversation with deliveries: those between `head` and `tail`, both included, wait. Everything about a
-- delivery that changes is here, for the head. Enqueueing and ending read only this row's newest version.
create table delivery_lanes (
    connection_id       text not null,
    lane                bigint not null,
    partition           smallint not null,
    head                bigint not null,
    tail                bigint not null,
    -- Of the head.
    org_id              text not null,
    agent_id            text not null,
    priority            smallint not null,
    attempts            integer not null default 0,
    -- Attempts that failed because of this delivery.
    faults              integer not null default 0,
    -- Attempts that ended without an outcome: a panic, or a worker that died.
    crashes             integer not null default 0,
    first_attempt_at    timestamptz,
    -- When the head is due; infinity while it runs, and when nothing waits.
    next_at             timestamptz not null,
    -- The process that runs the head, and the number of its claim: no other claim ever has it.
    worker              text,
    claim               bigint,
    last_error          text not null default '',
    cancel_requested    boolean not null default false,
    told_at             timestamptz,
    -- The lane first: with the connection first, Postgres finds a queue by this key and sorts all of its lanes.
    primary key (lane, connection_id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
create sequence delivery_claims;
-- A queue is (partition, priority, agent, connection): takes visit queues in this order and read due heads by time.
create index delivery_lanes_queues on delivery_lanes (partition, priority, org_id, agent_id, connection_id, next_at)
    where next_at < 'infinity';
create index delivery_lanes_of_worker on delivery_lanes (worker) where worker is not null;
create index delivery_lanes_empty on delivery_lanes (partition) where head > tail;
create index delivery_lanes_by_agent on delivery_lanes (org_id, agent_id);

-- What became of each delivery, for people. No body. By day modulo 32.
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

-- While an agent, or sending for a connection, was paused: that time does not count as age.
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

-- Replays: a range of a connection's webhooks, decided once more by a worker. Without `apply` nothing is called or changed;
-- with it deliveries are enqueued, in lanes and under dedup keys of their own.
create table replays (
    id              text primary key,
    connection_id   text not null,
    from_time       timestamptz not null,
    to_time         timestamptz not null,
    apply           boolean not null,
    state           text not null default 'open' check (state in ('open', 'done', 'failed', 'cancelled')),
    note            text not null default '',
    -- How many webhooks there are, about, and up to which sequence they were decided.
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
    -- What was, or would be, changed, sent and called: no text of people.
    effects     text[] not null,
    primary key (replay, sequence)
);

-- ---------------------------------------------------------------------------------------------------------------------
-- Outbox.

-- Messages to Slack, written with the effects that they belong to. Rows are never updated: what changes is in
-- `outbox_lanes`. `request` is sealed: it holds people's text, and a response_url is a secret.
create table outbox (
    connection_id   text not null,
    lane            bigint not null,
    position        bigint not null,
    id              bigint generated always as identity unique,
    partition       smallint not null,
    -- What its rate is counted by: a channel, or the lane of what is posted into none.
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
    -- Of the head.
    channel_key     text not null,
    -- Lower goes first within a channel: taken when the head became the head.
    turn            bigint not null,
    attempts        integer not null default 0,
    crashes         integer not null default 0,
    next_at         timestamptz not null,
    worker          text,
    -- Marked before a call: until then the call may last. After it the message may have been sent.
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

-- Pace and Retry-After per channel. `pending` counts its messages: it alone says whether something may wait here.
create table outbox_channels (
    connection_id   text not null,
    channel_key     text not null,
    partition       smallint not null,
    pending         bigint not null,
    -- When it is looked at next; infinity when nothing waits.
    next_at         timestamptz not null,
    -- No message before this.
    paced_until     timestamptz not null default '-infinity',
    primary key (connection_id, channel_key)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
create index outbox_channels_due on outbox_channels (partition, connection_id, next_at) where next_at < 'infinity';
create index outbox_channels_idle on outbox_channels (partition) where pending = 0;

-- Limits of Slack per connection and method. After a 429 calls keep a distance, which shrinks again.
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

-- Uses of a response_url, which Slack limits to five; kept with the webhook that brought it.
create table response_url_uses (
    dedup_key       text primary key,
    connection_id   text not null,
    uses            integer not null,
    at              timestamptz not null default now()
);
create index response_url_uses_of on response_url_uses (connection_id);
create index response_url_uses_at on response_url_uses (at);

-- What became of each message. No text. By day modulo 32.
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

-- Messages that Slack refuses for good, until an operator retries or deletes them.
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

-- Rotating tables: a fixed number of slots, each truncated before its day comes round again.
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

-- Empties a slot of a rotating table. Workers may not truncate tables themselves. The lock is not waited for: a dump that
-- runs holds it, and everybody who inserts would wait behind us.
create function truncate_slot(family text, slot integer) returns void
    language plpgsql security definer set search_path from current set lock_timeout = '200ms' as $$
begin
    if family not in ('processed_keys', 'ignored_webhooks', 'delivery_log', 'outbox_log') then
        raise exception 'no rotating table is named %', family;
    end if;
    execute format('truncate %I', family || '_' || slot);
end $$;
