//! Writer of the answer of one run: stores each part in Postgres before it is sent to Slack, and
//! records what Slack confirmed.
//!
//! An ambiguous part is never sent again. Instead its segment is ended, and its message is compared
//! with the expected content. Parts that an earlier attempt left unconfirmed are reconciled the
//! same way.

use super::{RunSettings, RunTarget};
use crate::{
    agent_client::AgentAsk,
    context::WorkerTerm,
    dispatch::{
        attempt_context::AttemptContext,
        content::{Chunk, PlannedPart, SegmentPlan, closing_of, text_of},
        outcome_recorder::RECORD_INTERVAL,
        sessions::ActiveSession,
    },
};
use shared::{
    runtime::telemetry::ErrorChain,
    store::{ClaimedDelivery, RunPart, RunState, RunWrite, SegmentState, StoredRun},
};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::Instant;
use tracing::{error, warn};

/// Interval of queries for earlier messages in the outbox.
const OUTBOX_WAIT: Duration = Duration::from_millis(100);

/// Failure that ends the writing of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteError {
    /// The worker lost the lane.
    Fenced,
    /// The answer was stopped or deleted. The value is the outcome of the delivery.
    Undeliverable(&'static str),
    /// Slack refuses the answer. The delivery becomes a dead letter.
    Refused { reason: &'static str, error: String },
}

/// Content that an agent sent since the last write.
#[derive(Debug, Default)]
pub struct Batch {
    pub chunks: Vec<Chunk>,
    /// True if the batch begins a segment, since the answer restarts.
    pub begins: bool,
    /// Id of the last event of the batch.
    pub last_event_id: Option<String>,
    /// Question to people that ends the answer.
    pub ask: Option<AgentAsk>,
    /// Outcome of the delivery, if the answer is complete.
    pub ended: Option<&'static str>,
}

/// Writer of one run. Owns the stored state of the run and the message of the current segment.
pub struct Writer {
    pub(super) context: Arc<AttemptContext>,
    pub(super) term: Arc<WorkerTerm>,
    pub(super) delivery: ClaimedDelivery,
    pub(super) target: RunTarget,
    pub(super) settings: RunSettings,
    pub(super) session: Arc<ActiveSession>,
    pub(super) state: RunState,
    plan: SegmentPlan,
    /// Content of the segment, including the part that is being sent.
    pub(super) content: Vec<Chunk>,
    /// Stored parts to be sent, with their numbers.
    queue: VecDeque<(i32, PlannedPart)>,
    /// Time at which the segment began.
    pub(super) segment_at: Instant,
    /// Time of the last call that wrote to Slack.
    pub(super) written_at: Option<Instant>,
    /// True if the delivery ends with the segment, although the stored answer has no end.
    pub(super) is_last: bool,
}

impl Writer {
    /// Returns the writer of a run without stored state.
    pub fn new(
        context: Arc<AttemptContext>,
        term: Arc<WorkerTerm>,
        delivery: ClaimedDelivery,
        target: RunTarget,
        settings: RunSettings,
        session: Arc<ActiveSession>,
    ) -> Self {
        Self {
            context,
            term,
            delivery,
            target,
            settings,
            session,
            state: RunState::default(),
            plan: SegmentPlan::new(),
            content: Vec::new(),
            queue: VecDeque::new(),
            segment_at: Instant::now(),
            written_at: None,
            is_last: false,
        }
    }

    /// Loads the state of an earlier attempt. The caller must call [`Writer::settle`] or
    /// [`Writer::discard_unsent`] next.
    pub fn adopt(&mut self, stored: StoredRun) {
        self.state = stored.state;
        self.segment_at = Instant::now().checked_sub(stored.segment_age).unwrap_or(self.segment_at);
        let mut all = Vec::new();
        for RunPart { n, begins, content } in stored.parts {
            match serde_json::from_slice::<Vec<Chunk>>(&content) {
                Ok(chunks) => all.push((n, PlannedPart { begins, chunks })),
                Err(error) => error!(%error, n, "failed to parse part of run; part dropped"),
            }
        }
        for (n, part) in &all {
            if *n <= self.state.sent && *n >= self.state.segment_from {
                self.content.extend(part.chunks.iter().cloned());
            }
        }
        let is_open = self.state.segment != SegmentState::None;
        let segment: Vec<Chunk> = all.iter().flat_map(|(_, part)| part.chunks.clone()).collect();
        self.plan = SegmentPlan::resume(&segment, is_open && !all.is_empty());
        self.queue = all.into_iter().filter(|(n, _)| *n > self.state.sent).collect();
    }

    /// Reconciles the segment of an earlier attempt, and sends its remaining parts.
    pub async fn settle(&mut self) -> Result<(), WriteError> {
        match self.state.segment {
            SegmentState::None => {}
            SegmentState::Starting => {
                if let Some((n, part)) = self.queue.front().cloned() {
                    self.begin_again(n, part).await?;
                    self.queue.pop_front();
                }
            }
            SegmentState::Open => {
                if let Some((n, part)) = self.queue.front().cloned()
                    && !part.begins
                {
                    self.content.extend(part.chunks);
                    self.reconcile(n).await?;
                    self.queue.pop_front();
                }
            }
        }
        self.send_queued().await
    }

    /// Drops the parts that an earlier attempt stored and did not send. Looks up the message of an
    /// ambiguous start, so that it can be ended.
    pub async fn discard_unsent(&mut self) -> Result<(), WriteError> {
        let first = self.queue.pop_front();
        self.queue.clear();
        if self.state.segment != SegmentState::Starting {
            return Ok(());
        }
        self.state.segment = SegmentState::None;
        let Some((n, part)) = first else { return Ok(()) };
        self.content = part.chunks;
        match self.find_segment(self.segment_at).await? {
            Some(ts) => self.opened(n, ts).await,
            None => Ok(()),
        }
    }

    /// Returns the text of the segment and of the parts to be sent.
    pub fn planned_text(&self) -> String {
        let queued = self.queue.iter().map(|(_, part)| text_of(&part.chunks));
        text_of(&self.content) + &queued.collect::<String>()
    }

    /// Returns the time at which the segment must be ended, `None` unless it is an open stream.
    pub fn ends_segment_at(&self) -> Option<Instant> {
        let is_stream = self.state.segment == SegmentState::Open && !self.state.edited;
        is_stream.then(|| self.segment_at + self.settings.segment_period)
    }

    /// Stores a batch and sends it to Slack.
    pub async fn write(&mut self, batch: Batch) -> Result<(), WriteError> {
        if batch.begins {
            self.plan.end_segment();
            self.plan.reset_fences();
        }
        if self.state.segment == SegmentState::None
            || self.ends_segment_at().is_some_and(|at| at <= Instant::now())
        {
            self.plan.end_segment();
        }
        let planned = self.plan.add(batch.chunks);
        let mut parts = Vec::new();
        for part in planned {
            self.state.parts += 1;
            let n = self.state.parts;
            self.state.text_bytes += text_of(&part.chunks).len() as i64;
            let content = serde_json::to_vec(&part.chunks).unwrap_or_default();
            parts.push(RunPart { n, begins: part.begins, content });
            self.queue.push_back((n, part));
        }
        self.state.last_event_id = batch.last_event_id.or(self.state.last_event_id.take());
        if let Some(ask) = batch.ask {
            self.state.ask = serde_json::to_vec(&ask).ok();
        }
        self.state.ended = batch.ended.map(str::to_owned).or(self.state.ended.take());
        if self.state.segment == SegmentState::None
            && let Some((n, part)) = self.queue.front().cloned()
        {
            self.prepare_segment(n, &part);
        }
        self.save(parts).await?;
        self.send_queued().await
    }

    /// Ends the segment if its time has come, see [`Writer::ends_segment_at`].
    pub async fn end_old_segment(&mut self) -> Result<(), WriteError> {
        match self.ends_segment_at() {
            Some(at) if at <= Instant::now() => self.end_segment().await,
            _ => Ok(()),
        }
    }

    /// Ends the segment. The next part begins another one.
    pub async fn end_segment(&mut self) -> Result<(), WriteError> {
        self.plan.end_segment();
        if self.state.segment == SegmentState::Open {
            self.stop_segment().await?;
            self.state.segment = SegmentState::None;
            self.save(Vec::new()).await?;
        }
        Ok(())
    }

    async fn send_queued(&mut self) -> Result<(), WriteError> {
        while let Some((n, part)) = self.queue.front().cloned() {
            if self.state.segment == SegmentState::Open && part.begins {
                self.stop_segment().await?;
                self.state.segment = SegmentState::None;
            }
            match self.state.segment {
                SegmentState::Open => self.append(n, part.chunks).await?,
                SegmentState::None | SegmentState::Starting => self.begin(n, part).await?,
            }
            self.queue.pop_front();
        }
        Ok(())
    }

    /// Begins a segment with a part.
    async fn begin(&mut self, n: i32, part: PlannedPart) -> Result<(), WriteError> {
        if self.state.segment != SegmentState::Starting || self.state.segment_from != n {
            self.prepare_segment(n, &part);
            self.save(Vec::new()).await?;
        }
        self.wait_for_outbox().await?;
        self.content = part.chunks;
        let ts = self.start_segment().await?;
        self.opened(n, ts).await
    }

    /// Begins a segment, unless an earlier attempt has begun it.
    async fn begin_again(&mut self, n: i32, part: PlannedPart) -> Result<(), WriteError> {
        self.content.clone_from(&part.chunks);
        let sent_by = self.segment_at;
        match self.find_segment(sent_by).await? {
            Some(ts) => self.opened(n, ts).await,
            None => self.begin(n, part).await,
        }
    }

    async fn opened(&mut self, n: i32, ts: String) -> Result<(), WriteError> {
        (self.state.ts, self.state.sent) = (Some(ts), n);
        self.state.segment = SegmentState::Open;
        self.segment_at = Instant::now();
        self.save(Vec::new()).await
    }

    fn prepare_segment(&mut self, n: i32, part: &PlannedPart) {
        self.state.segment = SegmentState::Starting;
        (self.state.segment_from, self.state.ts) = (n, None);
        self.state.edited = !self.may_stream();
        self.content.clone_from(&part.chunks);
    }

    /// Appends a part to the segment.
    async fn append(&mut self, n: i32, chunks: Vec<Chunk>) -> Result<(), WriteError> {
        self.content.extend(chunks.iter().cloned());
        match self.append_to_segment(chunks).await? {
            AppendResult::Confirmed => self.confirm(n, SegmentState::Open).await,
            AppendResult::Unknown => self.reconcile(n).await,
            AppendResult::Expired => {
                self.update_segment().await?;
                self.confirm(n, SegmentState::None).await
            }
        }
    }

    /// Ends a segment whose last part is ambiguous, and completes its message.
    async fn reconcile(&mut self, n: i32) -> Result<(), WriteError> {
        self.settle_segment().await?;
        self.confirm(n, SegmentState::None).await
    }

    async fn confirm(&mut self, n: i32, segment: SegmentState) -> Result<(), WriteError> {
        (self.state.sent, self.state.segment) = (n, segment);
        self.save(Vec::new()).await
    }

    /// Returns the text that closes an open code fence at the end of the segment.
    pub(super) fn closing(&self) -> String {
        closing_of(&self.content)
    }

    /// Waits until the outbox has sent earlier messages of the conversation, to keep their order.
    async fn wait_for_outbox(&self) -> Result<(), WriteError> {
        let key = &self.delivery.key;
        loop {
            let store = &self.context.clients.store;
            match store.has_outbox_messages(key.connection, key.lane).await {
                Ok(false) => return Ok(()),
                Ok(true) => tokio::time::sleep(OUTBOX_WAIT).await,
                Err(error) => {
                    warn!(error = %ErrorChain(&error), "failed to query outbox messages of lane");
                    tokio::time::sleep(RECORD_INTERVAL).await;
                }
            }
            if !self.term.holds() {
                return Err(WriteError::Fenced);
            }
        }
    }

    /// Saves the state and new parts, with retries. Fails if the worker lost the lane.
    pub(super) async fn save(&self, parts: Vec<RunPart>) -> Result<(), WriteError> {
        let write = RunWrite::new(&self.delivery, self.state.clone(), parts);
        loop {
            match self.context.run_writes.run(write.clone()).await {
                Some(Ok(true)) => return Ok(()),
                Some(Ok(false)) => return Err(WriteError::Fenced),
                Some(Err(error)) => {
                    warn!(error = %ErrorChain(&error), "failed to save run");
                }
                None => warn!("failed to save run: batch panicked"),
            }
            tokio::time::sleep(RECORD_INTERVAL).await;
            if !self.term.holds() {
                return Err(WriteError::Fenced);
            }
        }
    }
}

/// Result of appending a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AppendResult {
    Confirmed,
    /// Ambiguous or refused.
    Unknown,
    /// Slack had ended the stream before.
    Expired,
}
