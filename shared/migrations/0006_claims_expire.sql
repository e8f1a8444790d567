-- Whoever mints a claim takes away what expired long ago, which read the whole table each time.
create index link_claims_expires on link_claims (expires_at);
