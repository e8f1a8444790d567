//! Many webhooks committed by one statement, each with every guard of its own.
//!
//! In: webhooks of any partitions of one worker, with effects that decide nothing (what is said, and a trigger; a claim or a change is
//! decided inside a transaction, and goes alone). Out: what became of each. One statement is one transaction and one round
//! trip, where one webhook alone takes three. Were one of them behind its lane the statement divides by zero, on
//! purpose: nothing of the group is changed, and the caller commits one by one, where each hears its own answer.

use super::{Committed, Effects, Owner, Position, Store, StoreError, outbox};
use crate::{secrets::Sealed, types::Outgoing};
use sqlx::Row;

/// One of the webhooks to be committed together.
#[derive(Clone, Copy)]
pub struct OneOfMany<'a> {
    /// Who commits it. All of a group are one worker's, of the live flow.
    pub owner: &'a Owner,
    /// Where it is.
    pub at: &'a Position,
    /// What it changes.
    pub effects: &'a Effects,
}

impl Effects {
    /// Whether nothing of it is decided by the transaction, so that it may be committed with others.
    pub fn is_simple(&self) -> bool {
        // Named one by one, so that a new sort of effect is decided about.
        let Self { consume, changes, say: _, trigger: _, outcome: _ } = self;
        consume.is_none() && changes.is_empty()
    }
}

impl Store {
    /// Commits webhooks together; gives what became of each, in their order. Only for [simple](Effects::is_simple)
    /// effects, each lane at most once.
    ///
    /// # Errors
    /// Also when one of them is behind its lane, as [an error about the data](StoreError::is_about_the_data).
    pub async fn commit_together(
        &self,
        many: &[OneOfMany<'_>],
    ) -> Result<Vec<Committed>, StoreError> {
        let Some(first) = many.first() else { return Ok(Vec::new()) };
        let mut said: Vec<(i64, &Position, &Outgoing, Sealed)> = Vec::new();
        for (n, one) in many.iter().enumerate() {
            for outgoing in &one.effects.say {
                let sealed = outbox::seal(&self.rings.tokens, one.at, outgoing)?;
                said.push((n as i64 + 1, one.at, outgoing, sealed));
            }
        }
        let of =
            |owned: fn(&Owner) -> i64| many.iter().map(|one| owned(one.owner)).collect::<Vec<_>>();
        let rows = sqlx::query(
            "-- group.commit
             with u as (
                 select * from unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                                      $8::text[], $9::text[], $10::text[]) with ordinality
                     as u (partition, epoch, generation, sequence, lane, dedupe_key, outcome, trigger, n)),
             mine as (
                 select partition, epoch from partition_epochs
                  where owner = $2 and (partition, epoch) in (select partition, epoch from u)
                  order by partition for share),
             ours as (select u.* from u join mine using (partition, epoch)),
             noted as (
                 insert into seen (scope, dedupe_key, generation, partition, sequence, lane, outcome, worker)
                 select $1, dedupe_key, generation, partition, sequence, lane, outcome, $2 from ours
                  order by dedupe_key on conflict do nothing returning dedupe_key, sequence),
             taken as (select ours.* from ours join noted using (dedupe_key, sequence)),
             moved as (
                 insert into lanes (scope, generation, lane, partition, last_seq)
                 select $1, generation, lane, partition, sequence from taken order by lane
                 on conflict (scope, generation, lane) do update set last_seq = excluded.last_seq
                  where lanes.last_seq < excluded.last_seq returning lane),
             worked_off as (
                 delete from lane_backlog b using ours
                  where b.scope = $1 and b.generation = ours.generation and b.lane = ours.lane
                    and b.sequence = ours.sequence),
             triggers as (
                 insert into seen (scope, dedupe_key, generation, partition, sequence, lane, outcome, worker)
                 select $1, trigger, generation, partition, sequence, lane, 'trigger', $2 from taken
                  where trigger is not null order by trigger on conflict do nothing returning sequence),
             queued as (
                 insert into outbox (partition, lane, connection_id, dedupe_key, method, request)
                 select t.partition, t.lane, s.connection_id, t.dedupe_key, s.method, s.request
                   from unnest($11::bigint[], $12::text[], $13::text[], $14::text[]) with ordinality
                            as s (n, connection_id, method, request, i)
                   join taken t using (n)
                  where t.trigger is null or t.sequence in (select sequence from triggers)
                  order by s.i)
             select u.n, ours.n is not null as mine, noted.sequence is not null as noted,
                    1 / case when noted.sequence is not null and moved.lane is null then 0 else 1 end as in_order
               from u left join ours using (n)
               left join noted on noted.dedupe_key = u.dedupe_key and noted.sequence = u.sequence
               left join moved on moved.lane = u.lane
              order by u.n",
        )
        .bind(first.owner.scope.as_ref())
        .bind(&first.owner.worker)
        .bind(of(|owner| i64::from(owner.partition.number())))
        .bind(of(|owner| owner.epoch))
        .bind(of(|owner| i64::from(owner.generation)))
        .bind(many.iter().map(|one| one.at.sequence as i64).collect::<Vec<_>>())
        .bind(many.iter().map(|one| one.at.lane.to_bits()).collect::<Vec<_>>())
        .bind(many.iter().map(|one| one.at.dedupe.as_str()).collect::<Vec<_>>())
        .bind(many.iter().map(|one| one.effects.outcome).collect::<Vec<_>>())
        .bind(
            many.iter()
                .map(|one| one.effects.trigger.as_ref().map(|key| key.as_str()))
                .collect::<Vec<_>>(),
        )
        .bind(said.iter().map(|(n, ..)| *n).collect::<Vec<_>>())
        .bind(said.iter().map(|(_, at, ..)| at.connection.to_string()).collect::<Vec<_>>())
        .bind(said.iter().map(|(_, _, outgoing, _)| outgoing.to.as_str()).collect::<Vec<_>>())
        .bind(said.iter().map(|(.., sealed)| sealed.as_str()).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(match (row.try_get("mine")?, row.try_get("noted")?) {
                    (false, _) => Committed::Fenced,
                    (true, false) => Committed::AlreadyDone,
                    (true, true) => Committed::Applied { claim: None },
                })
            })
            .collect()
    }
}
