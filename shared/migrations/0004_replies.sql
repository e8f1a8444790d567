-- The way out: rows in doubt, limits that workers share, tokens that rotate.

-- `method` is how Slack is told, in clear, because limits are kept by it. `doubtful`: it may have been said, so
-- Slack is asked before it is said again. `doubts`: how often it was said again though Slack could not be asked.
alter table outbox
    add column method   text not null default '',
    add column doubtful boolean not null default false,
    add column doubts   integer not null default 0;
-- A response_url is good for five uses, whichever rows they are of.
create index outbox_response_urls on outbox (dedupe_key) where method = 'response_url';

-- After a 429 calls keep a distance, `gap_seconds` at first and less by and by; `next_at` is the next one's turn.
alter table slack_limits
    add column next_at      timestamptz not null default '-infinity',
    add column gap_seconds  double precision not null default 0,
    add column limited_at   timestamptz not null default now();

create function slack_limits_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('slack_limits', format('%s %s %s', new.connection_id, new.method,
        ceil(extract(epoch from new.blocked_until - now()) * 1000)));
    return null;
end $$;
create trigger slack_limits_notify after insert or update of blocked_until on slack_limits
    for each row execute function slack_limits_notify();

-- When Slack last refused to let us speak in a conversation, and its word for why.
alter table channel_bindings
    add column refused_at   timestamptz,
    add column refused_why  text;

-- What a rotating token is refreshed with. A table of its own: a lease taken here is no change of the connection.
-- Secrets are sealed under the tokens ring. `generation` counts refreshes: whoever holds an older one writes nothing.
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

-- Whether a connection's webhooks are handed on to an app is part of what workers keep of it, so they hear of a change.
create function bindings_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('connections', coalesce(new.connection_id, old.connection_id));
    return null;
end $$;
create trigger bindings_notify after insert or update of org_id, agent_id or delete on channel_bindings
    for each row execute function bindings_notify();

create function agents_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('connections', id) from connections where org_id = new.org_id and agent_id = new.id;
    perform pg_notify('connections', connection_id) from channel_bindings where org_id = new.org_id and agent_id = new.id;
    return null;
end $$;
create trigger agents_notify after update of mode on agents for each row execute function agents_notify();

-- How often in a row Slack refused the token of an installation. Beside the connection's row: counting must not change
-- what is hydrated.
create table connection_refusals (
    connection_id   text primary key references connections (id) on delete cascade,
    installed_at    timestamptz,
    refusals        integer not null,
    at              timestamptz not null default now()
);
