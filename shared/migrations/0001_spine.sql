-- Tidegate's schema. Expand first, contract a release later: the release before this one may still be running.

create table organizations (
    id          text primary key,
    name        text not null default '',
    created_at  timestamptz not null default now()
);

-- What answers. `secret` is sealed under the tokens ring.
create table agents (
    org_id      text not null references organizations (id) on delete cascade,
    id          text not null,
    name        text not null default '',
    mode        text not null default 'reply' check (mode in ('reply', 'forward')),
    url         text not null,
    secret      text not null,
    created_at  timestamptz not null default now(),
    primary key (org_id, id)
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
    -- Sealed under the signing ring.
    signing_secret                text not null,
    signing_secret_previous       text,
    signing_secret_previous_until timestamptz,
    -- Sealed under the tokens ring.
    bot_token           text,
    bot_user_id         text,
    settings            jsonb not null default '{}',
    installed_at        timestamptz,
    version             bigint not null default nextval('connection_versions'),
    created_at          timestamptz not null default now(),
    updated_at          timestamptz not null default now(),
    foreign key (org_id, agent_id) references agents (org_id, id),
    check ((signing_secret_previous is null) = (signing_secret_previous_until is null))
);
create unique index connections_one_per_app_and_team
    on connections (app_id, coalesce(enterprise_id, ''), coalesce(team_id, ''));

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

-- The promise behind `/lobu link`. Without a connection it is good on any preview connection.
create table link_claims (
    code_hash           bytea primary key,
    org_id              text not null,
    agent_id            text not null,
    platform            text not null default 'slack' check (platform in ('slack')),
    surfaces            text[] not null check (cardinality(surfaces) > 0 and surfaces <@ array['dm', 'channel']),
    connection_id       text references connections (id) on delete cascade,
    created_by          text not null default '',
    created_at          timestamptz not null default now(),
    expires_at          timestamptz not null,
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

-- This channel of this connection belongs to that agent, maybe of another organization.
create table channel_bindings (
    connection_id   text not null references connections (id) on delete cascade,
    team_id         text not null,
    channel_id      text not null,
    org_id          text not null,
    agent_id        text not null,
    bound_by        text not null,
    bound_at        timestamptz not null default now(),
    primary key (connection_id, team_id, channel_id),
    foreign key (org_id, agent_id) references agents (org_id, id) on delete cascade
);

create table chat_identities (
    platform            text not null check (platform in ('slack')),
    team_id             text not null,
    platform_user_id    text not null,
    user_id             text not null,
    created_at          timestamptz not null default now(),
    primary key (platform, team_id, platform_user_id)
);

-- Done means a row here. `scope` keeps the live flow and replays apart; the key spans generations of the
-- stream, so that a re-read stretch has its effects once.
create table seen (
    scope       text not null,
    dedupe_key  text not null,
    generation  integer not null,
    partition   smallint not null,
    sequence    bigint not null,
    lane        bigint not null,
    outcome     text not null,
    worker      text not null,
    at          timestamptz not null default now(),
    primary key (scope, dedupe_key)
);
create index seen_at on seen (at);

-- Commits hold the epoch FOR SHARE; renewals write the lease. Two tables, so that they don't fight. The lease
-- repeats the epoch it belongs to: a renewal that waited for a claim's lock re-checks only the row it writes.
create table partition_epochs (
    partition   smallint primary key check (partition between 0 and 63),
    owner       text,
    epoch       bigint not null default 0
);
create table partition_leases (
    partition   smallint primary key references partition_epochs (partition),
    epoch       bigint not null default 0,
    lease_until timestamptz not null default '-infinity',
    generation  integer not null default 1,
    -- Which stream the cursor counts in: when that was made, in ns since 1970.
    stream_created_ns bigint,
    cursor      bigint not null default 0
);
insert into partition_epochs (partition) select generate_series(0, 63);
insert into partition_leases (partition) select generate_series(0, 63);

create table workers (
    id          text primary key,
    started_at  timestamptz not null default now(),
    alive_at    timestamptz not null default now()
);

-- How far each lane is. Rows below their partition's cursor are history and go.
create table lanes (
    scope       text not null,
    generation  integer not null,
    lane        bigint not null,
    partition   smallint not null,
    last_seq    bigint not null,
    parked_at   timestamptz,
    -- A parked lane: how often its head was tried in vain, when it is tried again, and what was wrong.
    attempts    integer not null default 0,
    faults      integer not null default 0,
    next_at     timestamptz,
    last_error  text not null default '',
    primary key (scope, generation, lane)
) with (fillfactor = 70);
create index lanes_parked on lanes (partition) where parked_at is not null;
create index lanes_by_partition on lanes (partition, last_seq);

-- Webhooks set aside with their lane: pointers into the stream; old ones keep their bytes, sealed.
create table lane_backlog (
    scope       text not null,
    generation  integer not null,
    lane        bigint not null,
    sequence    bigint not null,
    partition   smallint not null,
    connection_id text not null,
    dedupe_key  text not null,
    sealed      text,
    parked_at   timestamptz not null default now(),
    primary key (scope, generation, lane, sequence)
);

-- Given up on, until a person redrives or discards it. `sealed` holds headers and body.
create table dead (
    id              bigint generated always as identity primary key,
    scope           text not null,
    generation      integer not null,
    partition       smallint not null,
    sequence        bigint not null,
    subject         text not null,
    connection_id   text,
    dedupe_key      text,
    reason          text not null,
    last_error      text not null default '',
    attempts        integer not null,
    sealed          text not null,
    -- When a person asked for one more try; the partition's owner takes it from there.
    redrive_at      timestamptz,
    at              timestamptz not null default now(),
    unique (scope, generation, sequence)
);
create index dead_to_redrive on dead (partition) where redrive_at is not null;

-- What Slack is still to be told, written with the effects it belongs to. `request` is sealed: it holds
-- words of users, and a response_url is a secret.
create table outbox (
    id              bigint generated always as identity primary key,
    partition       smallint not null,
    lane            bigint not null,
    connection_id   text not null,
    dedupe_key      text not null,
    request         text not null,
    state           text not null default 'pending' check (state in ('pending', 'sending', 'sent', 'failed')),
    epoch           bigint,
    attempts        integer not null default 0,
    next_at         timestamptz not null default now(),
    last_error      text not null default '',
    created_at      timestamptz not null default now(),
    settled_at      timestamptz
);
create index outbox_open on outbox (partition, lane, id) where state in ('pending', 'sending');

-- Until when Slack asked us to leave a method alone, per workspace.
create table slack_limits (
    connection_id   text not null references connections (id) on delete cascade,
    method          text not null,
    blocked_until   timestamptz not null,
    primary key (connection_id, method)
);
