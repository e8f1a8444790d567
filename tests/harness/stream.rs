//! The stream of a [`World`], as its administrator has it: looked at, changed, deleted.

use crate::world::World;
use async_nats::jetstream::{self, context::Context};
use shared::stream::STREAM;

impl World {
    /// JetStream, for what a test wants to do with it.
    pub fn jetstream(&self) -> Context {
        jetstream::new(self.client().clone())
    }

    /// Messages in the stream.
    pub async fn stored(&self) -> anyhow::Result<u64> {
        Ok(self.jetstream().get_stream(STREAM).await?.cached_info().state.messages)
    }

    /// How many of them are handled, whatever came of it; dead ones are not.
    pub async fn finished(&self) -> anyhow::Result<u64> {
        let finished = "select count(*) from seen where scope = 'live' and outcome <> 'trigger'";
        let finished: i64 = sqlx::query_scalar(finished).fetch_one(&self.pool).await?;
        Ok(finished as u64)
    }

    /// Changes what the stream is configured to.
    pub async fn change_stream(
        &self,
        change: impl FnOnce(&mut jetstream::stream::Config),
    ) -> anyhow::Result<()> {
        let mut config = self.jetstream().get_stream(STREAM).await?.cached_info().config.clone();
        change(&mut config);
        self.jetstream().update_stream(config).await?;
        Ok(())
    }
}
