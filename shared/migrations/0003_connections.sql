-- What a connection's life needs: why it is where it is, limits on guessing link codes, sessions, greetings, and who may
-- link without a code. Additions only: the release before this one reads and writes what it knew, beside it.

-- Why it is in `error`, or was revoked; for people.
alter table connections add column status_reason text not null default '';

-- How its status changed, when and why. Written by a trigger, so that no way of changing it is forgotten.
create table connection_history (
    id              bigint generated always as identity primary key,
    connection_id   text not null references connections (id) on delete cascade,
    at              timestamptz not null default now(),
    status          text not null,
    reason          text not null default ''
);
create index connection_history_of on connection_history (connection_id, id);

create function connections_remember() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' or old.status <> new.status then
        insert into connection_history (connection_id, status, reason) values (new.id, new.status, new.status_reason);
    end if;
    return null;
end $$;
create trigger connections_remember after insert or update on connections
    for each row execute function connections_remember();

-- Taken back before anybody used it. `expires_at` is set, too: that is what every release looks at.
alter table link_claims add column revoked_at timestamptz;

-- Codes that were none, lately, per person and per workspace. A row goes when its time is over.
create table claim_guesses (
    who     text primary key,
    misses  integer not null,
    until   timestamptz not null
);
create index claim_guesses_until on claim_guesses (until);

-- Which session a conversation is in; without a row the first. An agent is told with every question.
create table chat_sessions (
    connection_id   text not null references connections (id) on delete cascade,
    team_id         text not null,
    channel_id      text not null,
    number          bigint not null,
    primary key (connection_id, team_id, channel_id)
);

-- Who was greeted: once is enough, however often Slack tells of them.
create table welcomes (
    connection_id   text not null references connections (id) on delete cascade,
    team_id         text not null,
    user_id         text not null,
    at              timestamptz not null default now(),
    primary key (connection_id, team_id, user_id)
);

-- Our users (see `chat_identities`) who may link an organization's agents by name, without a code.
create table organization_members (
    org_id      text not null references organizations (id) on delete cascade,
    user_id     text not null,
    primary key (org_id, user_id)
);
create index organization_members_user on organization_members (user_id);
