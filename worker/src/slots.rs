//! Who may run now: a bounded number of handlers, shared fairly.
//!
//! In: a connection that wants to run a lane's head, and whether a person waits for it. Out: a slot, free again when
//! dropped. Connections take turns; none has more than [`PER_CONNECTION`] at once; a few slots are kept for what a
//! person waits for, so that a slow agent somewhere never holds up a command.

use shared::types::ConnectionId;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

/// Slots of one connection at once; counted apart for what a person waits for.
pub const PER_CONNECTION: usize = 8;
/// Slots beside the others, for what a person waits for.
pub const RESERVED: usize = 8;

/// The slots of a worker. Cheap to clone.
#[derive(Clone)]
pub struct Slots(Arc<Mutex<Inner>>);

struct Inner {
    free: usize,
    reserved: usize,
    running: HashMap<(ConnectionId, Urgency), usize>,
    waiting: HashMap<(ConnectionId, Urgency), VecDeque<oneshot::Sender<Slot>>>,
    /// Whose turn it is: each that waits, once.
    turns: VecDeque<(ConnectionId, Urgency)>,
}

/// Whether a person waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Urgency {
    /// A command, a click, a view: somebody looks at a screen.
    Person,
    /// All else.
    Nobody,
}

/// The right to run, until dropped.
pub struct Slot {
    slots: Slots,
    connection: ConnectionId,
    urgency: Urgency,
    from_reserve: bool,
}

impl Slots {
    /// So many, and [`RESERVED`] beside them.
    pub fn new(slots: usize) -> Self {
        let (running, waiting) = (HashMap::new(), HashMap::new());
        let inner =
            Inner { free: slots, reserved: RESERVED, running, waiting, turns: VecDeque::new() };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Waits for a slot. Dropping the future gives up the place in the queue.
    pub async fn take(&self, connection: ConnectionId, urgency: Urgency) -> Slot {
        let who = (connection, urgency);
        let (sender, granted) = oneshot::channel();
        let queue = {
            let mut inner = self.inner();
            let queue = inner.waiting.entry(who).or_default();
            queue.push_back(sender);
            queue.len()
        };
        if queue == 1 {
            self.inner().turns.push_back(who);
        }
        self.grant();
        match granted.await {
            Ok(slot) => slot,
            // The sender lies in `self`; it is only dropped when a slot was sent.
            Err(_) => std::future::pending().await,
        }
    }

    /// Gives out what can be given out, in turn.
    fn grant(&self) {
        loop {
            // Sent without the lock: a slot that nobody takes any more comes back, and takes the lock.
            let Some((sender, slot)) = self.next() else { return };
            drop(sender.send(slot));
        }
    }

    fn next(&self) -> Option<(oneshot::Sender<Slot>, Slot)> {
        let mut inner = self.inner();
        for _ in 0..inner.turns.len() {
            let who = inner.turns.pop_front()?;
            let Some(from_reserve) = inner.room_for(who) else {
                inner.turns.push_back(who);
                continue;
            };
            let Some(queue) = inner.waiting.get_mut(&who) else { continue };
            let sender = queue.pop_front();
            match queue.is_empty() {
                true => drop(inner.waiting.remove(&who)),
                false => inner.turns.push_back(who),
            }
            // Who gave up waiting is passed over.
            let Some(sender) = sender.filter(|sender| !sender.is_closed()) else { continue };
            match from_reserve {
                true => inner.reserved -= 1,
                false => inner.free -= 1,
            }
            *inner.running.entry(who).or_default() += 1;
            return Some((
                sender,
                Slot { slots: self.clone(), connection: who.0, urgency: who.1, from_reserve },
            ));
        }
        None
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether there is a slot for it, and whether that is a reserved one.
    fn room_for(&self, who: (ConnectionId, Urgency)) -> Option<bool> {
        if self.running.get(&who).is_some_and(|running| *running >= PER_CONNECTION) {
            return None;
        }
        match who.1 {
            _ if self.free > 0 => Some(false),
            Urgency::Person if self.reserved > 0 => Some(true),
            _ => None,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let who = (self.connection, self.urgency);
        {
            let mut inner = self.slots.inner();
            match self.from_reserve {
                true => inner.reserved += 1,
                false => inner.free += 1,
            }
            let left = inner.running.get(&who).map_or(0, |running| running - 1);
            match left {
                0 => drop(inner.running.remove(&who)),
                left => drop(inner.running.insert(who, left)),
            }
        }
        self.slots.grant();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn connection(n: u8) -> ConnectionId {
        format!("{n:032x}").parse().expect("an id")
    }

    #[tokio::test]
    async fn one_connection_has_at_most_its_share_and_leaves_the_rest_to_others() {
        let slots = Slots::new(20);
        let mut held = Vec::new();
        for _ in 0..PER_CONNECTION {
            held.push(slots.take(connection(1), Urgency::Nobody).await);
        }
        let mut ninth = Box::pin(slots.take(connection(1), Urgency::Nobody));
        assert!(ninth.as_mut().now_or_never().is_none(), "it has its share");
        assert!(
            slots.take(connection(2), Urgency::Nobody).now_or_never().is_some(),
            "another has not"
        );
        held.pop();
        assert!(ninth.now_or_never().is_some());
    }

    #[tokio::test]
    async fn connections_take_turns_however_much_one_of_them_waits() {
        let slots = Slots::new(1);
        let first = slots.take(connection(1), Urgency::Nobody).await;
        let mut many: Vec<_> =
            (0..5).map(|_| Box::pin(slots.take(connection(1), Urgency::Nobody))).collect();
        for one in &mut many {
            assert!(one.as_mut().now_or_never().is_none());
        }
        let mut other = Box::pin(slots.take(connection(2), Urgency::Nobody));
        assert!(other.as_mut().now_or_never().is_none());
        drop(first);
        let second = many.remove(0).now_or_never().expect("it was first in the queue");
        drop(second);
        assert!(other.now_or_never().is_some(), "then the other's turn, not the first's next");
    }

    #[tokio::test]
    async fn what_a_person_waits_for_has_slots_when_all_others_are_taken() {
        let slots = Slots::new(1);
        let _slow = slots.take(connection(1), Urgency::Nobody).await;
        let mut next = Box::pin(slots.take(connection(2), Urgency::Nobody));
        assert!(next.as_mut().now_or_never().is_none());
        assert!(slots.take(connection(2), Urgency::Person).now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_gives_up_waiting_takes_no_slot_along() {
        let slots = Slots::new(1);
        let first = slots.take(connection(1), Urgency::Nobody).await;
        let mut gone = Box::pin(slots.take(connection(1), Urgency::Nobody));
        assert!(gone.as_mut().now_or_never().is_none());
        drop(gone);
        drop(first);
        assert!(slots.take(connection(1), Urgency::Nobody).now_or_never().is_some());
        assert!(slots.inner().turns.is_empty() && slots.inner().running.is_empty());
    }
}
